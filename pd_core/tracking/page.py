"""Where a person looks at what was recorded."""

from __future__ import annotations

from pd_core.masking import without_login
from pd_core.tracking.nesting import LEVEL
from pd_core.tracking.store import client, search


def page_of(store: str, experiment: str, commit: str, dataset: str = "") -> str:
    """Return the address of the page on which MLflow shows what a commit gave.

    Args:
        store: a tracking server.
        experiment: its name.
        commit: of the project.
        dataset: whose run is shown; that of the whole benchmark by default.

    Returns:
        The run's page; the experiment's if there is no such run, as after all was taken from a
        cache.
    """
    root = without_login(store).rstrip("/")
    mlflow = client(store)
    found = mlflow.get_experiment_by_name(experiment)
    if found is None:
        return f"{root}/#/experiments"
    page = f"{root}/#/experiments/{found.experiment_id}"
    level = {LEVEL: "dataset", "dataset": dataset} if dataset else {LEVEL: "benchmark"}
    runs = search(mlflow, found.experiment_id, {"git_commit": commit, **level})
    return f"{page}/runs/{runs[0].info.run_id}" if runs else page
