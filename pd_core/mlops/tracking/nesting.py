"""Runs of data sets and benchmarks, above those of stages."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from pd_core.mlops.tracking import (
    COMMIT,
    EXPERIMENT,
    LEVEL,
    PARENT,
    REPLACED_BY,
    milliseconds,
    search,
)
from pd_core.pipeline import provenance

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PROCESS = "process"
"""Tag with a process: its machine, number and start, see `this_process`."""

_SAMPLED = "system/cpu_utilization_percentage"
_WORST_FIRST = ("FAILED", "KILLED", "FINISHED")


@dataclass
class Nesting:
    """Runs above a stage's: its data set's, unless it is over all, and the benchmark's.

    Attributes:
        mlflow: the client.
        experiment: its id.
        dataset: the stage's; "" for a stage over all of them.
        commit: of the code; each has a benchmark of its own.
        dvc_experiment: name of DVC's experiment, which has runs of its own above it; "" for none.
        above: ids of the runs, the nearest first, once they are found.
        created: ids of those that this process has created.
    """

    mlflow: MlflowClient
    experiment: str
    dataset: str
    commit: str
    dvc_experiment: str = ""
    above: tuple[str, ...] = ()
    created: list[str] = field(default_factory=list)

    def find_or_create(self) -> None:
        """Find the runs above, or create those that do not exist."""
        key, name = {COMMIT: self.commit}, "benchmark"
        if self.commit != provenance.NO_COMMIT:
            name += f"@{self.commit[:7]}"
        name = self.dvc_experiment or name
        benchmark = self._only_run(name, {**key, LEVEL: "benchmark"})
        self.above = (benchmark,)
        if self.dataset:
            key |= {LEVEL: "dataset", "dataset": self.dataset}
            self.above = (self._only_run(self.dataset, key, benchmark), benchmark)

    def reopen(self) -> None:
        """Mark the runs above as running, as the stage's is."""
        for run_id in self.above:
            if self.mlflow.get_run(run_id).info.status != "RUNNING":
                self.mlflow.update_run(run_id, "RUNNING")

    def replace(self, run_id: str, stage: str) -> None:
        """Link a new run and the earlier ones of the same stage in their tags.

        Those whose process was killed are marked as killed; those that still run are left alone.
        """
        before = [
            run
            for run in self._search({"stage": stage, "dataset": self.dataset})
            if run.info.run_id != run_id
            and REPLACED_BY not in run.data.tags
            and self._status(run) != "RUNNING"
        ]
        if before:
            latest = max(before, key=lambda run: run.info.start_time)
            self.mlflow.set_tag(run_id, "replaces", latest.info.run_id)
        for run in before:
            self.mlflow.set_tag(run.info.run_id, REPLACED_BY, run_id)

    def settle(self) -> None:
        """End the runs above, unless others below them still run.

        They end as the worst of those below that have not been replaced.
        """
        for parent in self.above:
            runs = search(self.mlflow, self.experiment, {PARENT: parent})
            statuses = [self._status(run) for run in runs if REPLACED_BY not in run.data.tags]
            if "RUNNING" not in statuses:
                worst = next((status for status in _WORST_FIRST if status in statuses), "FINISHED")
                self.mlflow.set_terminated(parent, worst, milliseconds())

    def summarise(self, headline: Mapping[str, float]) -> None:
        """Copy a stage's final metrics to the run above it, so that those can be compared."""
        from mlflow.entities import Metric

        if headline:
            now = milliseconds()
            metrics = [Metric(name, value, now, 0) for name, value in headline.items()]
            self.mlflow.log_batch(self.above[0], metrics=metrics)

    def _search(self, tags: Mapping[str, str]) -> list[Run]:
        """Return the runs with the given tags and the same experiment of DVC, if any."""
        runs = search(self.mlflow, self.experiment, tags)
        return [run for run in runs if run.data.tags.get(EXPERIMENT, "") == self.dvc_experiment]

    def _status(self, run: Run) -> str:
        """Return a run's status; a stage's whose process is gone is marked as killed first."""
        if run.info.status != "RUNNING" or "stage" not in run.data.tags:
            return str(run.info.status)
        if is_running(run.data.tags.get(PROCESS, "")):
            return "RUNNING"
        samples = self.mlflow.get_metric_history(run.info.run_id, _SAMPLED)
        last = max((sample.timestamp for sample in samples), default=run.info.start_time)
        self.mlflow.set_terminated(run.info.run_id, "KILLED", last)
        return "KILLED"

    def _only_run(self, name: str, key: Mapping[str, str], parent: str = "") -> str:
        """Return the id of the run with the tags `key`, created if there is none.

        Of several, created at the same time, the earliest stays; each process deletes its own.
        """
        from mlflow.exceptions import MlflowException

        runs = self._search(key)
        if not runs:
            tags = {**key, **source_tags("promptkd", self.commit)}
            tags |= {EXPERIMENT: self.dvc_experiment} if self.dvc_experiment else {}
            tags |= {PARENT: parent} if parent else {}
            run = self.mlflow.create_run(self.experiment, run_name=name, tags=tags)
            self.created.append(str(run.info.run_id))
            runs = self._search(key)
        first, *others = sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))
        for run in others:
            if run.info.run_id in self.created:
                self.mlflow.delete_run(run.info.run_id)
        if parent and first.data.tags.get(PARENT) != parent:
            # Its process may have deleted it; the stage's end finds what stays.
            with suppress(MlflowException):
                self.mlflow.set_tag(first.info.run_id, PARENT, parent)
        return str(first.info.run_id)


def user_name() -> str:
    """Return the login name of the user; a container's may have a number only."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def source_tags(name: str, commit: str) -> dict[str, str]:
    """Return the tags that MLflow shows as user, source and commit of a run."""
    return {
        "mlflow.user": user_name(),
        "mlflow.source.name": name,
        "mlflow.source.type": "LOCAL",
        COMMIT: commit,
    }


def this_process() -> str:
    """Return this process's machine, number and start, as `is_running` takes them."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time()}"


def is_running(process: str) -> bool:
    """Return True if a process may still run; those of other machines always may."""
    host, _, rest = process.partition(" ")
    if host and host != socket.gethostname():
        return True
    try:
        number, start = rest.split()
        match = psutil.Process(int(number))
        # A younger process may have been given the number.
        same = abs(match.create_time() - float(start)) < 1
        return bool(same and match.status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, ValueError):
        return False
