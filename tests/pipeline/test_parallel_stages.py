"""A stage in two processes: it ends as one does, on SIGTERM, after kill -9 and with an error."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import tiny

ROOT = Path(__file__).parents[2]
NAME = "embedded_digits"
CHANGES = (
    ("processes", "1", "2"),
    ("epochs", "10", "2"),
    ("gpa_mean", "8", "2"),
    ("checkpoint_minutes", "5", "0.002"),
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """Return a project with short trainings in two processes, and its prepared data set."""
    folder = tmp_path_factory.mktemp("parallel") / "project"
    folder.mkdir()
    for name in ("pd_core", "fingerprints"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(empty_database, folder / "mlflow.db")
    text = (ROOT / "params.yaml").read_text()
    for key, old, new in CHANGES:
        assert f"  {key}: {old} " in text
        text = text.replace(f"  {key}: {old} ", f"  {key}: {new} ")
    (folder / "params.yaml").write_text(text)
    finished(folder, "prepare")
    return folder


@pytest.fixture(scope="module")
def undisturbed(prepared: Path) -> dict[str, bytes]:
    """Return what a teacher's files hold when nobody disturbs the two."""
    said = finished(prepared)
    assert "continues" not in said
    assert runs(prepared) == 1
    return taken(prepared)


@pytest.fixture
def project(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "project", symlinks=True)


def started(project: Path, stage: str = "teacher") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pd_core", stage, NAME], cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def finished(project: Path, stage: str = "teacher") -> str:
    process = started(project, stage)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    return said


def in_the_middle(project: Path) -> subprocess.Popen[str]:
    process = started(project)
    while not list(project.glob(f"data/checkpoints/teacher/{NAME}/*.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    return process


def taken(project: Path) -> dict[str, bytes]:
    """Read what the stage wrote, and take it away."""
    out = project / "data" / "teacher" / NAME
    assert not (project / "data" / "checkpoints" / "teacher" / NAME).exists()
    content = {path.name: path.read_bytes() for path in out.iterdir()}
    shutil.rmtree(out)
    return content


def runs(project: Path) -> int:
    """Count MLflow's runs of the stage."""
    with closing(sqlite3.connect(project / "mlflow.db")) as database:
        return int(
            database.execute(
                "select count(*) from runs where name = ?", (f"teacher@{NAME}",)
            ).fetchone()[0]
        )


def members(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    found = psutil.Process(process.pid).children()
    return {int(one.environ()["RANK"]): one for one in found}


def test_told_to_end_they_save_and_go_on_to_the_same_bytes(
    project: Path, undisturbed: dict[str, bytes]
) -> None:
    process = in_the_middle(project)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 75, said
    assert said.count("stopped: told to end at epoch ") == 1
    assert "Traceback" not in said
    assert not (project / "data" / "teacher" / NAME).exists()

    assert finished(project).count("continues from checkpoint") == 1
    assert taken(project) == undisturbed


@pytest.mark.parametrize("number", [0, 1])
def test_when_one_is_killed_the_other_ends_and_both_go_on_to_the_same_bytes(
    project: Path, undisturbed: dict[str, bytes], number: int
) -> None:
    process = in_the_middle(project)
    crew = members(process)
    crew[number].kill()
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2, said
    assert said.splitlines()[-1].startswith(f"error: process {number} of 2 was ended by SIGKILL; ")
    assert "Traceback" not in said
    assert not any(one.is_running() for one in crew.values())

    assert "continues from checkpoint" in finished(project)
    assert taken(project) == undisturbed


def test_when_their_parent_is_killed_they_end(project: Path) -> None:
    process = in_the_middle(project)
    crew = members(process)
    process.kill()
    process.communicate(timeout=60)
    assert psutil.wait_procs(crew.values(), timeout=20)[1] == []


def test_a_picture_that_one_of_them_cannot_read_is_named_in_one_line(project: Path) -> None:
    archive = project / "data" / "prepare" / NAME / "images.zip"
    tiny.cut_short(archive)
    process = started(project)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 2, said
    assert len(said.splitlines()) == 1, said
    assert said.startswith("error: ")
    assert "not a readable image" in said
    assert not list(project.glob("data/teacher/*"))
