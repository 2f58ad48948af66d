"""The runs above a stage's: its data set's, and above that the benchmark's.

The benchmark's run gathers what one commit of the project gave: a commit is what its stages have in
common, whichever processes and machines they run on. Runs above are known by their tags. MLflow
has no way to make one only if there is none, so whoever finds two keeps the earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pd_core.tracking import earlier
from pd_core.tracking.record import milliseconds
from pd_core.tracking.store import search

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LEVEL = "level"  # benchmark, dataset or stage
PARENT = "mlflow.parentRunId"
_COMMIT = "mlflow.source.git.commit"
_WORST_FIRST = ("FAILED", "KILLED", "FINISHED")


@dataclass(frozen=True)
class Above:
    """The ids of the runs above a stage's; without a data set for a stage over all of them."""

    benchmark: str
    dataset: str | None = None

    @property
    def nearest(self) -> str:
        """The run that the stage's is directly below."""
        return self.dataset or self.benchmark

    @property
    def upwards(self) -> tuple[str, ...]:
        """All of them, from the stage's run upwards."""
        return (self.benchmark,) if self.dataset is None else (self.dataset, self.benchmark)


def find_or_make(mlflow: MlflowClient, experiment: str, stage: Mapping[str, str]) -> Above:
    """Return the runs above a stage's.

    Args:
        mlflow: the client.
        experiment: its id.
        stage: tags of the stage's run: profile, dataset, git_commit.
    """
    commit = stage["git_commit"]
    key = {"profile": stage["profile"], "git_commit": commit}
    shown = {_COMMIT: stage[_COMMIT]} if _COMMIT in stage else {}
    name = f"benchmark@{commit[:7]}" if shown else "benchmark"
    benchmark = _only_one(mlflow, experiment, name, {**key, LEVEL: "benchmark"}, shown)
    if not (dataset := stage["dataset"]):
        return Above(benchmark)
    key = {**key, LEVEL: "dataset", "dataset": dataset}
    found = _only_one(mlflow, experiment, dataset, key, {**shown, PARENT: benchmark})
    return Above(benchmark, found)


def reopen(mlflow: MlflowClient, above: Above) -> None:
    """Show the runs above a stage's as running, as it is itself."""
    for run in above.upwards:
        if mlflow.get_run(run).info.status != "RUNNING":
            mlflow.update_run(run, "RUNNING")


def settle(mlflow: MlflowClient, experiment: str, above: Above) -> None:
    """End the runs above a stage's that has ended, unless others below them still run.

    They end as the worst of those below that have not been replaced.
    """
    for parent in above.upwards:
        below = search(mlflow, experiment, {PARENT: parent})
        statuses = [
            _status(mlflow, run) for run in below if earlier.REPLACED_BY not in run.data.tags
        ]
        if "RUNNING" not in statuses:
            worst = next((status for status in _WORST_FIRST if status in statuses), "FINISHED")
            mlflow.set_terminated(parent, worst, milliseconds())


def summarise(mlflow: MlflowClient, above: Above, headline: Mapping[str, float]) -> None:
    """Show how a stage ended on the run above it, so that those can be compared."""
    from mlflow.entities import Metric

    if headline:
        now = milliseconds()
        metrics = [Metric(name, value, now, 0) for name, value in headline.items()]
        mlflow.log_batch(above.nearest, metrics=metrics)


def _status(mlflow: MlflowClient, run: Run) -> str:
    level = run.data.tags.get(LEVEL)
    if level == "stage" and earlier.ended(mlflow, run):
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
        with (
            _another_at_it()
        ):  # that deletes this one; the look at the stage's end finds what stays
            mlflow.set_tag(kept, PARENT, more[PARENT])
    return kept


def _another_at_it() -> suppress:
    """Let a change pass that another process has made at the same time."""
    from mlflow.exceptions import MlflowException

    return suppress(MlflowException)


def _merge(mlflow: MlflowClient, experiment: str, other: str, kept: str) -> None:
    """Delete a run that was made at the same time as `kept`; what is below it moves."""
    with _another_at_it():
        for run in search(mlflow, experiment, {PARENT: other}):
            mlflow.set_tag(run.info.run_id, PARENT, kept)
        mlflow.delete_run(other)
