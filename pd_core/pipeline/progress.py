"""Progress of long work: a bar on a terminal, plain lines elsewhere, and in the stage's run."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class Record(Protocol):
    """What keeps the numbers that are shown."""

    def progress(self, done: int, total: int) -> None:
        """Note that `done` of `total` steps are done."""

    def loss(self, step: int, mean: float) -> None:
        """Keep the mean loss of the steps up to this one."""

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Keep the metrics of an epoch."""


class Reporter:
    """Shows how far a stage is, and passes it on to the stage's record."""

    def __init__(self, title: str, unit: str = "steps", *, record: Record | None = None) -> None:
        """Name the work and what is counted; nothing is shown before the first `progress`."""
        self._record = record
        self._title = title
        self._unit = unit
        self._bar: Progress | None = None
        self._next_line = 0.0
        self._metrics = ""
        self._state = (0, 0)
        self._written: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        """Start: on a terminal a bar, elsewhere lines now and then."""
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.start()
            self._bar.add_task(self._title, total=None, metrics="")
        if self._record is None:  # a stage, which has one, says at once what it is about to do
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away, or end the lines, if there are any, with how far the work came."""
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._written not in (None, self._state):
            self._write()

    def progress(self, done: int, total: int) -> None:
        """Show that `done` of `total` steps are done."""
        if self._record is not None:
            self._record.progress(done, total)
        self._state = done, total
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=done, total=total, metrics=self._metrics)
        elif time.monotonic() >= self._next_line:
            self._write()

    def loss(self, step: int, mean: float) -> None:
        """Pass the mean loss of the steps up to this one on; an epoch's is what is shown."""
        if self._record is not None:
            self._record.loss(step, mean)

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Show the metrics of an epoch."""
        if self._record is not None:
            self._record.epoch(epoch, metrics)
        shown = {key: value for key, value in metrics.items() if key != "lr"}
        self._metrics = " ".join(f"{key} {value:.3g}" for key, value in shown.items())

    def _write(self) -> None:
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        self._written = done, total = self._state
        sys.stderr.write(f"{self._title}: {done}/{total} {self._unit} {self._metrics}\n")
        sys.stderr.flush()
