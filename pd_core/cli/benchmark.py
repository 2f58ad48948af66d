"""Verb `promptkd benchmark`: all data sets, several at a time, and how far they are."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pd_core.cli import fork_server
from pd_core.core.errors import FailedRun, Interrupted
from pd_core.pipeline.processes import EXIT_STATUS, PROMPTKD, TERMINATED, run
from pd_core.pipeline.settings import load_settings
from pd_core.pipeline.stages.params import PARAMS, load_params

LOGS = Path("build") / "benchmark"

SHARES: Mapping[str, float] = {
    "prepare": 0.03,
    "teacher": 0.31,
    "class_vectors": 0.05,
    "student": 0.51,
    "evaluate": 0.10,
}
"""Stages of a data set, each with its part of the time (measured on the embedded benchmark)."""

_TAIL = 12  # lines that are kept of a stage
_STARTED = re.compile(r"Running stage '(\w+)@.+':")
_PASSED_OVER = re.compile(r"Stage '(\w+)@.+' (?:didn't change|is cached)")
_STEPS = re.compile(r"[\w -]+: (\d+)/(\d+) ")
_OF_DVC = re.compile(
    r"> |Running stage|Updating lock file|Generating lock file|ERROR: failed to re"
)


def benchmark(
    jobs: Annotated[int, typer.Option(min=1, help="Number of data sets to run at a time.")] = 3,
) -> None:
    """Run the stages of all data sets, several at a time, then the report.

    Stages that are up to date are not run; after a failure the same command resumes.
    """
    names = list(load_params(PARAMS).datasets)
    console = Console(stderr=True)
    view = _Screen(console) if console.is_terminal else _Lines(console)
    live = Live(view, console=console, refresh_per_second=1) if isinstance(view, _Screen) else None
    with fork_server.for_profile(load_settings()):
        with live or nullcontext():
            datasets = run_all(names, jobs=jobs, logs=LOGS, on_change=view.show)
        _require_success(datasets)
        rest = run([*PROMPTKD, "repro"], Path(), lambda _: None)  # the report, and baselines
    if rest.status:
        console.print("\n".join(rest.output[-8:]), markup=False, highlight=False)
        raise typer.Exit(rest.status)


class State(StrEnum):
    """How far a data set is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass
class DataSet:
    """Progress of a data set's stages."""

    name: str
    state: State = State.WAITING
    stage: str = ""  # that is running; empty if none is
    done: dict[str, float] = field(default_factory=dict)  # stage -> its part that is done, 0 to 1
    skipped: set[str] = field(default_factory=set)  # stages up to date, or in DVC's cache
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL))  # the stage's last lines
    status: int = 0  # exit status of the command, once it has ended
    started: float = 0.0  # `time.monotonic()`
    ended: float = 0.0

    def read(self, line: str) -> None:
        """Take up a line of the command's output."""
        if match := _STARTED.match(line):
            self._finish_stage()
            self.stage = match[1]
            self.tail.clear()
        elif match := _PASSED_OVER.match(line):
            self._finish_stage()
            self.done[match[1]] = 1.0
            self.skipped.add(match[1])
        elif self.stage and (match := _STEPS.match(line)):
            self.done[self.stage] = int(match[1]) / max(int(match[2]), 1)
        if not (self.stage and _OF_DVC.match(line)):
            self.tail.append(line)

    def start(self) -> None:
        """Take down that the command has started."""
        self.state, self.started = State.RUNNING, time.monotonic()

    def end(self, status: int) -> None:
        """Take down that the command has ended."""
        self.status, self.ended = status, time.monotonic()
        self.state = State.FAILED if status else State.DONE
        if not status:
            self._finish_stage()

    @property
    def seconds(self) -> float:
        """How long it has taken, so far or in all."""
        return (self.ended or time.monotonic()) - self.started if self.started else 0.0

    def _finish_stage(self) -> None:
        if self.stage:
            self.done[self.stage] = 1.0
            self.stage = ""


def seconds_left(datasets: Iterable[DataSet], elapsed: float) -> float | None:
    """Estimate the seconds that are left, from those elapsed since the first data set started.

    Stages that did not have to run count neither as done nor as left; data sets that failed are
    over. None before there is anything to go by.
    """
    done = left = 0.0
    for dataset in datasets:
        over = dataset.state in (State.DONE, State.FAILED)
        for stage, share in SHARES.items():
            if stage not in dataset.skipped:
                part = dataset.done.get(stage, 0.0)
                done += share * part
                left += 0.0 if over else share * (1.0 - part)
    return elapsed * left / done if done > 0 else None


