"""The doctor asks servers, remotes and buckets; none of them can make it hang."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from s3_server import BUCKET, client, endpoint, rights_checked, user_with
from test_doctor import NOWHERE, dvc, only, place

from pd_core.cli.doctor import servers
from pd_core.cli.doctor.local import Mark, examine
from pd_core.core.errors import PdError
from pd_core.mlops import tracking

__all__ = ["endpoint", "place"]  # fixtures


@contextmanager
def silent_server() -> Iterator[str]:
    """Accept connections and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def answering(status: int, password: str | None = None) -> Iterator[str]:
    """Answer every request with a status; 401 to all but /health where a password is asked for."""

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


# Servers


def test_a_local_database_is_made_by_the_first_stage_not_by_the_doctor(place: Path) -> None:
    finding = only(servers.mlflow(place, None))

    assert (finding.mark, finding.found) == (
        Mark.OK,
        f"the first stage will make '{place / 'mlflow.db'}'",
    )
    assert not list(place.iterdir())


def test_a_local_database_is_read_and_junk_in_its_place_is_wrong(
    place: Path, empty_database: Path
) -> None:
    shutil.copy(empty_database, place / tracking.DATABASE)
    assert only(servers.mlflow(place, None)).found.endswith(", 0 runs")

    (place / "other.db").write_text("no database" * 100)
    finding = only(servers.mlflow(place, f"sqlite:///{place}/other.db"))
    assert finding.mark is Mark.WRONG
    assert "is no database of MLflow" in finding.found


def test_a_tracking_server_that_is_down_is_wrong(place: Path) -> None:
    finding = only(examine("MLflow", lambda: servers.mlflow(place, NOWHERE)))

    assert finding.mark is Mark.WRONG
    assert f"no MLflow server answers at '{NOWHERE}'" in finding.found
    assert "start it" in finding.remedy


@pytest.mark.parametrize("given", [None, "wrong", "right"])
def test_the_tracking_servers_password_is_tried(place: Path, given: str | None) -> None:
    with answering(200, password="Basic bWU6cmlnaHQ=") as server:  # me:right
        user, secret = ("me", SecretStr(given)) if given else (None, None)
        finding = only(servers.mlflow(place, server, user=user, password=secret))
        in_address = server.replace("://", f"://me:{given}@")
        assert only(servers.mlflow(place, in_address)).mark is (
            Mark.OK if given == "right" else Mark.WRONG
        )

    match given:
        case None:
            assert "asks for a password" in finding.found
        case "wrong":
            assert "refuses the password" in finding.found
        case _:
            assert finding.mark is Mark.OK


