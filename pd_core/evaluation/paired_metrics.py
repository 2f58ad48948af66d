"""Comparison of two classifiers on the same images by accuracy, balanced accuracy or macro F1.

Accuracy has Tango's bound and McNemar's exact test. The other metrics are no share of images: their
bound is of a bootstrap of the images within each class, their test permutes the two predictions of
each image. Both draw with a fixed seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pd_core.core.options import Metric
from pd_core.evaluation.class_metrics import value_of
from pd_core.evaluation.metrics import Labels
from pd_core.evaluation.significance import paired

_DRAWS = 2000
_ROUNDING = 1e-9  # differences closer than this are the same


@dataclass(frozen=True)
class PairedMetric:
    """A metric of two classifiers, 0 to 1.

    Attributes:
        first: of the first classifier.
        second: of the second.
        bound: one-sided lower bound of the first's difference to the second.
        p: p-value, two-sided, of the hypothesis that both are equally good.
    """

    first: float
    second: float
    bound: float
    p: float


def compare_by(
    metric: Metric, labels: Labels, first: Labels, second: Labels, *, confidence: float
) -> PairedMetric:
    """Compare two classifiers.

    Args:
        metric: the number to compare.
        labels: (N,), at least one.
        first: predictions of the first classifier (N,).
        second: predictions of the second (N,).
        confidence: of the bound, for example 0.95.
    """
    values = value_of(metric, labels, first), value_of(metric, labels, second)
    if metric is Metric.ACCURACY:
        counts = paired(first == labels, second == labels)
        return PairedMetric(*values, counts.lower_bound(confidence), counts.mcnemar())
    rng = np.random.default_rng(0)
    bound = _bootstrap_bound(metric, labels, first, second, confidence, rng)
    return PairedMetric(*values, bound, _permutation_p(metric, labels, first, second, rng))


def _bootstrap_bound(
    metric: Metric,
    labels: Labels,
    first: Labels,
    second: Labels,
    confidence: float,
    rng: np.random.Generator,
) -> float:
    """Return the quantile of the difference over samples of the images of each class."""
    order = np.argsort(labels, kind="stable")
    labels, first, second = labels[order], first[order], second[order]
    starts, counts = np.unique(labels, return_index=True, return_counts=True)[1:]
    start, count = np.repeat(starts, counts), np.repeat(counts, counts)
    differences = np.empty(_DRAWS)
    for draw in range(_DRAWS):
        sample = start + (rng.random(len(labels)) * count).astype(np.int64)
        differences[draw] = value_of(metric, labels, first[sample]) - value_of(
            metric, labels, second[sample]
        )
    return float(np.quantile(differences, 1 - confidence))


def _permutation_p(
    metric: Metric, labels: Labels, first: Labels, second: Labels, rng: np.random.Generator
) -> float:
    """Return the share of permutations with a difference as large, the observed one included."""

    def difference(swapped: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
        mine, other = np.where(swapped, second, first), np.where(swapped, first, second)
        return abs(value_of(metric, labels, mine) - value_of(metric, labels, other))

    observed = difference(np.zeros(len(labels), np.bool_)) - _ROUNDING
    draws = (difference(rng.random(len(labels)) < 0.5) for _ in range(_DRAWS))
    return (1 + sum(draw >= observed for draw in draws)) / (1 + _DRAWS)
