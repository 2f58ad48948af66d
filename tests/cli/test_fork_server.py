"""Stages run in forks of one server: the same results, exit statuses and ends as on their own."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import short_project
from short_project import CHECKPOINTS, NAME, TEACHER
from waiting import wait_until

from pd_core.cli import fork_server
from pd_core.cli.fork_server import ADDRESS
from pd_core.pipeline.settings import Settings

pytestmark = [
    pytest.mark.slow, pytest.mark.ci, pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="the server is for Linux"),
]  # fmt: skip
REFUSED = ("prepare", "embedded_ships")


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with fork_server.running(threads=1):
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """Make a project and prepare its data set, in a fork."""
    folder = tmp_path_factory.mktemp("forked") / "project"
    short_project.make(folder, empty_database)
    short_project.run(folder, "prepare", NAME)
    return folder


@pytest.fixture
def project(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "project", symlinks=True)


def servers() -> list[psutil.Process]:
    """Return the server and all that it has forked."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "pd_core.cli.fork_server" in (process.info["cmdline"] or ())
    ]


def workers(project: Path) -> list[psutil.Process]:
    return [process for process in servers() if process.cwd() == str(project)]


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS)


def outcome(project: Path, *arguments: str) -> tuple[int, str]:
    process = short_project.start(project, *arguments)
    output = process.communicate(timeout=100)[0]
    return process.returncode, output


def test_the_bytes_are_those_of_a_stage_on_its_own(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked = short_project.start(prepared, "teacher", NAME)
    wait_until(lambda: bool(workers(prepared)), "a fork works", forked)
    assert forked.communicate(timeout=200)[0].startswith("teacher")
    assert forked.returncode == 0
    files = short_project.take_teacher(prepared)

    alone(monkeypatch)
    short_project.run(prepared, "teacher", NAME)

    assert short_project.take_teacher(prepared) == files


def test_status_and_message_of_an_error_are_those_of_a_stage_on_its_own(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked = outcome(prepared, *REFUSED)
    alone(monkeypatch)

    assert forked == outcome(prepared, *REFUSED)
    assert forked[0] == 2


def test_the_environment_is_that_of_the_command(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PD_DEVICE", "abacus")
    status, output = outcome(prepared, "teacher", NAME)

    assert status == 2
    assert "abacus" in output or "PD_DEVICE" in output


def test_after_sigterm_the_stage_saves_its_state(project: Path) -> None:
    process = short_project.in_the_middle(project, "teacher", NAME)
    process.terminate()
    output = process.communicate(timeout=60)[0]

    assert process.returncode == 75, output
    assert output.count("stopped: interrupted at epoch ") == 1
    assert list(project.glob(f"{CHECKPOINTS}/*.safetensors"))
    assert not (project / TEACHER).exists()
    assert workers(project) == []


def test_when_the_command_is_killed_the_stage_ends(project: Path) -> None:
    process = short_project.in_the_middle(project, "teacher", NAME)
    assert workers(project)
    process.kill()
    process.communicate(timeout=60)

    wait_until(lambda: workers(project) == [], "no fork works", seconds=20)


def test_when_the_stage_is_killed_the_command_ends_by_the_same_signal(project: Path) -> None:
    process = short_project.in_the_middle(project, "teacher", NAME)
    for worker in workers(project):
        worker.kill()
    process.communicate(timeout=60)

    assert process.returncode == -signal.SIGKILL


def test_without_the_server_the_command_runs_on_its_own(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADDRESS, str(tmp_path / "nothing"))

    assert outcome(prepared, *REFUSED)[0] == 2


def test_the_server_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    before = {process.pid for process in servers()}
    with fork_server.running(threads=1):
        assert len({process.pid for process in servers()} - before) == 1

    assert ADDRESS not in os.environ
    wait_until(lambda: {process.pid for process in servers()} <= before, seconds=20)


def test_the_server_ends_when_its_parent_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    before = {process.pid for process in servers()}
    code = (
        "import os, signal\nfrom pd_core.cli import fork_server\n"
        "with fork_server.running(1): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=short_project.ROOT, check=False)

    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: {process.pid for process in servers()} <= before, seconds=20)


def test_a_profile_for_a_gpu_has_no_server(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    monkeypatch.chdir(prepared)
    with fork_server.for_profile(Settings(device="cuda")):
        assert ADDRESS not in os.environ
    with fork_server.for_profile(Settings(device="cpu")):
        assert ADDRESS in os.environ
