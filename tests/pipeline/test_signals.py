"""SIGTERM: a training saves its state and says so; what else is going on clears up and ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "embedded_digits"
TRY_AGAIN = 75  # EX_TEMPFAIL


@pytest.fixture
def project(tmp_path: Path, empty_database: Path) -> Path:
    """The shipped profile with short trainings, workers, and checkpoints every few steps."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("pd_core", "fingerprints"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(empty_database, folder / "mlflow.db")
    text = (ROOT / "params.yaml").read_text()
    for key, old, new in (
        ("epochs", "10", "2"),
        ("gpa_mean", "8", "2"),
        ("workers", "0", "2"),
        ("checkpoint_minutes", "5", "0.002"),
    ):
        assert f"  {key}: {old} " in text
        text = text.replace(f"  {key}: {old} ", f"  {key}: {new} ")
    (folder / "params.yaml").write_text(text)
    return folder


def started(project: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pd_core", *arguments], cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def finished(project: Path, *arguments: str) -> str:
    process = started(project, *arguments)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 0, said
    return said


@pytest.fixture
def pipeline(project: Path) -> Path:
    """The same as a DVC project, with its training as the only stage."""
    (project / ".dvc" / "tmp").mkdir(parents=True)
    (project / ".dvc" / "config").write_text("[core]\n    no_scm = True\n")
    command = f"{sys.executable} -m pd_core teacher {NAME}"
    stage = {"cmd": command, "outs": [f"data/teacher/{NAME}"]}
    (project / "dvc.yaml").write_text(json.dumps({"stages": {"teacher": stage}}))
    return project


def told_in_the_middle(project: Path, tell: Callable[[int, int], None], *command: str) -> str:
    """Start a training, tell it to end when it has a checkpoint, and return what it said."""
    finished(project, "prepare", NAME)
    process = started(project, *command)
    while not list(project.glob(f"data/checkpoints/teacher/{NAME}/*.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    tell(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == TRY_AGAIN, said
    assert "stopped: told to end at epoch " in said
    assert "Traceback" not in said
    assert not (project / "data" / "teacher" / NAME).exists()
    return said


def check_resumed(project: Path, *command: str) -> None:
    """Start it again: it goes on, and ends with the bytes of a run that nobody disturbed."""
    out = project / "data" / "teacher" / NAME
    assert "continues from checkpoint" in finished(project, *command)
    resumed = {path.name: path.read_bytes() for path in out.iterdir()}
    assert not (project / "data" / "checkpoints" / "teacher" / NAME).exists()

    shutil.rmtree(out)
    assert "continues" not in finished(project, "teacher", NAME)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == resumed


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_training_and_its_workers_save_and_end_and_go_on_to_the_same_bytes(
    project: Path,
) -> None:
    said = told_in_the_middle(project, os.killpg, "teacher", NAME)

    assert said.splitlines()[-1].startswith("stopped: told to end at epoch ")
    check_resumed(project, "teacher", NAME)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("tell", [os.kill, os.killpg], ids=["parent only", "all"])
def test_so_do_the_stages_of_a_pipeline_whoever_is_told(
    pipeline: Path, tell: Callable[[int, int], None]
) -> None:
    told_in_the_middle(pipeline, tell, "repro")

    check_resumed(pipeline, "repro")


def test_another_stage_ends_at_once_and_leaves_nothing_behind(project: Path) -> None:
    process = started(project, "prepare", NAME)
    folder = project / "data" / "prepare"
    while not list(folder.glob(".*/new")):  # what is made before is left to the next run
        assert process.poll() is None
        time.sleep(0.001)

    process.terminate()
    said = process.communicate(timeout=60)[0]

    assert process.returncode == TRY_AGAIN
    assert said == "stopped: told to end; start the same command again\n"
    assert list(folder.iterdir()) == []
