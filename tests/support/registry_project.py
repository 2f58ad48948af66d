"""A project whose store has registered versions."""

from pathlib import Path

import pytest
import registered
from ruamel.yaml import YAML

from pd_core.mlops import tracking

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a project whose `params.yaml` has the data set, and which has an empty store."""
    folder = registered.make_project(tmp_path / "project")
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    own = {"labelled": "tiny/labelled"}
    params["datasets"]["tiny"] = {"prepare": {"own": own}, "teacher": {}, "student": {}}
    params["student"]["weights"] = str(ROOT / params["student"]["weights"])
    yaml.dump(params, folder / "params.yaml")
    with (folder / ".gitignore").open("a") as file:
        file.write("/mlflow.db*\n/mlruns/\n")
    registered.commit(folder)
    (folder / tracking.DATABASE).write_bytes(empty_database.read_bytes())
    monkeypatch.chdir(folder)
    for variable in ("PD_DATA_ROOT", "PD_MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return folder


@pytest.fixture
def store(project: Path) -> str:
    return tracking.open_store(project)
