"""Search of a stage's parameters: trials, then several seeds for the best candidates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from pd_core.core.errors import BadParams, Diverged, FailedRun, PdError
from pd_core.core.hooks import NO_HOOKS, Hooks, Metrics
from pd_core.core.options import TeacherMethod
from pd_core.pipeline import code_hash, provenance
from pd_core.pipeline.stages.jobs import Job, inputs
from pd_core.pipeline.stages.params import DATA, Params
from pd_core.search.candidate import Task, score
from pd_core.search.objective import make_objective
from pd_core.search.study import CURVE, INITIAL, REASON, SECONDS, Repeat, Study, Trial, study_name

if TYPE_CHECKING:
    import optuna

SEARCH = DATA / "search"
"""Folder of the searches' databases, which git ignores."""

STAGES = ("teacher", "student")
BEST = 3
"""Candidates that are trained with several seeds."""

SEEDS = 3
"""Seeds of the best candidates, which no trial has had."""


class _Pruned(Exception):
    """The trial is not among the best at a rung."""


@dataclass(frozen=True)
class Search:
    """A task and its trials so far."""

    task: Task
    study: Study

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the best candidates, without that of the trials, by which they were chosen."""
        first = self.task.job.seed + 1
        return tuple(range(first, first + SEEDS))


@dataclass(frozen=True)
class Candidate:
    """A trial that was trained with several seeds."""

    trial: Trial
    scores: tuple[float, ...]  # the objective of each seed

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.scores)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds."""
        return stdev(self.scores)

    def exceeds(self, other: Candidate) -> bool:
        """Return True if the mean is higher by more than a standard error of the difference."""
        differences = [own - its for own, its in zip(self.scores, other.scores, strict=True)]
        return fmean(differences) > stdev(differences) / sqrt(SEEDS)


@dataclass(frozen=True)
class Result:
    """Trials of a search and its best candidates, the best first."""

    search: Search
    trials: tuple[Trial, ...]
    candidates: tuple[Candidate, ...]
    cpu_seconds: float  # of trials and seeds

    @property
    def best(self) -> Candidate:
        """The candidate to propose.

        By the rule of one standard error (Breiman et al., Classification and Regression Trees,
        1984, section 3.4.3), values stay unless others are better by more than that.
        """
        initial = [each for each in self.candidates if each.trial.number == INITIAL]
        better = [each for each in self.candidates if all(map(each.exceeds, initial))]
        return [*better, *initial][0]

    @property
    def source(self) -> str:
        """Source of the best values, for comments in `params.yaml`."""
        return f"tuned: {len(self.trials)} trials, {self.search.task.objective.kind}"


def open_search(params: Params, job: Job, stage: str, *, root: Path = SEARCH) -> Search:
    """Make the task of a stage, and open its trials so far.

    A search is named by all that its trials depend on, apart from the current values of the
    searched parameters: with other data, code or parameters it begins anew.

    Args:
        params: content of `params.yaml`.
        job: of the data set.
        stage: one of `STAGES`.
        root: folder of all searches.

    Raises:
        BadParams: the stage has nothing to search.
        BadData: there is nothing to choose by.
        MissingFile: an earlier stage has not run.
        NoSpace: the disk is full.
    """
    _check_stage(params, job, stage)
    folder = _hidden(root) / job.prepared.name
    name = study_name(stage, _key(params, job, stage))
    study = Study(folder / "trials.db", name, seed=job.seed)
    objective = make_objective(job, stage, folder / name)
    return Search(Task(stage, params, job, objective), study)


def _check_stage(params: Params, job: Job, stage: str) -> None:
    teacher = job.params.teacher
    if stage == "teacher" and (teacher.original or teacher.method is TeacherMethod.CLIP):
        kind = "an imported teacher" if teacher.original else f"method {teacher.method}"
        raise BadParams(f"{kind} is not trained; tune the student, or choose another method")
    if not getattr(params.search, stage):
        raise BadParams(f"search.{stage} has no parameter; add ranges, see docs/tuning.md")


def _hidden(folder: Path) -> Path:
    """Make a folder that hides itself from git."""
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.is_file():
        ignore.write_text("*\n", "utf-8")
    return folder


