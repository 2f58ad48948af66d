"""No secret leaves: not in output, logs, records, parameters, tracebacks or reports.

Every secret gets a value of its own that occurs nowhere else; then real commands are run, many of
which fail, and all that they printed and wrote is searched for these values.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import command
import pytest
import yaml
from canary import CANARY, LOGIN, SECRETS, hostile_server, search, with_login
from git_repository import dvc_project

from flows import pipeline
from flows.commands import check_server
from pd_core.cli import reports
from pd_core.core.errors import BadParams, PdError
from pd_core.mlops import tracking
from pd_core.pipeline.redaction import MASK, masked, without_login
from pd_core.pipeline.stages import jobs

ROOT = Path(__file__).parents[2]
NAME = "embedded_digits"

QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@pytest.fixture
def place(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the embedded profile and a database for its runs."""
    for variable in [name for name in os.environ if name.startswith("PD_")]:
        monkeypatch.delenv(variable)
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("params.yaml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "fingerprints", folder / "fingerprints")
    shutil.copyfile(empty_database, folder / tracking.DATABASE)
    return folder


def run(place: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run Python with every secret set; make sure that no secret was printed."""
    usual = {key: value for key, value in os.environ.items() if not key.startswith("PD_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env={**usual, **QUICK, **SECRETS, **changes, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert CANARY not in done.stdout + done.stderr
    return done


def promptkd(place: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a verb in this process with every secret set; make sure that no secret was printed."""
    done = command.promptkd(place, *arguments, **{**QUICK, **SECRETS, **changes})
    assert CANARY not in done.stdout + done.stderr
    return done


# What is masked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no 'http://me:pa/ss@w@host/x'", f"no 'http://{MASK}@host/x'"),
        (
            "postgresql://me:pw@host/db?password=pw&b=2",
            f"postgresql://{MASK}@host/db?password={MASK}&b=2",
        ),
        (
            "models:/promptkd-x@champion https://host/a",
            "models:/promptkd-x@champion https://host/a",
        ),
        ("Authorization: Basic bWU6cHc= and", f"Authorization: Basic {MASK} and"),
        ("{'authorization': 'Bearer ab.cd-ef'}", f"{{'authorization': 'Bearer {MASK}'}}"),
    ],
    ids=["login", "query", "alias", "header", "headers"],  # the test's name is a variable
)
def test_logins_and_authorizations_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_values_of_secret_variables_are_masked_unless_they_are_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_API_KEY", "hidden-word-and-more")
    monkeypatch.setenv("SOME_TOKEN", "hidden-word")
    monkeypatch.setenv("PD_SERVE_API_KEYS", "first-hidden-key, second-hidden-key")
    assert masked("second-hidden-key and first-hidden-key") == f"{MASK} and {MASK}"
    monkeypatch.setenv("SOME_PASSWORD", "run")
    monkeypatch.setenv("SOME_URL", "http://me:hid%20den%2Fpw@host")
    Path(".env").write_text("PD_S3_SECRET_ACCESS_KEY=of-the-file\nOTHER=plain-value\n")

    secrets = masked("hidden-word hidden-word-and-more hid%20den%2Fpw hid den/pw of-the-file")

    assert secrets == " ".join([MASK] * 5)
    assert masked("plain-value of this run") == "plain-value of this run"


def test_an_address_is_used_without_its_login() -> None:
    assert without_login("http://me:p@ss@host:1/a@b") == "http://host:1/a@b"
    assert without_login("sqlite:///x.db") == "sqlite:///x.db"


# What is printed and recorded


def test_the_doctor_shows_none(place: Path) -> None:
    with hostile_server(healthy=True) as server:
        dvc_project(place)
        done = promptkd(
            place,
            "doctor",
            PD_DVC_REMOTE="s3://bucket/prefix",
            PD_MIRROR="s3://bucket/prefix",
            PD_S3_ENDPOINT_URL=server,
            PD_MLFLOW_TRACKING_URI=with_login(server),
        )

    lines = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert done.returncode == 1, done.stderr
    assert "does not allow to" in lines["mirror:"]
    assert f"the server at 'http://{MASK}@127" in lines["MLflow:"]
    assert not search(place / "fingerprints")


