"""SIGTERM: a training saves its state and says so; other stages clean up and end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import short_project
from git_repository import dvc_project
from short_project import NAME, TEACHER

TRY_AGAIN = 75  # EX_TEMPFAIL


@pytest.fixture
def project(tmp_path: Path, empty_database: Path) -> Path:
    """Make a project whose trainings have workers."""
    return short_project.make(tmp_path / "project", empty_database, workers=("0", "2"))


@pytest.fixture
def pipeline(project: Path) -> Path:
    """Make it a DVC project with the training as the only stage."""
    dvc_project(project)
    command = f"{sys.executable} -m pd_core teacher {NAME}"
    stage = {"cmd": command, "outs": [TEACHER]}
    (project / "dvc.yaml").write_text(json.dumps({"stages": {"teacher": stage}}))
    return project


def terminate(project: Path, kill: Callable[[int, int], None], *command: str) -> str:
    """Send SIGTERM to a training that has a checkpoint, and return its output."""
    short_project.run(project, "prepare", NAME)
    process = short_project.in_the_middle(project, *command)
    kill(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == TRY_AGAIN, output
    assert "stopped: interrupted at epoch " in output
    assert "Traceback" not in output
    assert not (project / TEACHER).exists()
    return output


def check_resumed(project: Path, *command: str) -> None:
    """Check that it resumes, and ends with the bytes of a run without interruption."""
    assert "continues from checkpoint" in short_project.run(project, *command)
    resumed = short_project.take_teacher(project)
    assert "continues" not in short_project.run(project, "teacher", NAME)
    assert short_project.take_teacher(project) == resumed


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_training_and_its_workers_save_and_end_and_resume_to_the_same_bytes(
    project: Path,
) -> None:
    output = terminate(project, os.killpg, "teacher", NAME)

    assert output.splitlines()[-1].startswith("stopped: interrupted at epoch ")
    check_resumed(project, "teacher", NAME)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["parent only", "all"])
def test_so_do_the_stages_of_a_pipeline_whoever_gets_the_signal(
    pipeline: Path, kill: Callable[[int, int], None]
) -> None:
    terminate(pipeline, kill, "repro")

    check_resumed(pipeline, "repro")


def test_another_stage_ends_at_once_and_leaves_nothing_behind(project: Path) -> None:
    process = short_project.start(project, "prepare", NAME)
    folder = project / "data" / "prepare"
    while not list(folder.glob(".*/new")):  # what is made before is left to the next run
        assert process.poll() is None
        time.sleep(0.001)

    process.terminate()
    output = process.communicate(timeout=60)[0]

    assert process.returncode == TRY_AGAIN
    assert output == "stopped: terminated by SIGTERM; start the same command again to resume\n"
    assert list(folder.iterdir()) == []


IMPORTING = """
import signal
import threading
from contextlib import suppress
from random import Random

from pd_core.core.errors import Interrupted
from pd_core.pipeline import processes

def search():
    with suppress(ImportError):
        import no_such_module

processes.end_at_once()
signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGTERM))  # the timer's signal
draw = Random(1)
for _ in range(400):
    with suppress(Interrupted):
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(2e-4, 1e-3))
        while True:
            search()
    other = threading.Thread(target=search, daemon=True)
    other.start()
    other.join(20)
    assert not other.is_alive()
"""


def test_a_signal_during_an_import_does_not_block_the_imports_of_other_threads() -> None:
    subprocess.run([sys.executable, "-c", IMPORTING], cwd=short_project.ROOT, check=True)
