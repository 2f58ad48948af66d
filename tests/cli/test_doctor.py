"""`promptkd doctor` finds what is wrong, says what to do, and never hangs."""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from git_repository import commit, dvc_project, git
from PIL import Image
from pydantic import SecretStr
from s3_server import BUCKET, client, endpoint, rights_checked, user_with
from typer import Typer
from typer.testing import CliRunner, Result

from pd_core.cli import doctor as checks
from pd_core.cli import doctor_servers as servers
from pd_core.cli.doctor import Status, run_check
from pd_core.core.errors import BadParams, MissingFile, PdError
from pd_core.data.catalog import fingerprint
from pd_core.data.catalog.catalogue import OwnImages, dataset_spec, own_spec
from pd_core.mlops import tracking
from pd_core.pipeline.provenance import ABSENT, version
from pd_core.pipeline.settings import Settings

__all__ = ["endpoint"]  # a fixture

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # the discard port; nothing listens there
GIB = 2**30
RIGHTS = {
    "list": "s3:ListBucket",
    "write": "s3:PutObject",
    "read": "s3:GetObject",
    "delete": "s3:DeleteObject",
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, without the variables of the environment."""
    monkeypatch.chdir(tmp_path)
    outside = ("PD_", "AWS_", "MLFLOW_TRACKING")
    for name in [name for name in os.environ if name.startswith(outside)]:
        monkeypatch.delenv(name)
    return tmp_path


def only(results: checks.Result | Iterable[checks.Result]) -> checks.Result:
    (result,) = [results] if isinstance(results, checks.Result) else results
    return result


@contextmanager
def silent_server() -> Iterator[str]:
    """Accept connections and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def answering(status: int, password: str | None = None) -> Iterator[str]:
    """Answer every request with a status; 401 to all but /health if the password is wrong."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = self.headers["Authorization"] == password or self.path.endswith("/health")
            self.send_response(status if password is None or good else 401)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


# The frame of all checks


def test_a_check_that_never_ends_is_given_up() -> None:
    def hang() -> list[checks.Result]:
        time.sleep(30)
        return []

    begun = time.monotonic()
    result = only(run_check("slow", hang, seconds=0.2))
    assert time.monotonic() - begun < 5
    assert result.status is Status.WRONG
    assert "no answer within 0.2 seconds" in result.message


def test_errors_of_checks_are_results() -> None:
    def refuse() -> Iterator[checks.Result]:
        raise PdError("it is gone; look for it")
        yield

    refused = only(run_check("thing", refuse))
    assert refused == checks.Result("thing", Status.WRONG, "it is gone", "look for it")
    failed = only(run_check("thing", lambda: [checks.ok("", str(1 / 0))]))
    assert (failed.status, failed.remedy) == (Status.WRONG, "report this")
    assert "ZeroDivisionError" in failed.message


# The machine


def test_another_version_than_the_pinned_one_is_a_warning() -> None:
    installed = checks.packages(ROOT / "constraints.txt")
    assert installed.status is Status.OK
    assert installed.message.endswith("as pinned")

    Path("constraints.txt").write_text("torch==1.0\nmlflow==0.1\nleft-pad==1\n")
    other = checks.packages(Path("constraints.txt"))
    assert other.status is Status.WARNING
    assert "pinned is 1.0, mlflow is" in other.message


def test_a_package_that_is_not_installed_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        checks, "version", lambda name: ABSENT if name == "torch" else version(name)
    )
    result = checks.packages(Path("constraints.txt"))
    assert (result.status, result.message) == (Status.WRONG, "torch not installed")


def test_a_folder_that_git_does_not_track_is_wrong(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "ZIP download" in checks.repository().message
    git(place, "init")
    Path("params.yaml").touch()
    assert checks.repository().status is Status.WRONG
    commit(place)
    assert checks.repository().message.startswith("commit ")
    monkeypatch.setenv("PATH", str(place))
    assert checks.repository().remedy == "install git first"


def test_a_device_that_is_not_there_is_wrong() -> None:
    assert "cores" in checks.device("cpu").message
    result = checks.device("cuda:97")
    assert result.status is Status.WRONG
    assert "PD_DEVICE" in result.remedy


@pytest.mark.parametrize(
    ("free", "status"),
    [(6 * GIB, Status.OK), (5 * GIB - 1, Status.WARNING), (GIB - 1, Status.WRONG)],
)
def test_little_space_is_a_warning_and_next_to_none_is_wrong(free: int, status: Status) -> None:
    assert checks.space_result("here", free).status is status


def test_the_space_of_a_folder_that_does_not_exist_is_that_of_its_disk(place: Path) -> None:
    assert f"free at '{place}'" in checks.space(place / "data" / "x").message


# The user's settings, data and weights


def test_misspelt_variables_and_a_missing_data_folder_are_named(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PD_DEVISE", "cuda")
    Path(".env").write_text("PD_DATA_ROOT=images\n")
    Path(".env").chmod(0o600)
    misspelt, missing, used = checks.settings()
    assert misspelt.remedy == "write PD_DEVICE, or remove it"
    assert (missing.status, "no folder 'images'" in missing.message) == (Status.WRONG, True)
    assert str(place / ".env") in missing.message
    assert used.message.startswith("PD_DATA_ROOT of ")


def test_a_file_of_secrets_that_git_would_take_or_others_may_read_is_named(place: Path) -> None:
    git(place, "init")
    Path(".env").write_text("PD_DEVICE=cpu\n")
    Path(".env").chmod(0o644)
    tracked, shared, _ = checks.settings()
    assert (tracked.status, shared.status) == (Status.WRONG, Status.WARNING)
    assert (".gitignore" in tracked.remedy, "chmod 600" in shared.remedy) == (True, True)

    Path(".gitignore").write_text(".env\n")
    Path(".env").chmod(0o600)
    assert only(checks.settings()).status is Status.OK

    git(place, "add", "--force", ".env")
    git(place, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "secrets")
    assert next(iter(checks.settings())).status is Status.WRONG


def test_a_data_set_that_is_not_there_is_wrong_and_embedded_ones_are_one_line(place: Path) -> None:
    target = fingerprint.path_of("embedded_greek", place)
    target.parent.mkdir()
    shutil.copy(fingerprint.path_of("embedded_greek", ROOT), target)
    specs = [dataset_spec(name) for name in ("embedded_greek", "dtd")]

    dtd, embedded = checks.data(specs, place / "raw", place)

    assert (dtd.subject, dtd.status) == ("data dtd", Status.WRONG)
    assert dtd.remedy == "run `promptkd data fetch dtd`, or correct PD_DATA_ROOT"
    assert embedded.status is Status.OK

    target.write_text("{}")
    assert only(checks.data(specs[:1], place / "raw", place)).status is Status.WRONG


def test_images_need_a_fingerprint_that_is_readable_and_committed(place: Path) -> None:
    git(place, "init")
    images = place / "raw" / "mine" / "labelled" / "red"
    images.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(images / "1.png")
    mine = own_spec("mine", OwnImages(labelled="mine/labelled"))
    path = fingerprint.path_of("mine", place)

    def check() -> checks.Result:
        return only(checks.data([mine], place / "raw", place))

    assert check().status is Status.WRONG
    assert "run `promptkd data fingerprint mine` and commit" in check().remedy
    path.parent.mkdir()
    path.write_text("{}")
    assert (check().status, check().remedy) == (
        Status.WRONG,
        "run `promptkd data fingerprint mine`",
    )
    shutil.copy(fingerprint.path_of("embedded_greek", ROOT), path)
    assert check().status is Status.WARNING
    commit(place)
    assert check().status is Status.OK


def test_weights_that_are_missing_empty_or_corrupt_are_wrong(place: Path) -> None:
    files = [place / name for name in ("ViT-B-16.pt", "empty.pt", "good.safetensors")]
    files[1].touch()
    files[2].write_bytes(b"weights")
    missing, empty, good = checks.weights(files)
    assert missing.remedy == "run `promptkd weights fetch ViT-B-16.pt`"
    assert (empty.status, good.status) == (Status.WRONG, Status.OK)

    (place / "SHA256SUMS").write_text(f"{'0' * 64}  good.safetensors\n")
    corrupt = only(run_check("weights", lambda: checks.weights(files[2:])))
    assert corrupt.status is Status.WRONG


# Servers


def test_a_place_of_the_database_that_cannot_be_written_is_wrong(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    assert servers.mlflow(place, None).status is Status.WRONG


def test_a_local_database_is_read_but_not_created(place: Path, empty_database: Path) -> None:
    assert servers.mlflow(place, None).status is Status.OK
    assert not list(place.iterdir())

    shutil.copy(empty_database, place / tracking.DATABASE)
    assert servers.mlflow(place, None).message.endswith(", 0 runs")
    (place / "other.db").write_text("no database" * 100)
    junk = servers.mlflow(place, f"sqlite:///{place}/other.db")
    assert (junk.status, "no database of MLflow" in junk.message) == (Status.WRONG, True)


@pytest.mark.parametrize("given", [None, "wrong", "right"])
@pytest.mark.parametrize("in_address", [True, False])
def test_the_tracking_servers_password_is_tried(
    place: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, *, in_address: bool
) -> None:
    with answering(200, password="Basic bWU6cmlnaHQ=") as server:  # me:right
        if given is not None and in_address:
            server = server.replace("://", f"://me:{given}@")
        elif given is not None:
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", given)
        result = servers.mlflow(place, server)
    assert result.status is (Status.OK if given == "right" else Status.WRONG)
    words = {None: "asks for a password", "wrong": "refuses the password", "right": "answers"}
    assert words[given] in result.message


def test_servers_that_never_answer_do_not_hang_the_doctor(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_SERVER_SECONDS", 0.2)
    monkeypatch.setattr(servers, "_SECONDS", 0.2)
    begun = time.monotonic()
    with silent_server() as server:
        given = Settings(s3_endpoint_url=server, s3_access_key_id=SecretStr("i"))
        results = [
            *run_check("MLflow", lambda: servers.mlflow(place, server)),
            *run_check("mirror", lambda: servers.s3("mirror", "s3://bucket", given)),
        ]
    assert [result.status for result in results] == [Status.WRONG] * 2
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("missing", "status"),
    [
        (None, Status.OK),
        ("delete", Status.WARNING),
        ("read", Status.WRONG),
        ("write", Status.WRONG),
        ("list", Status.WRONG),
    ],
)
def test_the_right_that_credentials_lack_is_named(
    endpoint: str, missing: str | None, status: Status
) -> None:
    given = user_with(endpoint, *(RIGHTS[right] for right in RIGHTS if right != missing))
    with rights_checked(endpoint):
        result = servers.s3("mirror", f"s3://{BUCKET}/{missing}", given)
    assert result.status is status, result
    if missing is not None:
        assert f"not allow to {missing} (s3:" in result.message
    objects = client("s3", endpoint).list_objects_v2(Bucket=BUCKET, Prefix=f"{missing}/")
    assert ("Contents" in objects) is (missing == "delete")


def test_wrong_credentials_a_missing_bucket_and_a_dead_server_differ(endpoint: str) -> None:
    given = user_with(endpoint, *RIGHTS.values())
    given = given.model_copy(update={"s3_access_key_id": SecretStr("id")})
    with rights_checked(endpoint):
        stranger = servers.s3("mirror", f"s3://{BUCKET}", given)
    nowhere = servers.s3("mirror", "s3://no-such-bucket", given)
    dead = servers.s3(
        "mirror", f"s3://{BUCKET}", given.model_copy(update={"s3_endpoint_url": NOWHERE})
    )

    assert "refuses the credentials" in stranger.message
    assert "PD_S3_ACCESS_KEY_ID" in stranger.remedy
    assert "no bucket 'no-such-bucket'" in nowhere.message
    assert "does not answer" in dead.message
    assert {stranger.status, nowhere.status, dead.status} == {Status.WRONG}


def test_the_remote_has_to_be_writable_and_none_is_a_warning(place: Path, endpoint: str) -> None:
    with pytest.raises(MissingFile, match="DVC project"):
        servers.dvc_remote(Settings())
    dvc_project(place)
    assert servers.dvc_remote(Settings()).status is Status.WARNING
    (place / "file").touch()
    assert servers.dvc_remote(Settings(dvc_remote=f"{place}/copies")).status is Status.OK
    assert servers.dvc_remote(Settings(dvc_remote=f"{place}/file/x")).status is Status.WRONG
    given = user_with(endpoint, *RIGHTS.values())
    with rights_checked(endpoint):
        assert servers.dvc_remote(given).status is Status.OK


# All of it


def doctor(*arguments: str) -> Result:
    app = Typer()
    app.command()(checks.doctor)
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_working_profile_is_status_0_and_a_broken_one_status_1_in_text_and_json(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("params.yaml", "constraints.txt"):
        shutil.copy(ROOT / name, place)
    for folder in ("fingerprints", "pd_core/models/weights"):
        shutil.copytree(ROOT / folder, place / folder)
    dvc_project(place)
    git(place, "init")
    commit(place)

    good = doctor()
    monkeypatch.setenv("PD_MLFLOW_TRACKING_URI", NOWHERE)
    bad = doctor("--json")

    assert good.exit_code == 0, good.stdout
    lines = good.stdout.splitlines()
    assert all(line.split()[0] in ("ok", "warning") for line in lines)
    assert bad.exit_code == 1
    rows = json.loads(bad.stdout)
    assert len(rows) == len(lines)
    (wrong,) = [row for row in rows if row["status"] == "wrong"]
    assert wrong["subject"] == "MLflow"
    assert "start it" in wrong["remedy"]


def test_bad_settings_are_the_usual_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "params.yaml", place)
    monkeypatch.setenv("PD_DEVICE", "gpu")
    with pytest.raises(BadParams, match="PD_DEVICE"):
        doctor()
