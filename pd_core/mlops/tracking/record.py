"""What a stage wants recorded. It is collected here; `live` sends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import NamedTuple, TypeGuard


class Point(NamedTuple):
    """One value of a metric."""

    name: str
    value: float
    milliseconds: int  # since 1970
    step: int


@dataclass(frozen=True)
class DataInput:
    """A data set that a stage reads.

    Attributes:
        name: as in the parameters.
        path: the file or folder whose hash tells one state of it from another.
        context: what it is read for: "training", "evaluation", ...
    """

    name: str
    path: Path
    context: str


class _Pace:
    """Steps done, and how fast. One thread notes, another takes."""

    def __init__(self) -> None:
        self._now: tuple[float, int, int] | None = None  # when, steps done, steps in all
        self._last: tuple[float, int] | None = None  # when, steps done

    def note(self, done: int, total: int) -> None:
        self._now = (time.monotonic(), done, total)
        if self._last is None:
            self._last = self._now[:2]

    def take(self) -> tuple[dict[str, float], int] | None:
        """Return what is new since the last time, and the steps done; None if nothing is."""
        if self._now is None or self._last is None:
            return None
        (when, done, total), (before, done_before) = self._now, self._last
        self._last = (when, done)
        if when == before or done < done_before:  # or another part of the work, counted from 0
            return None
        metrics = {"progress/steps_per_second": (done - done_before) / (when - before)}
        return {**metrics, "progress/percent": 100 * done / total if total else 0.0}, done


@dataclass
class StageRun:
    """What one stage wants recorded.

    Attributes:
        run_id: MLflow's name of the run; None until the store has it, and when tracking is off.
        points: values of metrics, in the order in which they came.
        headline: the single numbers that say how the stage ended.
        files: what is to be kept with the run, and in which of its folders.
        texts: what makes further files, by their names in the run.
        tags: by name.
    """

    run_id: str | None = None
    points: list[Point] = field(default_factory=list)
    headline: dict[str, float] = field(default_factory=dict)
    files: list[tuple[Path, str]] = field(default_factory=list)
    texts: list[Callable[[], Mapping[str, str]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    _pace: _Pace = field(default_factory=_Pace)

    def epoch(self, epoch: int, metrics: Mapping[str, object]) -> None:
        """Record the numbers of an epoch; what is not a number is left out."""
        self.add(metrics, epoch)

    def loss(self, step: int, mean: float) -> None:
        """Record the mean loss of the steps up to this one, counted over all epochs."""
        self.add({"train/loss": mean}, step)

    def progress(self, done: int, total: int) -> None:
        """Note that `done` of `total` steps are done; `sample_pace` records it now and then."""
        self._pace.note(done, total)

    def sample_pace(self) -> None:
        """Record how far the stage is, and its steps per second since the last sample."""
        if taken := self._pace.take():
            metrics, done = taken
            self.add(metrics, done)

    def log_metrics(self, metrics: Mapping[str, object]) -> None:
        """Record single numbers; nested mappings become names such as `student/hm`."""
        numbers = {key: item for key, item in flat(metrics, "/").items() if _is_number(item)}
        self.add(numbers)
        self.headline.update({name: float(value) for name, value in numbers.items()})

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file or folder with the run, in `folder` of its artifacts."""
        self.files.append((path, folder))

    def log_texts(self, make: Callable[[], Mapping[str, str]]) -> None:
        """Keep files that `make` returns, by name; it is called once the work is done.

        Without a store it is never called; an error in it is a warning, as the store's are.
        """
        self.texts.append(make)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add tags to the run."""
        self.tags.update(tags)

    def add(self, metrics: Mapping[str, object], step: int = 0) -> None:
        """Record numbers that are no headline."""
        now = milliseconds()
        self.points += [
            Point(name, float(value), now, step)
            for name, value in metrics.items()
            if _is_number(value)
        ]


def flat(values: Mapping[str, object], separator: str) -> dict[str, object]:
    """Return nested mappings as one, with names such as `prompts.depth`."""
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = flat(value, separator)
            found.update({f"{name}{separator}{key}": item for key, item in inner.items()})
        else:
            found[str(name)] = value
    return found


def milliseconds() -> int:
    """Return the time now as MLflow counts it."""
    return round(time.time() * 1000)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)
