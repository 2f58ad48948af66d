"""Configuration of the evaluation; confusion, class accuracy and calibration of predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pd_core.core.config import Config, Count


class EvaluateConfig(Config):
    """Accuracy of student and teacher, tuned and zero-shot."""

    split: Literal["test", "val"]  # val: to tune hyperparameters on
    batch_size: Count  # images per step; memory only
    folds: Annotated[int, Field(ge=2)]  # of the cross-validation, where no test image has a label


Labels = NDArray[np.int64]  # (N,)
BINS = 15  # of the confidence, as Guo et al. (ICML 2017, arXiv 1706.04599) use


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies between two bounds."""

    count: int  # of images
    confidence: float  # mean, 0 to 1
    accuracy: float  # 0 to 1


@dataclass(frozen=True)
class Calibration:
    """Calibration of predictions."""

    bins: tuple[Bin, ...]  # those with images, by confidence
    error: float  # expected calibration error, percent


@dataclass(frozen=True)
class Confused:
    """Number of images of one class that were classified as another one."""

    label: int
    taken_for: int
    count: int


def confusion(labels: Labels, predicted: Labels, classes: int) -> NDArray[np.int64]:
    """Return the confusion matrix (C, C): a row for each label, a column for each prediction."""
    cells = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


def most_confused(matrix: NDArray[np.int64]) -> tuple[Confused, ...]:
    """Return the pairs of classes in a confusion matrix (C, C), the most frequent ones first."""
    wrong = matrix - np.diag(np.diag(matrix))
    pairs = [
        Confused(int(row), int(column), int(wrong[row, column]))
        for row, column in zip(*np.nonzero(wrong), strict=True)
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.count, pair.label, pair.taken_for)))


def class_accuracies(labels: Labels, predicted: Labels, classes: int) -> tuple[float | None, ...]:
    """Return the accuracy of each of the C classes in percent; None for one without images."""
    counts = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[labels == predicted], minlength=classes)
    return tuple(
        100 * int(hits) / int(count) if count else None
        for hits, count in zip(right, counts, strict=True)
    )


def calibration(probabilities: NDArray[np.float64], labels: Labels) -> Calibration:
    """Compute the calibration in bins of equal width (Guo et al., equation 3).

    Args:
        probabilities: (N, C); the largest of a row is the confidence.
        labels: (N,).
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bounds = np.linspace(0, 1, BINS + 1)
    numbers = np.searchsorted(bounds[1:-1], confidence)
    bins = tuple(
        Bin(int(inside.sum()), float(confidence[inside].mean()), float(correct[inside].mean()))
        for inside in (numbers == number for number in range(BINS))
        if inside.any()
    )
    distance = sum(bin_.count * abs(bin_.accuracy - bin_.confidence) for bin_ in bins)
    return Calibration(bins, 100 * distance / max(len(labels), 1))
