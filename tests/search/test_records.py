"""Trials as experiments of DVC: rows of `dvc exp show` that `dvc exp apply` takes over."""

import csv
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from git_repository import commit, git

from pd_core.pipeline import experiment
from pd_core.pipeline.experiment import Row

PARAMS = "datasets:\n  flowers:\n    lr: 0.1   # of the paper\n"
METRICS = {"data/search/dvc.yaml": "metrics:\n- metrics.json\n"}
ROWS = [
    Row(
        f"tune-flowers-{number}",
        {
            "params.yaml": PARAMS.replace("0.1 ", f"0.{number} "),
            "data/search/metrics.json": f'{{"objective": 7{number}.5}}',
            **METRICS,
        },
        1_700_000_000 + number,
    )
    for number in (2, 3)
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A DVC project whose folder of searches git ignores."""
    folder = tmp_path / "project"
    (folder / "data" / "search").mkdir(parents=True)
    git(folder, "init", "--quiet")
    dvc(folder, "init", "--quiet")
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "dvc.yaml").write_text("stages: {a: {cmd: ls, params: [datasets]}}\n")
    (folder / "data" / "search" / ".gitignore").write_text("*\n")
    commit(folder)
    return folder


def dvc(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.ci
def test_trials_are_rows_of_dvc_and_can_be_applied(project: Path) -> None:
    experiment.record(project, ROWS)
    table = csv.DictReader(StringIO(dvc(project, "exp", "show", "--csv")))
    shown = {
        row["Experiment"]: (row["objective"], row["datasets.flowers.lr"])
        for row in table
        if row["Experiment"].startswith("tune")
    }
    dvc(project, "exp", "apply", "tune-flowers-3")

    assert shown == {"tune-flowers-2": ("72.5", "0.2"), "tune-flowers-3": ("73.5", "0.3")}
    assert (project / "params.yaml").read_text() == PARAMS.replace("0.1 ", "0.3 ")
    assert git(project, "status", "--porcelain").strip() == "M params.yaml"


def test_recorded_experiments_are_found_again(project: Path) -> None:
    assert experiment.recorded(project) == set()
    experiment.record(project, ROWS)
    experiment.record(project, ROWS[:1])

    assert experiment.recorded(project) == {"tune-flowers-2", "tune-flowers-3"}
    assert git(project, "status", "--porcelain").strip() == ""


def test_a_folder_without_git_has_none(tmp_path: Path) -> None:
    experiment.record(tmp_path, ROWS)

    assert experiment.recorded(tmp_path) == set()