def test_a_stage_records_none_whether_it_ends_well_or_not(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: Any, **__: Any) -> None:
        secret = os.environ["AWS_SECRET_ACCESS_KEY"]
        raise RuntimeError("a bug" + secret[:0])

    def telling(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug " + os.environ["AWS_SECRET_ACCESS_KEY"])

    assert promptkd(place, "prepare", NAME).returncode == 0
    for crash, said in ((silent, "a bug"), (telling, f"a bug {MASK}")):
        monkeypatch.setattr(jobs, "prepare", crash)
        done = promptkd(place, "prepare", NAME)
        assert done.returncode == 1
        assert done.stderr.endswith(f"RuntimeError: {said}\n")

    client = tracking.client(f"sqlite:///{place / tracking.DATABASE}")
    runs = client.search_runs(["1"], "tags.level = 'stage'")
    assert [(run.info.status, run.data.tags.get("error")) for run in runs] == [
        ("FAILED", f"RuntimeError: a bug {MASK}"),
        ("FAILED", "RuntimeError: a bug"),
        ("FINISHED", None),
    ]
    assert not search(place)


def test_the_page_of_the_runs_is_shown_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for address in ("https://name:CANARY@host/mlflow", "postgresql://name:CANARY@host/mlflow"):
        monkeypatch.setenv("PD_MLFLOW_TRACKING_URI", address.replace("CANARY", CANARY))
        assert CANARY not in reports._mlflow_page()
        assert "host/mlflow" in reports._mlflow_page()


@pytest.mark.parametrize("port", ["9", "port"], ids=["down", "malformed"])
def test_a_tracking_server_that_is_not_there_gives_one_line_without_its_password(
    place: Path, port: str
) -> None:
    uri = f"http://me:cana/ry@canary-login@127.0.0.1:{port}"

    done = promptkd(place, "prepare", NAME, PD_MLFLOW_TRACKING_URI=uri)

    assert done.returncode == 2
    assert done.stderr.startswith(f"error: no MLflow server answers at 'http://{MASK}@127.0.0.1:")
    assert done.stderr.count("\n") == 1
    assert "cana" not in done.stderr  # a slash in the password ends no part of it
    assert not search(place)


def test_a_tracking_server_that_fails_after_the_work_gives_a_warning_without_its_password(
    place: Path,
) -> None:
    with hostile_server(healthy=True) as server:
        done = promptkd(place, "prepare", NAME, PD_MLFLOW_TRACKING_URI=with_login(server))

    assert done.returncode == 0
    assert f"is not recorded in 'http://{MASK}@127" in done.stderr
    assert not search(place)


def test_a_mirror_that_refuses_gives_one_line_without_credentials(place: Path) -> None:
    with hostile_server(healthy=False) as server:
        for group, name in (("weights", "ViT-B-16.pt"), ("data", "dtd")):
            verb = (group, "mirror", "pull", name)
            done = promptkd(place, *verb, PD_MIRROR="s3://bucket", PD_S3_ENDPOINT_URL=server)
            assert done.returncode == 2
            assert done.stderr.startswith("error: no rights for s3://bucket/")
    assert not search(place)


def test_the_prefect_server_is_not_given_a_password_in_its_address() -> None:
    with pytest.raises(BadParams, match="PREFECT_API_AUTH_STRING") as caught:
        check_server(f"http://{LOGIN}@127.0.0.1:9/api")

    assert CANARY not in str(caught.value)


def test_a_pipeline_that_dvc_refuses_is_quoted_without_secrets(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS["AWS_SECRET_ACCESS_KEY"])
    dvc_project(place)
    stage = {"cmd": "x", SECRETS["AWS_SECRET_ACCESS_KEY"]: 1}
    (place / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"a": stage}}))

    with pytest.raises(PdError, match="DVC refuses") as caught:
        pipeline.read_graph(place)

    assert MASK in str(caught.value)
    assert CANARY not in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_flow_records_no_secret_that_its_stages_print(place: Path) -> None:
    dvc_project(place)
    printed = "echo told: $AWS_SECRET_ACCESS_KEY $PD_MLFLOW_TRACKING_URI; mkdir -p out"
    stage = f"{sys.executable} -m pd_core prepare {NAME}"
    names = {"foreach": ["digits"]}
    stages = {
        "prepare": {**names, "do": {"cmd": printed, "outs": ["out"]}},
        "evaluate": {**names, "do": {"cmd": stage, "deps": ["out"]}},
    }
    (place / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))

    with hostile_server(healthy=False, status=404) as address:
        done = run(
            place,
            "-m",
            "flows.benchmark",
            PREFECT_HOME=str(place / "prefect"),
            PD_MLFLOW_TRACKING_URI=with_login(address),
        )

    output = done.stdout + done.stderr
    assert done.returncode == 2, output
    assert f"told: {MASK} {address.replace('://', f'://{MASK}@')}" in output
    assert "no MLflow server answers" in output
    assert "error: digits: 'evaluate@digits' failed" in done.stderr
    (database,) = (place / "prefect").glob("*.db")
    assert b"told: " in b"".join(file.read_bytes() for file in database.parent.glob("*.db*"))
    assert not search(place)


def test_git_ignores_files_of_secrets_and_keeps_the_example() -> None:
    for name, ignored in ((".env", 0), ("paper/.env", 0), (".env.example", 1)):
        done = subprocess.run(["git", "check-ignore", "--quiet", name], cwd=ROOT, check=False)
        assert done.returncode == ignored, name
