"""Configuration of the evaluation; confusion, class accuracy and calibration of predictions."""

from __future__ import annotations

from collections import Counter
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


def most_confused(labels: Labels, predicted: Labels) -> tuple[Confused, ...]:
    """Return the confused pairs of classes, the most frequent ones first."""
    wrong = labels != predicted
    counts = Counter(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    pairs = (Confused(*pair, count) for pair, count in counts.items())
    return tuple(sorted(pairs, key=lambda pair: (-pair.count, pair.label, pair.taken_for)))


def class_accuracies(labels: Labels, predicted: Labels, classes: int) -> tuple[float | None, ...]:
    """Return the accuracy of each of the C classes in percent; None for one without images."""
    counts = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[labels == predicted], minlength=classes)
    return tuple(
        100 * int(hits) / int(count) if count else None
        for hits, count in zip(right, counts, strict=True)
    )


def calibration(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> Calibration:
    """Compute the calibration in bins of equal width (Guo et al., equation 3).

    Args:
        confidence: the largest probability of each image, (N,).
        correct: True where its class is the label, (N,).
    """
    bounds = np.linspace(0, 1, BINS + 1)
    numbers = np.searchsorted(bounds[1:-1], confidence)
    bins = tuple(
        Bin(int(inside.sum()), float(confidence[inside].mean()), float(correct[inside].mean()))
        for inside in (numbers == number for number in range(BINS))
        if inside.any()
    )
    distance = sum(bin_.count * abs(bin_.accuracy - bin_.confidence) for bin_ in bins)
    return Calibration(bins, 100 * distance / max(len(correct), 1))
