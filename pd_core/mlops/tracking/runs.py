"""Runs in MLflow: parents, earlier runs of a stage, lookup by id, inputs and outputs, links.

In all functions `mlflow` is the client, `experiment` an id, `stage` the tags of a stage's run.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from pd_core.core.errors import PdError
from pd_core.mlops.tracking.store import BUSY, client, milliseconds, search
from pd_core.pipeline.redaction import masked, without_login

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

REPLACES = "replaces"
REPLACED_BY = "replaced_by"
LEVEL = "level"  # benchmark, dataset or stage
PARENT = "mlflow.parentRunId"

Above = tuple[str, ...]
"""Ids of the runs above a stage's: its data set's, unless it is over all, and the benchmark's."""

_COMMIT = "mlflow.source.git.commit"
_WORST_FIRST = ("FAILED", "KILLED", "FINISHED")
_CLOCKS_DIFFER = 5.0  # seconds, between the start of a process by the kernel's clock and by ours


def replace(mlflow: MlflowClient, experiment: str, run_id: str, stage: Mapping[str, str]) -> None:
    """Link a new run and the earlier ones of the same stage in their tags.

    Those whose process was killed are noted as killed; those that still run are left alone.
    """
    key = {name: stage[name] for name in ("stage", "dataset")}
    before = [
        run
        for run in search(mlflow, experiment, key)
        if run.info.run_id != run_id and REPLACED_BY not in run.data.tags and ended(mlflow, run)
    ]
    if before:
        latest = max(before, key=lambda run: run.info.start_time)
        mlflow.set_tag(run_id, REPLACES, latest.info.run_id)
    for run in before:
        mlflow.set_tag(run.info.run_id, REPLACED_BY, run_id)


def ended(mlflow: MlflowClient, run: Run) -> bool:
    """Whether a stage's run has ended; one whose process is gone is marked as killed."""
    if run.info.status != "RUNNING":
        return True
    if _may_live(run):
        return False
    samples = mlflow.get_metric_history(run.info.run_id, BUSY)
    last = max((sample.timestamp for sample in samples), default=milliseconds())
    mlflow.set_terminated(run.info.run_id, "KILLED", last)
    return True


def _may_live(run: Run) -> bool:
    """Whether the process of a run may still be there; that of another machine always may."""
    tags = run.data.tags
    if tags.get("host") != socket.gethostname():
        return True
    try:
        process = psutil.Process(int(tags["pid"]))
        # A younger process was given the number of one that ended.
        is_younger = process.create_time() > run.info.start_time / 1000 + _CLOCKS_DIFFER
        return not is_younger and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def find_or_make(mlflow: MlflowClient, experiment: str, stage: Mapping[str, str]) -> Above:
    """Return the runs above a stage's, made if they are not there."""
    commit = stage["git_commit"]
    key = {"profile": stage["profile"], "git_commit": commit}
    shown = {_COMMIT: stage[_COMMIT]} if _COMMIT in stage else {}
    name = f"benchmark@{commit[:7]}" if shown else "benchmark"
    benchmark = _only_one(mlflow, experiment, name, {**key, LEVEL: "benchmark"}, shown)
    if not (dataset := stage["dataset"]):
        return (benchmark,)
    key = {**key, LEVEL: "dataset", "dataset": dataset}
    found = _only_one(mlflow, experiment, dataset, key, {**shown, PARENT: benchmark})
    return (found, benchmark)


def reopen(mlflow: MlflowClient, above: Above) -> None:
    """Mark the runs above a stage's as running, as it is itself."""
    for run in above:
        if mlflow.get_run(run).info.status != "RUNNING":
            mlflow.update_run(run, "RUNNING")


def settle(mlflow: MlflowClient, experiment: str, above: Above) -> None:
    """End the runs above a stage's that has ended, unless others below them still run.

    They end as the worst of those below that have not been replaced.
    """
    for parent in above:
        below = search(mlflow, experiment, {PARENT: parent})
        statuses = [_status(mlflow, run) for run in below if REPLACED_BY not in run.data.tags]
        if "RUNNING" not in statuses:
            worst = next((status for status in _WORST_FIRST if status in statuses), "FINISHED")
            mlflow.set_terminated(parent, worst, milliseconds())


def summarise(mlflow: MlflowClient, above: Above, headline: Mapping[str, float]) -> None:
    """Copy a stage's headline to the run above it, so that those can be compared."""
    from mlflow.entities import Metric

    if headline:
        now = milliseconds()
        metrics = [Metric(name, value, now, 0) for name, value in headline.items()]
        mlflow.log_batch(above[0], metrics=metrics)


def _status(mlflow: MlflowClient, run: Run) -> str:
    level = run.data.tags.get(LEVEL)
    if level == "stage" and ended(mlflow, run):
        return str(mlflow.get_run(run.info.run_id).info.status)
    return str(run.info.status)


def _only_one(
    mlflow: MlflowClient,
    experiment: str,
    name: str,
    key: Mapping[str, str],
    more: Mapping[str, str],
) -> str:
    """Return the id of the run with the tags `key`, made if there is none."""
    found = search(mlflow, experiment, key)
    if not found:
        mlflow.create_run(experiment, run_name=name, tags={**key, **more})
        found = search(mlflow, experiment, key)  # another process may have made one as well
    first, *others = sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))
    kept = str(first.info.run_id)
    for other in others:
        _merge(mlflow, experiment, str(other.info.run_id), kept)
    if PARENT in more and first.data.tags.get(PARENT) != more[PARENT]:
        with _another_at_it():  # that deletes this one; the stage's end finds what stays
            mlflow.set_tag(kept, PARENT, more[PARENT])
    return kept


def _another_at_it() -> suppress:
    """Ignore that another process has made the same change at the same time."""
    from mlflow.exceptions import MlflowException

    return suppress(MlflowException)


def _merge(mlflow: MlflowClient, experiment: str, other: str, kept: str) -> None:
    """Delete a run that was made at the same time as `kept`; what is below it moves."""
    with _another_at_it():
        for run in search(mlflow, experiment, {PARENT: other}):
            mlflow.set_tag(run.info.run_id, PARENT, kept)
        mlflow.delete_run(other)


def find(mlflow: MlflowClient, run_id: str) -> Run | None:
    """Return the run with an id; None if there is none."""
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
    """Return the runs that made what a run read, directly or not, by the hashes in their tags.

    Outputs from DVC's cache were made by no run of this commit, maybe by none that is recorded.
    """
    found: dict[str, Run] = {}
    queue = [run]
    while queue:
        for maker in _direct_makers(mlflow, queue.pop()):
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


def page_of(store: str, experiment: str, commit: str, dataset: str = "") -> str:
    """Return the URL of a commit's benchmark, or of one data set's run, on a tracking server.

    It is the experiment's page if there is no such run, as after all was taken from a cache.

    Raises:
        PdError: the server refuses a search.
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
