"""Metrics for classes of unequal size, with 95% intervals for the number of images.

The values are scikit-learn's. The intervals are Wilson's score intervals of each class, joined as
those of a mean (MOVER; Zou and Donner, Statistics in Medicine 2008), since a bootstrap is far too
narrow where a class has few images and no error. F1 = 2q / (1 + q) with the share q of correct
images among those with the class as label or prediction, so its interval is that of q.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pd_core.core.artifacts import read_json
from pd_core.core.options import TITLES, Metric
from pd_core.evaluation.metrics import Labels

METRICS = {
    Metric.ACCURACY: "accuracy",
    Metric.BALANCED_ACCURACY: "balanced accuracy",
    Metric.MACRO_F1: "macro F1",
}
"""Titles of the metrics in tables."""

Values = NDArray[np.float64]

_Z = 1.96  # of a 95% interval
_SHARED_ERRORS = sqrt(2)  # an error lowers the F1 of two classes, so their errors are dependent


@dataclass(frozen=True)
class Interval:
    """A metric with its 95% interval, in percent."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Write it with one decimal."""
        return f"{self.value:.1f} ({self.low:.1f}–{self.high:.1f})"


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of the predictions for N images of C classes, in percent.

    Attributes:
        images: test images of each class.
        metrics: over the classes that occur.
        precision: of each class; None where it is never predicted.
        recall: of each class; None without images.
        f1: of each class; None without images and predictions.
        largest_class: accuracy of always predicting the class with most images.
    """

    images: tuple[int, ...]
    metrics: Mapping[Metric, Interval]
    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    f1: tuple[float | None, ...]
    largest_class: float

    @property
    def unequal(self) -> bool:
        """True if the classes with images differ in their number."""
        return len({count for count in self.images if count}) > 1

    @property
    def one_class(self) -> float:
        """Balanced accuracy of always predicting the same class, percent."""
        return 100 / sum(count > 0 for count in self.images)


def class_metrics(labels: Labels, predicted: Labels, classes: int = 0) -> ClassMetrics:
    """Compute the metrics of predictions.

    Args:
        labels: (N,), at least one.
        predicted: (N,).
        classes: number C of classes, if there are more than occur.
    """
    classes = max(classes, int(labels.max()) + 1, int(predicted.max()) + 1)
    images = np.bincount(labels, minlength=classes)
    chosen = np.bincount(predicted, minlength=classes)
    correct = np.bincount(labels[labels == predicted], minlength=classes)
    return ClassMetrics(
        images=tuple(images.tolist()),
        metrics={
            Metric.ACCURACY: _interval(correct.sum(keepdims=True), images.sum(keepdims=True)),
            Metric.BALANCED_ACCURACY: _interval(correct, images),
            Metric.MACRO_F1: _macro_f1(correct, images + chosen - correct),
        },
        precision=_shares(correct, chosen),
        recall=_shares(correct, images),
        f1=_shares(2 * correct, images + chosen),
        largest_class=100 * float(images.max() / len(labels)),
    )


def value_of(metric: Metric, labels: Labels, predicted: Labels) -> float:
    """Compute a metric of N predictions, 0 to 1, as in `class_metrics`."""
    classes = int(max(labels.max(), predicted.max())) + 1
    correct = np.bincount(labels[labels == predicted], minlength=classes)
    images = np.bincount(labels, minlength=classes)
    match metric:
        case Metric.ACCURACY:
            return float(correct.sum() / len(labels))
        case Metric.BALANCED_ACCURACY:
            return float((correct[images > 0] / images[images > 0]).mean())
        case Metric.MACRO_F1:
            both = images + np.bincount(predicted, minlength=classes)
            return float((2 * correct[both > 0] / both[both > 0]).mean())


Rows = Sequence[Mapping[str, Any]]  # path, label, and by model the class of its half and of all


def read_rows(evaluation: Path) -> Rows:
    """Read the predictions of the stage `evaluate` for labelled images; none if it has none.

    Raises:
        BadArtifact: the file is corrupt.
    """
    path = evaluation / "predictions.json"
    rows: Rows = read_json(path) if path.is_file() else ()
    return rows if rows and "label" in rows[0] else ()


def of_rows(rows: Rows, model: str, classes: int = 0) -> ClassMetrics:
    """Compute the metrics of a model over all classes, of the rows of `predictions.json`."""
    labels = np.array([row["label"] for row in rows], np.int64)
    return class_metrics(labels, np.array([row[model][1] for row in rows], np.int64), classes)


def of_evaluation(evaluation: Path, classes: int = 0) -> dict[str, ClassMetrics]:
    """Compute the metrics of all models in an output folder of the stage `evaluate`, by model."""
    rows = read_rows(evaluation)
    return {model: of_rows(rows, model, classes) for model in TITLES if rows and model in rows[0]}


def _shares(correct: Labels, counts: Labels) -> tuple[float | None, ...]:
    return tuple(
        100 * int(hits) / int(count) if count else None
        for hits, count in zip(correct, counts, strict=True)
    )


def wilson(correct: Labels, counts: Labels) -> tuple[Values, Values]:
    """Return the bounds of Wilson's score interval for shares of positive counts."""
    share, square = correct / counts, _Z * _Z / counts
    centre = (share + square / 2) / (1 + square)
    half = np.sqrt(share * (1 - share) * square + square * square / 4) / (1 + square)
    return centre - half, centre + half


def _interval(correct: Labels, counts: Labels) -> Interval:
    """Return the mean share over the classes that have a count."""
    there = counts > 0
    low, high = wilson(correct[there], counts[there])
    return _mean(correct[there] / counts[there], low, high)


def _macro_f1(correct: Labels, counts: Labels) -> Interval:
    there = counts > 0
    low, high = wilson(correct[there], counts[there])
    share = correct[there] / counts[there]
    value, low, high = (2 * part / (1 + part) for part in (share, low, high))
    return _mean(value, low, high, wider=_SHARED_ERRORS)


def _mean(values: Values, low: Values, high: Values, wider: float = 1.0) -> Interval:
    """Join the intervals of several values to that of their mean."""
    mean = float(values.mean())
    below, above = (
        wider * float(np.sqrt(np.square(bound - values).sum())) / len(values)
        for bound in (low, high)
    )
    return Interval(100 * mean, 100 * max(mean - below, 0.0), 100 * min(mean + above, 1.0))
