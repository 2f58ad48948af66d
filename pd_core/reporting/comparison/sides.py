"""One side of a comparison: results and predictions of each data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pd_core.core.artifacts import read_json
from pd_core.core.errors import BadArtifact
from pd_core.data.loading.splits import base_count
from pd_core.reporting.results import ESTIMATES, TITLES

FILE = "predictions.json"

_ROUNDING = 0.006  # percent; metrics are kept with two decimals at least


@dataclass(frozen=True)
class Predictions:
    """What everybody said about the test pictures of a data set.

    Attributes:
        paths: of the N pictures, sorted.
        labels: (N,).
        chosen: who -> (N, 2): the best class of the picture's half, and of all.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    chosen: Mapping[str, NDArray[np.int64]]

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Read what the stage `evaluate` wrote.

        Raises:
            BadArtifact: the file is not of its form.
        """
        content = read_json(path)
        try:
            rows = sorted(content, key=lambda row: row["path"])
            paths = tuple(str(row["path"]) for row in rows)
            labels = np.array([row["label"] for row in rows], dtype=np.int64)
            who = [name for name in rows[0] if name in TITLES]
            chosen = {
                name: np.array([row[name] for row in rows], dtype=np.int64).reshape(len(rows), 2)
                for name in who
            }
        except (IndexError, KeyError, OverflowError, TypeError, ValueError):
            raise BadArtifact("they are no predictions of labelled pictures") from None
        return cls(paths, labels, chosen)

    def right(self, who: str, metric: str) -> NDArray[np.bool_] | None:
        """Say which of the pictures that a metric counts are named right, in the order of paths.

        Returns:
            None if the metric is no share of pictures, or nobody of that name was asked.
        """
        if who not in self.chosen:
            return None
        hits: NDArray[np.bool_] = self.chosen[who] == self.labels[:, None]
        known = (self.labels, *self.chosen.values())
        base = self.labels < base_count(max(int(part.max()) for part in known) + 1)
        match metric:
            case "base":
                hits = hits[base, 0]
            case "novel":
                hits = hits[~base, 0]
            case "all" | "accuracy":
                hits = hits[:, 1]
            case _:
                return None
        return hits

    def give(self, who: str, scores: Mapping[str, float]) -> bool:
        """Whether these are the predictions that somebody's scores, in percent, were counted of."""
        return all(
            abs(100 * right.mean() - value) < _ROUNDING
            for metric, value in scores.items()
            if (right := self.right(who, metric)) is not None and len(right)
        )


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
