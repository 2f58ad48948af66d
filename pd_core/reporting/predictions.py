"""Predictions of the stage `evaluate`, image by image, for tests of significance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pd_core.core.artifacts import read_json
from pd_core.core.errors import BadArtifact
from pd_core.core.options import TITLES
from pd_core.data.loading.splits import base_count

_ROUNDING = 0.006  # percent; metrics are kept with two decimals at least


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of the test images of a data set."""

    paths: tuple[str, ...]  # of the N images, sorted
    labels: NDArray[np.int64]  # (N,)
    chosen: Mapping[str, NDArray[np.int64]]  # model -> (N, 2): best of the image's half, and of all

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Read the output of the stage `evaluate`.

        Raises:
            BadArtifact: the file is not of its form.
        """
        content = read_json(path)
        try:
            rows = sorted(content, key=lambda row: row["path"])
            paths = tuple(str(row["path"]) for row in rows)
            labels = np.array([row["label"] for row in rows], dtype=np.int64)
            chosen = {
                name: np.array([row[name] for row in rows], dtype=np.int64).reshape(len(rows), 2)
                for name in rows[0]
                if name in TITLES
            }
        except (IndexError, KeyError, OverflowError, TypeError, ValueError):
            raise BadArtifact("they are no predictions of labelled images") from None
        return cls(paths, labels, chosen)

    def right(self, model: str, metric: str) -> NDArray[np.bool_] | None:
        """Return which of the images that a metric counts are classified correctly, by path.

        None if the metric is no share of images, or the model has no predictions.
        """
        if model not in self.chosen:
            return None
        hits: NDArray[np.bool_] = self.chosen[model] == self.labels[:, None]
        classes = max(int(part.max()) for part in (self.labels, *self.chosen.values())) + 1
        base = self.labels < base_count(classes)
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

    def fit(self, model: str, scores: Mapping[str, float]) -> bool:
        """Return True if a model's scores, in percent, were counted of these predictions."""
        return all(
            abs(100 * right.mean() - value) < _ROUNDING
            for metric, value in scores.items()
            if (right := self.right(model, metric)) is not None and len(right)
        )
