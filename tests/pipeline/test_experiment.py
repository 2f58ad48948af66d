"""Experiments in DVC's temporary copies: settings, images and the store are the project's."""

from pathlib import Path

import pytest
from git_repository import git

from pd_core.mlops import tracking
from pd_core.pipeline import experiment
from pd_core.pipeline.settings import load_settings


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder `paper` of a temporary copy, in which a stage of an experiment runs."""
    project = tmp_path / "clone" / "paper"
    folder = project / ".dvc" / "tmp" / "exps" / "standalone" / "tmpabc" / "paper"
    folder.mkdir(parents=True)
    git(tmp_path / "clone", "init", "--quiet")
    git(folder.parent, "init", "--quiet")
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.setenv("DVC_EXP_NAME", "warm-lr")
    for variable in ("PD_DATA_ROOT", "PD_MLFLOW_TRACKING_URI", "PD_MLFLOW_EXPERIMENT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(folder)
    return folder


def test_a_folder_of_a_copy_is_that_of_the_project(copy: Path, tmp_path: Path) -> None:
    assert experiment.origin(Path()) == tmp_path / "clone" / "paper"
    assert experiment.origin(Path("..")) == tmp_path / "clone"
    assert experiment.origin(copy / "data" / "raw") == tmp_path / "clone" / "paper" / "data" / "raw"


def test_folders_elsewhere_stay_as_they_are(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert copy.is_dir()
    assert experiment.origin(tmp_path) == tmp_path
    monkeypatch.delenv("DVC_ROOT")
    assert experiment.origin(Path()) == Path()


def test_settings_are_those_of_the_project(copy: Path, tmp_path: Path) -> None:
    assert copy.is_dir()
    (tmp_path / "clone" / "paper" / ".env").write_text("PD_MLFLOW_EXPERIMENT=sweep\n")
    (tmp_path / "clone" / "paper" / ".dvc").mkdir(exist_ok=True)
    assert load_settings().mlflow_experiment == "sweep"


def test_the_store_is_that_of_the_project(copy: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    assert tracking.open_store(Path("..")) == f"sqlite:///{clone / 'mlflow.db'}"
    given = tracking.open_store(Path(".."), "sqlite:///other.db")
    assert given == f"sqlite:///{clone / 'paper' / 'other.db'}"
    assert not (copy / "other.db").exists()


def test_images_and_weights_are_linked(copy: Path, tmp_path: Path) -> None:
    raw = tmp_path / "clone" / "data" / "raw"
    (raw / "weights").mkdir(parents=True)
    (raw / "weights" / "a.pt").write_text("weights")
    for _ in range(2):
        experiment.link_ignored(Path("..") / "data" / "raw")
    assert (copy.parent / "data" / "raw" / "weights" / "a.pt").read_text() == "weights"
    experiment.link_ignored(raw)
    assert not (raw / "weights").is_symlink()
