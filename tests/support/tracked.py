"""Stages that are recorded in a local store, and their runs."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pd_core.mlops import tracking
from pd_core.mlops.tracking import recorder

EXPERIMENT = "promptkd-quickstart"
PARENT = "mlflow.parentRunId"
COMMIT = "mlflow.source.git.commit"


@pytest.fixture
def store(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a database without runs, in the current folder."""
    shutil.copyfile(empty_database, tmp_path / tracking.DATABASE)
    monkeypatch.chdir(tmp_path)
    return tracking.open_store(tmp_path)


def stage(store: str | None, name: str = "teacher", dataset: str = "greek", **changes: Any) -> Any:
    """Record a block as a stage's run."""
    usual: dict[str, Any] = {
        "profile": "quickstart", "params": {}, "deps": [], "outs": [], "seed": 1,
        "protocol": "base_to_novel",
    }  # fmt: skip
    info = recorder.StageInfo(dataset=dataset, stage=name, **{**usual, **changes})
    return recorder.stage_run(store, info)


def load_model(store: str, uri: str) -> Any:
    """Load a model as a user of MLflow does."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store)
    try:
        return mlflow.pyfunc.load_model(uri)
    finally:
        mlflow.set_tracking_uri(before)


def runs(store: str, experiment: str = EXPERIMENT, **tags: str) -> list[Any]:
    """Return the runs with the given tags (by default those of stages), the earliest first."""
    client = tracking.client(store)
    match = client.get_experiment_by_name(experiment)
    if match is None:
        return []
    tags = tags or {"level": "stage"}
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    order = ["attributes.start_time"]
    return list(client.search_runs([match.experiment_id], query, order_by=order))


def ran(store: str, name: str = "teacher", dataset: str = "greek", **changes: Any) -> str:
    """Record a stage that does nothing; return its run's id."""
    with stage(store, name, dataset, **changes) as run:
        pass
    return str(run.run_id)
