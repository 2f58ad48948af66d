"""Verb that searches for parameters: `promptkd tune`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import psutil
import typer

from pd_core.cli.common import Reporter, Setting, note, print_table, say, setting_of
from pd_core.core.errors import FailedRun, Interrupted
from pd_core.core.hooks import Hooks
from pd_core.pipeline import dvc, processes
from pd_core.pipeline.settings import compute_with
from pd_core.pipeline.stages.params import PARAMS, load_params

if TYPE_CHECKING:
    from pd_core.reporting.tables import Table
    from pd_core.search.study import Trial
    from pd_core.search.tuning import Result, Search

_HOUR = 3600.0


class Stage(StrEnum):
    """Stages whose parameters can be searched."""

    TEACHER = "teacher"
    STUDENT = "student"


def tune(
    name: Annotated[str, typer.Argument(help="Data set in params.yaml.", show_default=False)],
    trials: Annotated[
        int, typer.Option(min=1, help="Number of trials, with those of earlier runs.")
    ] = 30,
    hours: Annotated[
        float | None,
        typer.Option(min=0, help="Begin no trial after so many hours.", show_default=False),
    ] = None,
    stage: Annotated[Stage, typer.Option(help="Stage whose parameters are searched.")] = (
        Stage.STUDENT
    ),
    jobs: Annotated[int, typer.Option(min=1, help="Number of trials to run at a time.")] = 1,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write the best values to params.yaml.")
    ] = False,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Search for better parameters of a data set by validation, never by test images.

    The same command resumes a search that was stopped, or shows one that is done.
    """
    params = load_params(PARAMS)
    setting = setting_of(name)
    compute_with(params.run.threads)
    from pd_core.search import records, tuning
    from pd_core.search.proposal import apply as write
    from pd_core.search.proposal import difference, proposed

    until = time.monotonic() + (float("inf") if hours is None else hours * _HOUR)
    search = tuning.open_search(params, setting.job, stage)
    dvc.end_with_parent()
    note(f"objective: {search.task.objective.name}; test images are not read")
    options = [name, "--trials", str(trials), "--stage", stage, "--worker"]
    options += [] if hours is None else ["--hours", str(hours)]
    with _postponed() as check:
        with _workers(options, jobs - 1) as workers:
            record = _run_trials(search, setting, trials, until, check)
            _wait(workers, check)
        if worker:
            return
        record(search.study.trials())
        records.record_experiments(search)
        result = _best(search, check)
    _show(result)
    new = proposed(PARAMS, name, stage, result.best.trial.values, result.source)
    changes = difference(PARAMS, new)
    if not changes:
        say(f"{PARAMS} has the best values already")
        return
    say(changes)
    if apply:
        write(PARAMS, new)
        say(f"{PARAMS} is changed; `dvc repro` trains with it")
    else:
        say(f"the same command with --apply writes this to {PARAMS}")


@contextmanager
def _postponed() -> Iterator[Callable[[], None]]:
    """Let SIGTERM end the block at its calls of a function, outside of databases.

    Yields:
        The function, which raises `Interrupted` after SIGTERM.
    """

    def check() -> None:
        if interrupted():
            raise Interrupted(processes.TERMINATED)

    with processes.postponed(_terminate_children) as interrupted:
        yield check


def _terminate_children() -> None:
    for child in psutil.Process().children():
        child.terminate()


def _run_trials(
    search: Search, setting: Setting, limit: int, until: float, check: Callable[[], None]
) -> Callable[[Sequence[Trial]], None]:
    """Run trials with a progress display; return the function that records them in MLflow."""
    from pd_core.search import records, tuning

    record = records.recorder(search, setting.open_store(), _experiment(setting), note)
    with Reporter(_title(search), "trials") as report:
        done = 0

        def on_trial(trials: Sequence[Trial]) -> None:
            nonlocal done
            check()
            done = len(trials)
            values = [trial.value for trial in trials if trial.value is not None]
            if values:
                report.epoch(done, {"best": max(values)})
            report.progress(done, max(limit, done))
            record(trials)

        def on_progress(*_: int) -> None:
            check()
            report.progress(done, max(limit, done))

        hooks = Hooks(on_progress=on_progress)
        tuning.run_trials(search, limit, until=until, on_trial=on_trial, hooks=hooks)
    return record


def _best(search: Search, check: Callable[[], None]) -> Result:
    """Train the best candidates with several seeds, with a progress display."""
    from pd_core.search import tuning

    with Reporter(f"{_title(search)}, best candidates", "trainings") as report:
        state = [0, 0]

        def on_seed(done: int, total: int) -> None:
            check()
            state[:] = done, total
            report.progress(done, total)

        def on_progress(*_: int) -> None:
            check()
            report.progress(*state)

        hooks = Hooks(on_progress=on_progress)
        return tuning.best_candidates(search, on_seed=on_seed, hooks=hooks)


def _title(search: Search) -> str:
    return f"tune {search.task.stage}@{search.task.job.params.name}"


def _experiment(setting: Setting) -> str:
    return f"{setting.settings.mlflow_experiment}-{setting.profile}"


@contextmanager
def _workers(options: Sequence[str], count: int) -> Iterator[list[Future[processes.Ended]]]:
    """Run further processes of the same search during the block; they end with it."""
    command = [*processes.PROMPTKD, "tune", *options]
    with ThreadPoolExecutor(max(count, 1)) as pool:
        running = [
            pool.submit(processes.run, command, Path(), lambda _: None) for _ in range(count)
        ]
        try:
            yield running
        except BaseException:
            _terminate_children()
            raise


def _wait(workers: Sequence[Future[processes.Ended]], check: Callable[[], None]) -> None:
    for worker in workers:
        ended = worker.result()
        check()
        if ended.status:
            raise FailedRun(f"a process of the search failed: {ended.reason}")


def _show(result: Result) -> None:
    """Print the objective, the best candidates and what the search cost."""
    from pd_core.search.study import INITIAL

    say(f"{_title(result.search)}: {result.search.task.objective.name}")
    print_table(_table(result))
    pruned = sum(trial.value is None for trial in result.trials)
    say(
        f"{len(result.trials)} trials, {pruned} of them pruned;"
        f" {result.cpu_seconds / 60:.1f} minutes of processor"
    )
    if result.best.trial.number == INITIAL:
        say("no candidate is better than the initial values by more than a standard error")


def _table(result: Result) -> Table:
    """Return the best candidates, a column each, with their values and numbers."""
    from pd_core.reporting.tables import Column, Row, Table
    from pd_core.search.study import INITIAL

    task, candidates = result.search.task, result.candidates
    heads = [
        f"trial {each.trial.number}{', initial' if each.trial.number == INITIAL else ''}"
        for each in candidates
    ]
    values = [(key, *(_cell(each.trial.values[key]) for each in candidates)) for key in task.space]
    scores = [
        (f"seed {seed}", *(f"{each.scores[number]:.1f}" for each in candidates))
        for number, seed in enumerate(result.search.seeds)
    ]
    mean = ("mean", *(f"{each.mean:.1f} ± {each.deviation:.1f}" for each in candidates))
    return Table([Column("parameter"), *heads], [*values, *scores, Row(mean)])


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " to ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