def test_servers_that_accept_and_never_answer_do_not_hang_the_doctor(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_SERVER_SECONDS", 0.2)
    monkeypatch.setattr(servers, "_SECONDS", 0.2)
    monkeypatch.setattr(servers, "_SERVER_SECONDS", 0.2)
    begun = time.monotonic()
    with silent_server() as server:
        access = servers.Access("s3://bucket", server, SecretStr("id"), SecretStr("secret"))
        findings = [
            *examine("MLflow", lambda: servers.mlflow(place, server)),
            *examine("Prefect", lambda: servers.prefect(f"{server}/api")),
            *examine("mirror", lambda: [servers.s3("mirror", access)]),
        ]

    assert [finding.mark for finding in findings] == [Mark.WRONG] * 3
    assert time.monotonic() - begun < 10
    assert "(timed out)" in findings[0].found
    assert "(timed out)" in findings[1].found
    assert "does not answer" in findings[2].found


def test_prefect_need_not_be_set_and_is_asked_where_it_is() -> None:
    assert only(servers.prefect(None)).mark is Mark.OK
    with answering(200) as server:
        assert only(servers.prefect(f"{server}/api")).mark is Mark.OK
    with answering(404) as server:
        finding = only(servers.prefect(server))
        assert (finding.mark, finding.remedy) == (
            Mark.WRONG,
            "correct PD_PREFECT_API_URL (or PREFECT_API_URL): it ends with /api",
        )
    assert "prefect server start" in only(servers.prefect(f"{NOWHERE}/api")).remedy
    assert "PREFECT_API_AUTH_STRING" in only(servers.prefect("http://me:pw@host/api")).remedy


# DVC and S3


@pytest.mark.parametrize(
    ("actions", "mark", "missing"),
    [
        (("List", "Put", "Get", "Delete"), Mark.OK, ()),
        (("List", "Put", "Get"), Mark.WARNING, ("delete",)),
        (("List", "Put", "Delete"), Mark.WRONG, ("read",)),
        (("List", "Get", "Delete"), Mark.WRONG, ("write",)),
        (("Put", "Get", "Delete"), Mark.WRONG, ("list",)),
    ],
)
def test_the_missing_right_is_named(
    endpoint: str, actions: tuple[str, ...], mark: Mark, missing: tuple[str, ...]
) -> None:
    names = {
        "List": "s3:ListBucket",
        "Put": "s3:PutObject",
        "Get": "s3:GetObject",
        "Delete": "s3:DeleteObject",
    }
    access = user_with(endpoint, *(names[action] for action in actions))

    with rights_checked(endpoint):
        finding = servers.s3("mirror", access)

    assert finding.mark is mark, finding
    for right in ("list", "write", "read", "delete"):
        assert (f"{right} (s3:" in finding.found) == (right in missing)


def test_nothing_is_left_in_the_bucket(endpoint: str) -> None:
    access = servers.Access(f"s3://{BUCKET}/tidy", endpoint, SecretStr("id"), SecretStr("secret"))

    assert servers.s3("mirror", access).mark is Mark.OK

    assert "Contents" not in client("s3", endpoint).list_objects_v2(Bucket=BUCKET, Prefix="tidy")


def test_wrong_credentials_a_missing_bucket_and_a_dead_server_are_told_apart(
    endpoint: str,
) -> None:
    keys = SecretStr("id"), SecretStr("secret")
    with rights_checked(endpoint):
        stranger = servers.s3("mirror", servers.Access(f"s3://{BUCKET}", endpoint, *keys))
    nowhere = servers.s3("mirror", servers.Access("s3://no-such-bucket", endpoint, *keys))
    dead = servers.s3("mirror", servers.Access(f"s3://{BUCKET}", NOWHERE, *keys))

    assert "refuses the credentials (InvalidAccessKeyId)" in stranger.found
    assert "PD_S3_ACCESS_KEY_ID" in stranger.remedy
    assert "no bucket 'no-such-bucket'" in nowhere.found
    assert "does not answer" in dead.found
    assert {stranger.mark, nowhere.mark, dead.mark} == {Mark.WRONG}


def test_a_folder_without_dvc_is_wrong(place: Path) -> None:
    with pytest.raises(PdError, match="DVC finds no project at"):
        servers.read_dvc(place)


def test_results_without_a_remote_are_a_warning(place: Path) -> None:
    dvc(place)

    project, remote = servers.dvc(servers.read_dvc(place))

    assert project.found == f"project '{place}', cache '{place / '.dvc' / 'cache'}'"
    assert remote.mark is Mark.WARNING


def test_the_remote_of_the_settings_is_reached_by_their_credentials(
    place: Path, endpoint: str
) -> None:
    dvc(
        place,
        secrets="""
        ['remote "shared"']
        url = s3://of-an-earlier-time
    """,
    )
    project = servers.read_dvc(place)
    access = user_with(endpoint, "s3:ListBucket", "s3:PutObject", "s3:GetObject", "s3:DeleteObject")

    with rights_checked(endpoint):
        _, good = servers.dvc(project, access)
        _, bad = servers.dvc(project, servers.Access(access.location, endpoint, SecretStr("id")))
    _, folder = servers.dvc(project, servers.Access(str(place / "copies")))

    assert (good.subject, good.mark) == ("DVC remote shared", Mark.OK)
    assert (bad.mark, "PD_S3_ACCESS_KEY_ID" in bad.remedy) == (Mark.WRONG, True)
    assert (folder.mark, folder.found.startswith(f"'{place / 'copies'}'")) == (Mark.OK, True)


def test_remotes_of_dvc_are_reached_and_their_secrets_not_shown(place: Path, endpoint: str) -> None:
    (place / "file").touch()
    dvc(
        place,
        f"""
            ['remote "disk"']
            url = ../copies
            ['remote "blocked"']
            url = {place}/file/copies
            ['remote "bucket"']
            url = s3://{BUCKET}/dvc
            endpointurl = {endpoint}
            ['remote "shell"']
            url = ssh://me:hidden-word@host/x
        """,
        """
            ['remote "bucket"']
            access_key_id = key-of-nobody
            secret_access_key = hidden-word
        """,
    )
    configured = servers.read_dvc(place)
    found = {one.subject: one for one in examine("DVC", lambda: servers.dvc(configured))}

    assert found["DVC"].mark is Mark.OK
    assert found["DVC remote"].found == "none is the default"
    assert found["DVC remote disk"].found.startswith(f"'{place / 'copies'}'")
    assert found["DVC remote disk"].mark is Mark.OK
    assert not (place / "copies").exists()
    assert found["DVC remote blocked"].mark is Mark.WRONG
    assert found["DVC remote bucket"].mark is Mark.OK
    assert "not asked" in found["DVC remote shell"].found
    assert "hidden-word" not in f"{found} {configured}"
    with rights_checked(endpoint):
        refused = {one.subject: one for one in servers.dvc(configured)}["DVC remote bucket"]
    assert "refuses the credentials" in refused.found
    assert "dvc remote modify --local" in refused.remedy
