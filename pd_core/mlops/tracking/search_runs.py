"""A search as one MLflow run, with a run below it for each trial that has ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pd_core.mlops.tracking import (
    LEVEL,
    PARENT,
    client,
    exclusive,
    experiment_id,
    milliseconds,
    search,
)
from pd_core.mlops.tracking.nesting import source_tags
from pd_core.pipeline.redaction import masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

SEARCH, TRIAL = "search", "trial"
"""Tags with the name of a search and the number of a trial; also values of the tag `level`."""

OBJECTIVE = "objective"


@dataclass(frozen=True)
class TrialRun:
    """A trial that has ended.

    Attributes:
        number: from 1.
        params: values of the searched parameters.
        curve: metrics of each epoch.
        rungs: the objective during the training, by rung.
        value: the objective at the end; None if the trial was pruned.
        cpu_seconds: that it took.
        started, ended: milliseconds since 1970.
        reason: why it has no model, if it has none.
    """

    number: int
    params: Mapping[str, object]
    curve: Sequence[Mapping[str, float]]
    rungs: Mapping[int, float]
    value: float | None
    cpu_seconds: float
    started: int
    ended: int
    reason: str


@dataclass(frozen=True)
class SearchRun:
    """Description of a search.

    Attributes:
        store: of `open_store`.
        experiment: name of the experiment, with the profile.
        name: of the search; the same search has one run.
        dataset: whose parameters are searched.
        stage: whose parameters are searched.
        objective: its description.
        commit: of the code.
    """

    store: str
    experiment: str
    name: str
    dataset: str
    stage: str
    objective: str
    commit: str

    def record(self, trials: Sequence[TrialRun]) -> None:
        """Create the runs of trials that have none yet; may be called again at any time.

        A run is complete as soon as it is ended; one left by a killed process is written anew.
        """
        mlflow = client(self.store)
        experiment = experiment_id(mlflow, self.store, self.experiment)
        with exclusive(self.store):
            parent = self._parent(mlflow, experiment)
            complete = set()
            for run in search(mlflow, experiment, {PARENT: parent}):
                if run.info.status == "RUNNING":
                    mlflow.delete_run(run.info.run_id)
                else:
                    complete.add(run.data.tags.get(TRIAL))
            for trial in trials:
                if str(trial.number) not in complete:
                    self._create(mlflow, experiment, parent, trial)
            self._summarise(mlflow, parent, trials)

    def _parent(self, mlflow: MlflowClient, experiment: str) -> str:
        """Return the id of the search's run, which is created if there is none."""
        found: list[Run] = search(mlflow, experiment, {LEVEL: SEARCH, SEARCH: self.name})
        if found:
            return str(found[0].info.run_id)
        tags = {LEVEL: SEARCH, SEARCH: self.name, OBJECTIVE: self.objective, **self._tags()}
        name = f"tune {self.stage}@{self.dataset}"
        return str(mlflow.create_run(experiment, run_name=name, tags=tags).info.run_id)

    def _tags(self) -> dict[str, str]:
        return {"dataset": self.dataset, **source_tags("promptkd tune", self.commit)}

    def _create(self, mlflow: MlflowClient, experiment: str, parent: str, trial: TrialRun) -> None:
        from mlflow.entities import Param

        run = mlflow.create_run(
            experiment,
            start_time=trial.started,
            run_name=f"trial {trial.number}",
            tags={LEVEL: TRIAL, TRIAL: str(trial.number), PARENT: parent, **self._tags()},
        )
        run_id = str(run.info.run_id)
        params = [
            Param(f"{self.stage}.{key}", masked(str(value))) for key, value in trial.params.items()
        ]
        mlflow.log_batch(run_id, params=params, metrics=[*_metrics(trial)])
        state = "pruned" if trial.value is None else "complete"
        mlflow.set_tag(run_id, "state", trial.reason or state)
        mlflow.set_terminated(run_id, "FINISHED", trial.ended)

    def _summarise(self, mlflow: MlflowClient, parent: str, trials: Sequence[TrialRun]) -> None:
        from mlflow.entities import Metric

        now = milliseconds()
        values = [trial.value for trial in trials if trial.value is not None]
        numbers = {"trials": len(trials), "cpu_seconds": sum(each.cpu_seconds for each in trials)}
        if values:
            numbers[OBJECTIVE] = max(values)
        metrics = [Metric(name, float(value), now, 0) for name, value in numbers.items()]
        mlflow.log_batch(parent, metrics=metrics)
        mlflow.set_terminated(parent, "FINISHED", now)


def _metrics(trial: TrialRun) -> Iterator[Metric]:
    """Yield the metrics of a trial, with its end as their time."""
    from mlflow.entities import Metric

    for epoch, metrics in enumerate(trial.curve, start=1):
        for name, value in metrics.items():
            yield Metric(name, float(value), trial.ended, epoch)
    for rung, value in trial.rungs.items():
        yield Metric("objective_at_rung", float(value), trial.ended, rung + 1)
    if trial.value is not None:
        yield Metric(OBJECTIVE, trial.value, trial.ended, 0)
    yield Metric("cpu_seconds", trial.cpu_seconds, trial.ended, 0)
