"""Finding runs again: by id, by what they read and wrote, and those below another one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pd_core.tracking.earlier import REPLACED_BY
from pd_core.tracking.nesting import PARENT
from pd_core.tracking.store import search

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def find(mlflow: MlflowClient, run_id: str) -> Run | None:
    """Return the run of an id; None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def below(mlflow: MlflowClient, run: Run) -> list[Run]:
    """Return the stages' runs below a benchmark's or data set's, those not replaced by later ones.

    The earliest comes first. A stage's run has none below it.
    """
    children = search(mlflow, run.info.experiment_id, {PARENT: run.info.run_id})
    stages = [child for child in children if "stage" in child.data.tags]
    further = [one for child in children if child not in stages for one in below(mlflow, child)]
    current = [stage for stage in stages if REPLACED_BY not in stage.data.tags]
    return sorted([*current, *further], key=lambda one: one.info.start_time)


def makers(mlflow: MlflowClient, run: Run) -> list[Run]:
    """Return the runs that made what a run read, near and far, by the hashes in their tags.

    What DVC took from its cache was made by no run of this commit, maybe by none that is recorded.
    """
    found: dict[str, Run] = {}
    queue = [run]
    while queue:
        one = queue.pop()
        for maker in _direct_makers(mlflow, one):
            if maker.info.run_id not in found:
                found[maker.info.run_id] = maker
                queue.append(maker)
    return list(found.values())


def _direct_makers(mlflow: MlflowClient, run: Run) -> list[Run]:
    read = {key: value for key, value in run.data.tags.items() if key.startswith("dep:data/")}
    found = []
    for key, digest in read.items():
        out = "out:" + key.removeprefix("dep:")
        made = search(mlflow, run.info.experiment_id, {out: digest, "stage": Path(key).parts[1]})
        if made:
            found.append(max(made, key=lambda one: one.info.start_time))
    return found
