"""One training of a candidate: values of parameters, a seed, and the objective's number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from pd_core.core.config import StagePaths
from pd_core.core.hooks import NO_HOOKS, Hooks, Metrics
from pd_core.core.options import Computed
from pd_core.data.loading.prepared import read_prepared
from pd_core.models.class_vectors import FILE, Classifier, ClassVectors, distilled, tuned
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import DatasetParams, DatasetRow, Params
from pd_core.pipeline.stages.space import Dimension
from pd_core.search.objective import Objective, Part, measure
from pd_core.training.loop.fit import Run
from pd_core.training.student import stage as student_stage
from pd_core.training.teacher import stage as teacher_stage

RUNGS = (1 / 6, 1 / 2)
"""Shares of a candidate's training after which it is measured, and may be pruned.

Not before its warm-up is over, in which it has hardly learned.
"""

Model = Teacher | Student
OnRung = Callable[[int, float], None]


@dataclass(frozen=True)
class Task:
    """A stage of a data set whose parameters are searched.

    Attributes:
        stage: `teacher` or `student`.
        params: content of `params.yaml`.
        job: of the data set.
        objective: of the search.
    """

    stage: str
    params: Params
    job: Job
    objective: Objective

    @property
    def space(self) -> dict[str, Dimension]:
        """Searched parameters of the stage."""
        space: dict[str, Dimension] = getattr(self.params.search, self.stage)
        return space

    def current(self) -> dict[str, Any]:
        """Return the present values of the searched parameters."""
        config = getattr(self.job.params, self.stage).model_dump(mode="json")
        return {key: config[key] for key in self.space}

    def params_with(self, values: Mapping[str, Any]) -> DatasetParams:
        """Return the data set's parameters with other values in this stage.

        Teacher's targets and frozen features are cached, so that trials share them.
        """
        cached = {"teacher": "frozen_features", "student": "teacher_targets"}[self.stage]
        row = DatasetRow(**{self.stage: {**values, cached: str(Computed.CACHED)}})
        return self.params.for_dataset(self.job.params.name, row)


def score(
    task: Task,
    values: Mapping[str, Any],
    seed: int,
    hooks: Hooks = NO_HOOKS,
    on_rung: OnRung = lambda *_: None,
) -> float:
    """Train a candidate and return the objective's number, percent.

    Args:
        task: the stage and its objective.
        values: of the searched parameters.
        seed: of the training; the split stays that of the stage `prepare`.
        hooks: callbacks of the training.
        on_rung: called with the number of a rung and the mean so far; it may raise an exception to
            end the training.

    Raises:
        Diverged, FailedRun: the candidate is no usable model.
    """
    job = replace(task.job, params=task.params_with(values), seed=seed)
    training = _Training(task, job, hooks, on_rung)
    for part in task.objective.parts:
        training.results.append(training.run(part))
    return round(fmean(training.results), 4)


@dataclass
class _Training:
    """Training of a candidate on all parts of the objective, measured at the rungs."""

    task: Task
    job: Job
    hooks: Hooks
    on_rung: OnRung
    results: list[float] = field(default_factory=list)  # of the parts that are done
    rung: int = 0  # the next one
    model: Model | None = None

    def run(self, part: Part) -> float:
        """Train on a part and return its number."""
        with TemporaryDirectory() as scratch:
            return self._measure(self._train(part, Path(scratch)), part)

    def _train(self, part: Part, scratch: Path) -> Model:
        job, params = self.job, self.job.params
        hooks = replace(self.hooks, on_start=self._start, on_epoch=partial(self._after_epoch, part))
        run = Run(job.compute, hooks, features=jobs.features(job, self.task.stage, NO_HOOKS))
        if self.task.stage == "teacher":
            return teacher_stage.run(part.prepared, scratch, params.teacher, run)
        paths = StagePaths(part.prepared, part.teacher, part.vectors, scratch, scratch)
        return student_stage.run(paths, params.student, params.teacher, run)

    def _measure(self, model: Model, part: Part) -> float:
        return measure(_classifier(model, part), part, self.task.objective, self.job)

    def _start(self, module: object) -> None:
        assert isinstance(module, Teacher | Student)
        self.model = module

    def _after_epoch(self, part: Part, epoch: int, metrics: Metrics) -> None:
        """Measure the model if a rung is reached."""
        self.hooks.on_epoch(epoch, metrics)
        config = getattr(self.job.params, self.task.stage)
        share = (len(self.results) + epoch / config.epochs) / len(self.task.objective.parts)
        if self.model is None or self.rung == len(RUNGS) or share < RUNGS[self.rung]:
            return
        if epoch <= config.warmup_epochs:
            return
        self.model.eval()
        value = fmean([*self.results, self._measure(self.model, part)])
        self.model.train()
        while self.rung < len(RUNGS) and share >= RUNGS[self.rung]:
            self.on_rung(self.rung, value)
            self.rung += 1


def _classifier(model: Model, part: Part) -> Classifier:
    if isinstance(model, Student):
        remedy = f"run `dvc repro class_vectors@{part.vectors.name}`"
        return distilled(model, ClassVectors.load(part.vectors / FILE, remedy=remedy))
    return tuned(model, read_prepared(part.prepared).classes)
