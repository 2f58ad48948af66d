"""Clones share what they computed by the remote of the settings, and no file holds its password."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import command
import pytest
from git_repository import commit, git
from s3_server import BUCKET, endpoint, rights_checked, user_with

from pd_core.core.errors import PdError
from pd_core.pipeline import dvc
from pd_core.pipeline.settings import Settings

__all__ = ["endpoint"]  # a fixture

ROOT = Path(__file__).parents[2]
RIGHTS = ("s3:ListBucket", "s3:PutObject", "s3:GetObject")

# Each stage notes beside the clones that it ran.
PIPELINE = """
stages:
  first: {cmd: echo first >> DIARY && mkdir -p data && cp one data, deps: [one], outs: [data/one]}
  second: {cmd: echo second >> DIARY && cp data/one data/two, deps: [data/one], outs: [data/two]}
"""


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """Make a repository with a DVC project, and one of its own in `paper`."""
    folder = tmp_path / "origin"
    for project in (folder, folder / "paper"):
        (project / ".dvc").mkdir(parents=True)
        (project / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
        (project / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
        pipeline = PIPELINE.replace("DIARY", str(tmp_path / f"diary-{project.name}"))
        (project / "dvc.yaml").write_text(pipeline)
        (project / "one").write_text("one\n")
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


@pytest.fixture
def access(endpoint: str) -> Iterator[Settings]:
    """Return what gets at a bucket to which nobody else does."""
    user = user_with(endpoint, *RIGHTS)
    with rights_checked(endpoint):
        yield user


def clone(origin: Path, name: str) -> Path:
    git(origin, "clone", "--quiet", str(origin), str(origin.parent / name))
    return origin.parent / name


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """Return the variables of a machine where nothing is set but the settings."""
    usual = {key: value for key, value in os.environ.items() if key[:3] not in ("PD_", "AWS")}
    bare = {"HOME": str(folder.parent), "AWS_EC2_METADATA_DISABLED": "true"}
    return {**usual, **bare, "PYTHONPATH": str(ROOT), **settings}


def promptkd(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    with patch.dict(os.environ, environment(folder, **settings), clear=True):
        return command.promptkd(folder, *arguments)


def settings(access: Settings) -> dict[str, str]:
    assert access.s3_access_key_id is not None
    assert access.s3_secret_access_key is not None
    return {
        "PD_DVC_REMOTE": f"s3://{BUCKET}/dvc",
        "PD_S3_ENDPOINT_URL": access.s3_endpoint_url or "",
        "PD_S3_ACCESS_KEY_ID": access.s3_access_key_id.get_secret_value(),
        "PD_S3_SECRET_ACCESS_KEY": access.s3_secret_access_key.get_secret_value(),
    }


@pytest.mark.parametrize("project", [".", pytest.param("paper", marks=pytest.mark.slow)])
def test_a_second_clone_takes_what_the_first_has_pushed_and_computes_nothing(
    project: str, origin: Path, access: Settings, tmp_path: Path
) -> None:
    first, second = (clone(origin, name) / project for name in ("first", "second"))
    diary = tmp_path / f"diary-{project if project != '.' else 'origin'}"
    given = settings(access)

    said = [
        promptkd(first, "repro", "--pull", **given),
        promptkd(first, "push", "second", **given),
        promptkd(second, "repro", "--pull", "second", **given),
    ]

    assert [done.returncode for done in said] == [0, 0, 0], [done.stderr for done in said]
    assert diary.read_text() == "first\nsecond\n"
    assert (second / "data" / "two").read_text() == "one\n"
    secret = given["PD_S3_SECRET_ACCESS_KEY"]
    assert secret not in "".join(done.stdout + done.stderr for done in said)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    git(first, "diff", "--exit-code", "--", ".dvc")


def test_without_its_password_the_remote_is_not_reached_and_dvcs_status_is_given(
    origin: Path, access: Settings
) -> None:
    given = {key: value for key, value in settings(access).items() if "KEY" not in key}
    assert promptkd(origin, "repro", "first").returncode == 0

    done = promptkd(origin, "push", "first", **given)

    assert done.returncode not in (0, 2)
    assert "ERROR: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_may_be_the_remote(origin: Path, tmp_path: Path) -> None:
    given = {"PD_DVC_REMOTE": str(tmp_path / "shared"), "PD_S3_ENDPOINT_URL": "http://127.0.0.1:9"}
    assert promptkd(origin, "repro", **given).returncode == 0
    assert promptkd(origin, "push", **given).returncode == 0
    assert list((tmp_path / "shared" / "runs").iterdir())


def test_a_push_ends_when_it_is_told_to(origin: Path) -> None:
    assert promptkd(origin, "repro").returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        given = {"PD_DVC_REMOTE": "s3://bucket", "PD_S3_ENDPOINT_URL": address}
        keys = {"PD_S3_ACCESS_KEY_ID": "id", "PD_S3_SECRET_ACCESS_KEY": "secret"}
        with subprocess.Popen(
            [sys.executable, "-m", "pd_core", "push"],
            cwd=origin,
            env=environment(origin, **given, **keys),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            connection, _ = silent.accept()
            with connection:
                process.terminate()
                _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (
        75,
        "stopped: terminated by SIGTERM; start the same command again to resume\n",
    )


def test_outside_a_project_it_is_one_line(tmp_path: Path) -> None:
    for verb in ("repro", "push"):
        done = promptkd(tmp_path, verb, PD_DVC_REMOTE="s3://bucket/dvc")
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: DVC project not found: '{tmp_path}'; go to")
        assert done.stderr.count("\n") == 1


# The settings of DVC


OTHERS = """[cache]
    dir = ../../cache
['remote "mine"']
    url = ssh://host/copies
    password = hidden-word
['remote "shared"']
    url = s3://before
    endpointurl = http://before
    region = eu-central-1
"""


def configured(file: Path) -> dict[str, str]:
    """Return what DVC says of a file of its settings."""
    done = command.dvc(file.parent, "config", "--local", "--list")
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_other_settings_stay_and_only_its_owner_may_still_read_it(origin: Path) -> None:
    file = origin / ".dvc" / "config.local"
    file.write_text(OTHERS)
    file.chmod(0o600)

    dvc.configure(origin, "s3://bucket/dvc", None)

    assert configured(file) == {
        "core.remote": "shared",
        "cache.dir": str(origin.parent / "cache"),
        "remote.mine.url": "ssh://host/copies",
        "remote.mine.password": "hidden-word",
        "remote.shared.url": "s3://bucket/dvc",
    }
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_file_is_written_only_if_it_has_to_change(origin: Path) -> None:
    file = origin / ".dvc" / "config.local"

    def written(endpoint: str | None) -> int:
        dvc.configure(origin, "s3://bucket/dvc", endpoint)
        return file.stat().st_ino

    first = written("http://host")
    with file.open():  # so that its number is not given away again
        assert written("http://host") == first
        assert written(None) != first
    assert "endpointurl" not in file.read_text()


def test_settings_that_dvc_cannot_read_are_not_repeated(origin: Path) -> None:
    (origin / ".dvc" / "config.local").write_text("hidden-word\n")

    with pytest.raises(PdError, match="DVC cannot read its settings in") as caught:
        dvc.configure(origin, "s3://bucket/dvc", None)

    assert "hidden-word" not in str(caught.value)
