"""A training of two ranks: the end of one, SIGTERM, a killed launcher, and errors."""

import os
import shutil
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import short_project
import tiny
from short_project import NAME, TEACHER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """Make a project that trains in two ranks, and prepare its data set."""
    folder = tmp_path_factory.mktemp("parallel") / "project"
    short_project.make(folder, empty_database, processes=("1", "2"))
    short_project.run(folder, "prepare", NAME)
    return folder


@pytest.fixture(scope="module")
def undisturbed(prepared: Path) -> dict[str, bytes]:
    """Return the teacher's files of a run without interruption, which is recorded once."""
    assert "continues" not in short_project.run(prepared, "teacher", NAME)
    query = "select count(*) from runs where name = ?"
    with closing(sqlite3.connect(prepared / "mlflow.db")) as database:
        assert database.execute(query, (f"teacher@{NAME}",)).fetchone()[0] == 1
    return short_project.take_teacher(prepared)


@pytest.fixture
def project(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "project", symlinks=True)


def ranks(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    children = psutil.Process(process.pid).children()
    return {int(child.environ()["RANK"]): child for child in children}


def check_resumed(project: Path, undisturbed: dict[str, bytes]) -> None:
    assert short_project.run(project, "teacher", NAME).count("continues from checkpoint") == 1
    assert short_project.take_teacher(project) == undisturbed


def test_after_sigterm_they_save_and_resume_to_the_same_bytes(
    project: Path, undisturbed: dict[str, bytes]
) -> None:
    process = short_project.in_the_middle(project, "teacher", NAME)
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output
    assert output.count("stopped: interrupted at epoch ") == 1
    assert "Traceback" not in output
    assert not (project / TEACHER).exists()
    check_resumed(project, undisturbed)


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_is_killed_the_other_ends_and_both_resume_to_the_same_bytes(
    project: Path, undisturbed: dict[str, bytes], rank: int
) -> None:
    process = short_project.in_the_middle(project, "teacher", NAME)
    workers = ranks(process)
    workers[rank].kill()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2, output
    assert output.splitlines()[-1].startswith(f"error: process {rank} of 2 was ended by SIGKILL; ")
    assert "Traceback" not in output
    assert not any(worker.is_running() for worker in workers.values())
    check_resumed(project, undisturbed)


def test_when_their_launcher_is_killed_they_end(project: Path) -> None:
    process = short_project.in_the_middle(project, "teacher", NAME)
    workers = ranks(process)
    process.kill()
    process.communicate(timeout=60)
    assert psutil.wait_procs(workers.values(), timeout=20)[1] == []


def test_an_image_that_one_of_them_cannot_read_is_named_in_one_line(project: Path) -> None:
    tiny.cut_short(project / "data" / "prepare" / NAME / "images.zip")
    process = short_project.start(project, "teacher", NAME)
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 2, output
    assert len(output.splitlines()) == 1, output
    assert output.startswith("error: ")
    assert "not a readable" in output
    assert not list(project.glob("data/teacher/*"))
