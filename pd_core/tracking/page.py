"""Where a person looks at what was recorded."""

from __future__ import annotations

from pd_core.errors import PdError
from pd_core.masking import masked, without_login
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

    Raises:
        PdError: the server does not say.
    """
    mlflow = client(store)
    from mlflow.exceptions import MlflowException

    level = {LEVEL: "dataset", "dataset": dataset} if dataset else {LEVEL: "benchmark"}
    root = without_login(store).rstrip("/")
    try:
        found = mlflow.get_experiment_by_name(experiment)
        if found is None:
            return f"{root}/#/experiments"
        runs = search(mlflow, found.experiment_id, {"git_commit": commit, **level})
    except MlflowException as error:  # its text repeats what the server answered
        raise PdError(
            f"MLflow at '{masked(store)}' refuses a search ({error.error_code}); see that the "
            "address and its login are right"
        ) from None
    page = f"{root}/#/experiments/{found.experiment_id}"
    return f"{page}/runs/{runs[0].info.run_id}" if runs else page
