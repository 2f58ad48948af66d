"""The verb that runs all data sets of a profile at once, and shows how far they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pd_core.core.errors import FailedRun, Interrupted
from pd_core.pipeline import benchmark as work
from pd_core.pipeline.benchmark import SHARES, DataSet, State
from pd_core.pipeline.processes import PROMPTKD, run
from pd_core.pipeline.signals import EXIT_STATUS, TOLD
from pd_core.pipeline.stages.params import PARAMS, load_params

LOGS = Path("build") / "benchmark"

app = typer.Typer()


@app.command()
def benchmark(
    jobs: Annotated[int, typer.Option(min=1, help="Data sets that run at a time.")] = 3,
) -> None:
    """Run all data sets of the profile, several at a time, then the report.

    What is up to date is not run again; after a failure the same command goes on where it stopped.
    """
    names = list(load_params(PARAMS).datasets)
    console = Console(stderr=True)
    view = _Screen(console) if console.is_terminal else _Lines(console)
    live = Live(view, console=console, refresh_per_second=1) if isinstance(view, _Screen) else None
    with live or nullcontext():
        datasets = work.run_all(names, jobs=jobs, logs=LOGS, on_change=view.show)
    if failed := [one for one in datasets if one.state is State.FAILED]:
        if any(one.status == EXIT_STATUS for one in failed):
            raise Interrupted(TOLD)
        listed = ", ".join(f"{one.name} in {one.stage or 'no stage'}" for one in failed)
        raise FailedRun(
            f"{len(failed)} of {len(datasets)} data sets failed ({listed}); all that they printed "
            f"is in '{LOGS}'; mend it, and start the same command again"
        )
    rest = run([*PROMPTKD, "repro"], Path(), lambda _: None)  # the report, and baselines
    if rest.status:
        console.print("\n".join(rest.output[-8:]), markup=False, highlight=False)
        raise typer.Exit(rest.status)


def progress_table(datasets: Sequence[DataSet], seconds: float) -> Table:
    """Return how far each data set and all of them are, at most 80 columns wide.

    Args:
        datasets: all that are to run.
        seconds: since the first one started.
    """
    table = Table(box=None, pad_edge=False, caption=summary(datasets, seconds))
    table.caption_justify = "left"
    table.add_column("data set", no_wrap=True)
    for stage in SHARES:
        table.add_column(stage.replace("_", " "), justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for one in datasets:
        cells = [_cell(one, stage) for stage in SHARES]
        table.add_row(one.name, *cells, _clock(one.seconds) if one.started else "")
    return table


def summary(datasets: Sequence[DataSet], seconds: float) -> str:
    """Return in one line how many data sets are done, and how long the others will take."""
    done = sum(one.state is State.DONE for one in datasets)
    failed = sum(one.state is State.FAILED for one in datasets)
    left = work.seconds_left(datasets, seconds)
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