def _require_success(datasets: Sequence[DataSet]) -> None:
    """Check that all data sets are done.

    Raises:
        FailedRun: one has failed.
        Interrupted: one was terminated.
    """
    failed = [dataset for dataset in datasets if dataset.state is State.FAILED]
    if any(dataset.status == EXIT_STATUS for dataset in failed):
        raise Interrupted(TERMINATED)
    if failed:
        listed = ", ".join(f"{dataset.name} in {dataset.stage or 'no stage'}" for dataset in failed)
        raise FailedRun(
            f"{len(failed)} of {len(datasets)} data sets failed ({listed}); all that they"
            f" printed is in '{LOGS}'; mend it, and start the same command again"
        )


def run_all(
    names: Sequence[str],
    *,
    jobs: int,
    logs: Path,
    on_change: Callable[[Sequence[DataSet], DataSet], None],
) -> list[DataSet]:
    """Bring data sets up to date, several at a time; where one fails the others go on.

    Args:
        names: of the data sets, in the order in which they start.
        jobs: how many run at a time.
        logs: folder for a file `<data set>.log` each, with all that its command printed.
        on_change: called with all data sets and the one that starts or has ended, in its thread.

    Raises:
        Interrupted: SIGTERM came; it was passed on to the stages, which have saved and ended.
    """
    datasets = [DataSet(name) for name in names]
    logs.mkdir(parents=True, exist_ok=True)

    def reproduce(dataset: DataSet) -> None:
        dataset.start()
        on_change(datasets, dataset)
        with (logs / f"{dataset.name}.log").open("w") as log:

            def read(line: str) -> None:
                log.write(f"{line}\n")
                log.flush()
                dataset.read(line)

            ended = run([*PROMPTKD, "repro", f"evaluate@{dataset.name}"], Path(), read)
        dataset.end(ended.status)
        on_change(datasets, dataset)

    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(reproduce, dataset) for dataset in datasets]
        try:
            for future in as_completed(running):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in psutil.Process().children():
                child.terminate()
            raise
    return datasets


def progress_table(datasets: Sequence[DataSet], seconds: float) -> Table:
    """Return how far each data set and all of them are, at most 80 columns wide."""
    table = Table(box=None, pad_edge=False, caption=summary(datasets, seconds))
    table.caption_justify = "left"
    table.add_column("data set", no_wrap=True)
    for stage in SHARES:
        table.add_column(stage.replace("_", " "), justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for dataset in datasets:
        cells = [_cell(dataset, stage) for stage in SHARES]
        table.add_row(dataset.name, *cells, _clock(dataset.seconds) if dataset.started else "")
    return table


def summary(datasets: Sequence[DataSet], seconds: float) -> str:
    """Return in one line how many data sets are done, and how long the others will take."""
    done = sum(dataset.state is State.DONE for dataset in datasets)
    failed = sum(dataset.state is State.FAILED for dataset in datasets)
    left = seconds_left(datasets, seconds)
    return ", ".join(
        [
            f"{done} of {len(datasets)} data sets done",
            *([f"{failed} failed"] if failed else []),
            f"{_time(seconds)} so far",
            *([f"about {_time(left)} left"] if left else []),
        ]
    )


class _Lines:
    """Prints a line when a data set starts and when it has ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = time.monotonic()
        self._lock = threading.Lock()  # data sets start in threads

    def show(self, datasets: Sequence[DataSet], changed: DataSet) -> None:
        """Print what has become of a data set; of one that failed, the stage's last lines too."""
        with self._lock:
            if changed.state is State.RUNNING:
                self._print(f"{changed.name}: started")
                return
            how = f"{changed.state} after {_time(changed.seconds)}"
            self._print(f"{changed.name}: {how}; {summary(datasets, self.seconds)}")
            if changed.state is State.FAILED:
                self._print(failure(changed))

    @property
    def seconds(self) -> float:
        """How long it has been shown."""
        return time.monotonic() - self._begun

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


class _Screen(_Lines):
    """Keeps a table up to date, and prints above it why a data set failed."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.datasets: Sequence[DataSet] = ()

    def show(self, datasets: Sequence[DataSet], changed: DataSet) -> None:
        """Take up all data sets; print why one failed."""
        self.datasets = datasets
        if changed.state is State.FAILED:
            self._print(failure(changed))

    def __rich__(self) -> Table:
        """Draw how far they are now."""
        return progress_table(self.datasets, self.seconds)


def failure(dataset: DataSet) -> str:
    """Return where a data set failed, and the last lines of the stage."""
    where = f"stage {dataset.stage}" if dataset.stage else "before its first stage"
    lines = "".join(f"\n    {line}" for line in dataset.tail)
    return f"{dataset.name} failed in {where}, exit status {dataset.status}:{lines}"


def _cell(dataset: DataSet, stage: str) -> str:
    if stage in dataset.skipped:
        return "kept"
    part = dataset.done.get(stage, 0.0)
    if stage == dataset.stage:
        failed = dataset.state is State.FAILED
        return "[red]failed[/]" if failed else f"[cyan]{part:.0%}[/]"
    return "[green]done[/]" if part == 1.0 else "[dim]-[/]"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
