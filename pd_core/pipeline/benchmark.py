"""All data sets of a profile, several at a time; each is one `promptkd repro` of its stages."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import psutil

from pd_core.pipeline.processes import PROMPTKD, run

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


class State(StrEnum):
    """How far a data set is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass
class DataSet:
    """What is known of a data set's run.

    Attributes:
        name: of the data set.
        state: how far it is.
        stage: the stage that is running; empty if none is.
        done: stage -> the part of it that is done, 0 to 1.
        skipped: stages that were up to date, or in DVC's cache.
        tail: the last lines of the stage that is running.
        status: exit status of the command, once it has ended.
        started: `time.monotonic()` of its start.
        ended: likewise.
    """

    name: str
    state: State = State.WAITING
    stage: str = ""
    done: dict[str, float] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL))
    status: int = 0
    started: float = 0.0
    ended: float = 0.0

    def read(self, line: str) -> None:
        """Take up a line of the command's output."""
        if found := _STARTED.match(line):
            self._finish_stage()
            self.stage = found[1]
            self.tail.clear()
        elif found := _PASSED_OVER.match(line):
            self._finish_stage()
            self.done[found[1]] = 1.0
            self.skipped.add(found[1])
        elif self.stage and (found := _STEPS.match(line)):
            self.done[self.stage] = int(found[1]) / max(int(found[2]), 1)
        if not _OF_DVC.match(line):
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
    """Estimate the time that is left; None before there is anything to go by.

    Stages that did not have to run count neither as done nor as left.

    Args:
        datasets: all that are to run; those that failed are over.
        elapsed: seconds since the first one started.
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

    Returns:
        What became of each.

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
