"""Configuration of the evaluation; confusion, calibration and other counts of predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pd_core.core.config import Config, Count


class EvaluateConfig(Config):
    """Accuracy of everybody."""

    split: Literal["test", "val"]  # val: to choose recipes by
    batch_size: Count  # images per step; memory only
    folds: Annotated[int, Field(ge=2)]  # of the cross-validation, where no test image has a label


Labels = NDArray[np.int64]  # (N,)
BINS = 15  # of the confidence, as Guo et al. (ICML 2017, arXiv 1706.04599) use


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies between two bounds.

    Attributes:
        count: how many they are.
        confidence: their mean confidence, 0 to 1.
        accuracy: the share of them that is answered rightly, 0 to 1.
    """

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Whether answers are right as often as their confidence says.

    Attributes:
        bins: those that hold images, in the order of their confidence.
        error: expected calibration error, percent.
    """

    bins: tuple[Bin, ...]
    error: float


@dataclass(frozen=True)
class Confused:
    """How often images of one class were taken for another one."""

    label: int
    taken_for: int
    count: int


def confusion(labels: Labels, answers: Labels, classes: int) -> NDArray[np.int64]:
    """Count how often each class was given each answer.

    Args:
        labels: (N,).
        answers: (N,).
        classes: C.

    Returns:
        (C, C): a row for each label, a column for each answer.
    """
    cells = np.bincount(labels * classes + answers, minlength=classes * classes)
    return cells.reshape(classes, classes)


def most_confused(matrix: NDArray[np.int64]) -> tuple[Confused, ...]:
    """List the pairs of classes that were confused, the most frequent ones first.

    Args:
        matrix: (C, C), as `confusion` returns it.
    """
    wrong = matrix - np.diag(np.diag(matrix))
    pairs = [
        Confused(int(row), int(column), int(wrong[row, column]))
        for row, column in zip(*np.nonzero(wrong), strict=True)
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.count, pair.label, pair.taken_for)))


def class_accuracies(labels: Labels, answers: Labels, classes: int) -> tuple[float | None, ...]:
    """Return each class's accuracy in percent; None for a class without images.

    Args:
        labels: (N,).
        answers: (N,).
        classes: C.
    """
    counts = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[labels == answers], minlength=classes)
    return tuple(
        100 * int(hits) / int(count) if count else None
        for hits, count in zip(right, counts, strict=True)
    )


def calibration(probabilities: NDArray[np.float64], labels: Labels) -> Calibration:
    """Compare confidence with accuracy, in bins of equal width.

    The expected calibration error is the mean distance of the two, weighted by the images in each
    bin (Guo et al., equation 3).

    Args:
        probabilities: (N, C); the largest of a row is the confidence.
        labels: (N,).
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bounds = np.linspace(0, 1, BINS + 1)
    place = np.searchsorted(bounds[1:-1], confidence)
    bins = tuple(
        Bin(int(here.sum()), float(confidence[here].mean()), float(right[here].mean()))
        for here in (place == number for number in range(BINS))
        if here.any()
    )
    distance = sum(one.count * abs(one.accuracy - one.confidence) for one in bins)
    return Calibration(bins, 100 * distance / max(len(labels), 1))
