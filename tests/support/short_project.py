"""A project of one data set with short trainings, and its stages as processes."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = "embedded_digits"
CHECKPOINTS = f"data/checkpoints/teacher/{NAME}"
TEACHER = f"data/teacher/{NAME}"


def make(folder: Path, database: Path, **changes: tuple[str, str]) -> Path:
    """Write the shipped profile with two epochs, a checkpoint every few steps, and some changes.

    Args:
        folder: to make.
        database: empty tracking database.
        changes: old and new values by key.
    """
    folder.mkdir()
    for name in ("pd_core", "fingerprints"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(database, folder / "mlflow.db")
    text = (ROOT / "params.yaml").read_text()
    short = {"epochs": ("10", "2"), "gpa_mean": ("8", "2"), "checkpoint_minutes": ("5", "0.002")}
    for key, (old, new) in {**short, **changes}.items():
        assert f"  {key}: {old} " in text
        text = text.replace(f"  {key}: {old} ", f"  {key}: {new} ")
    (folder / "params.yaml").write_text(text)
    return folder


def start(project: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pd_core", *arguments], cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def run(project: Path, *arguments: str) -> str:
    """Run a command to its end, and return its output."""
    process = start(project, *arguments)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def in_the_middle(project: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a command that trains the teacher, and wait for its first checkpoint."""
    process = start(project, *arguments)
    while not list(project.glob(f"{CHECKPOINTS}/*.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    return process


def take_teacher(project: Path) -> dict[str, bytes]:
    """Read the output of the stage `teacher`, and remove it."""
    assert not (project / CHECKPOINTS).exists()
    content = {path.name: path.read_bytes() for path in (project / TEACHER).iterdir()}
    shutil.rmtree(project / TEACHER)
    return content