def _key(params: Params, job: Job, stage: str) -> dict[str, object]:
    """Return all that determines the trials of a search."""
    space = getattr(params.search, stage)
    fixed = {
        each: getattr(job.params, each).model_dump(mode="json", exclude=exclude)
        for each, exclude in {"teacher": set(), "student": set(), stage: {*space}}.items()
        if each in (stage, "teacher")
    }
    run, device = job.params.run, job.device.partition(":")[0]  # GPUs may share a search
    return {
        "seed": job.seed,
        "space": {key: dimension.model_dump(mode="json") for key, dimension in space.items()},
        "fixed": fixed,
        "folds": job.params.evaluate.folds,
        "data": [provenance.content_hash(path) for path in inputs(job, stage)],
        "code": code_hash.of_stage(stage),
        "run": [
            device, run.threads, run.precision, run.on_corrupt, run.augmentation,
            run.features_precision,
        ],
    }  # fmt: skip


def run_trials(
    search: Search,
    limit: int,
    *,
    until: float = float("inf"),
    on_trial: Callable[[Sequence[Trial]], None] = lambda _: None,
    hooks: Hooks = NO_HOOKS,
) -> None:
    """Run trials until there are as many as the limit.

    Args:
        search: the task and its trials so far.
        limit: number of trials, with those of earlier runs.
        until: `time.monotonic()` after which no trial begins.
        on_trial: called with all trials, at the start and after each one.
        hooks: progress of the trainings.

    Raises:
        PdError: a candidate cannot be trained for a reason other than its values.
    """
    task, study = search.task, search.study
    on_trial(study.trials())
    while time.monotonic() < until:
        begun = study.ask(task.space, task.current(), limit)
        if begun is None:
            break
        _run_trial(search, *begun, hooks)
        on_trial(study.trials())


def _run_trial(search: Search, trial: optuna.Trial, values: dict[str, Any], hooks: Hooks) -> None:
    """Train a candidate; an interrupted trial does not count."""
    curve: list[Metrics] = []
    value, reason, start = None, "", time.process_time()

    def on_rung(rung: int, so_far: float) -> None:
        if not search.study.is_promising(trial, rung, so_far):
            raise _Pruned

    hooks = replace(hooks, on_epoch=lambda _, metrics: curve.append({**metrics}))
    try:
        value = score(search.task, values, search.task.job.seed, hooks, on_rung)
    except _Pruned:
        pass
    except (Diverged, FailedRun) as error:
        reason = str(error)
    except BaseException:
        with suppress(PdError):
            search.study.drop(trial)
        raise
    seconds = round(time.process_time() - start, 2)
    search.study.tell(trial, value, **{SECONDS: seconds, REASON: reason, CURVE: curve})


def best_candidates(
    search: Search,
    *,
    on_seed: Callable[[int, int], None] = lambda *_: None,
    hooks: Hooks = NO_HOOKS,
) -> Result:
    """Train the best candidates and the initial values with several new seeds.

    Args:
        search: with at least one trial that was not pruned.
        on_seed: called with the number of trainings done and in all.
        hooks: progress of the trainings.

    Raises:
        FailedRun: no trial has a model.
    """
    trials = search.study.trials()
    seconds = sum(trial.cpu_seconds for trial in trials)
    finalists = _finalists(trials)
    candidates: list[Candidate] = []
    total = len(finalists) * SEEDS
    for trial in finalists:
        scores: list[float] = []
        for seed in search.seeds:
            on_seed(len(candidates) * SEEDS + len(scores), total)
            repeat = _repeat(search, trial, seed, hooks)
            scores.append(repeat.value)
            seconds += repeat.cpu_seconds
        candidates.append(Candidate(trial, tuple(scores)))
    on_seed(total, total)
    ranked = sorted(candidates, key=lambda each: (-each.mean, each.trial.number))
    return Result(search, tuple(trials), tuple(ranked), seconds)


def _finalists(trials: Sequence[Trial]) -> list[Trial]:
    """Return the best complete trials and the initial one."""
    complete = [trial for trial in trials if trial.value is not None]
    if not complete:
        raise FailedRun(
            "no trial has ended with a model; see the reasons in MLflow, and give other ranges"
        )
    ranked = sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))
    initial = [trial for trial in ranked[BEST:] if trial.number == INITIAL]
    return [*ranked[:BEST], *initial]


def _repeat(search: Search, trial: Trial, seed: int, hooks: Hooks) -> Repeat:
    """Return the result of a trial's values with another seed, computed once."""
    kept = search.study.repeated(trial.number, seed)
    if kept is not None:
        return kept
    start, value = time.process_time(), 0.0
    with suppress(Diverged, FailedRun):
        value = score(search.task, trial.values, seed, hooks)
    repeat = Repeat(value, round(time.process_time() - start, 2))
    search.study.keep(trial.number, seed, repeat)
    return repeat
