"""The predictions that the stage `evaluate` keeps of every test picture.

Shapes: N test pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pd_core.artifacts import read_json
from pd_core.data.splits import base_count
from pd_core.errors import BadArtifact
from pd_core.results import TITLES

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
