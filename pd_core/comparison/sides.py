"""One side of a comparison: what is known of each data set, wherever it was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from pd_core.comparison.predictions import Predictions
from pd_core.results import ESTIMATES, TITLES

Params = Mapping[str, Any]  # dotted name -> value
Scores = Mapping[str, Mapping[str, float]]  # who -> metric -> percent


@dataclass(frozen=True)
class Measured:
    """What is known of one data set, for one seed.

    Attributes:
        dataset: its name, without the seed.
        params: as they were in force for it, overrides included.
        scores: who reached what; empty if nothing is known.
        predictions: reads them; raises `PdError`, which says why, if they are not at hand.
        absent: why there are no scores.
        pictures: fingerprint of its pictures; None if it is not known.
    """

    dataset: str
    params: Params
    scores: Scores = field(default_factory=dict)
    predictions: Callable[[], Predictions] | None = None
    absent: str = ""
    pictures: str | None = None


@dataclass(frozen=True)
class Side:
    """A git revision, an MLflow run or a model version.

    Attributes:
        given: the name that the user gave.
        kind: `revision`, `run` or `version`.
        name: the full one: the commit, the run's id, or `promptkd-<data set>/<number>`.
        measured: by data set; one with a seed of its own is `<data set>-<seed>`.
    """

    given: str
    kind: str
    name: str
    measured: Mapping[str, Measured]

    @property
    def title(self) -> str:
        """What it is, for people."""
        return f"{self.kind} {self.name}" + ("" if self.given in self.name else f" ({self.given})")


def scores_of(content: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Choose the numbers that say who reached what, of a metrics file or a run's metrics.

    Args:
        content: who -> metric -> percent among other things; and estimates, metric -> who.
    """
    numbers = {
        (who, metric): value
        for who, row in content.items()
        if who in TITLES and isinstance(row, Mapping)
        for metric, value in row.items()
    }
    for metric in ESTIMATES:
        row = content.get(metric)
        if isinstance(row, Mapping):
            numbers |= {(who, metric): value for who, value in row.items()}
    found: dict[str, dict[str, float]] = {}
    for (who, metric), value in numbers.items():
        if isinstance(value, Real) and not isinstance(value, bool):
            found.setdefault(who, {})[metric] = float(value)
    return found


def nested(metrics: Mapping[str, object], separator: str) -> dict[str, dict[str, object]]:
    """Return metrics such as `student/hm` as `student` -> `hm`; others are left out."""
    found: dict[str, dict[str, object]] = {}
    for name, value in metrics.items():
        first, found_one, second = name.partition(separator)
        if found_one:
            found.setdefault(first, {})[second] = value
    return found
