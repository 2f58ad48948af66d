"""Comparison of two classifiers on the same images by accuracy, balanced accuracy or macro F1.

Accuracy has Tango's bound and McNemar's exact test. The other metrics are no share of the images:
their bound is of a bootstrap of the images within each class, their test permutes the two
predictions of each image. Both draw with a fixed seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pd_core.core.options import Metric
from pd_core.evaluation.class_metrics import value_of
from pd_core.evaluation.metrics import Labels
from pd_core.evaluation.significance import paired

DRAWS = 2000
_ROUNDING = 1e-9  # differences closer than this are the same


@dataclass(frozen=True)
class PairedMetric:
    """A metric of two classifiers, 0 to 1.

    Attributes:
        first: of the first classifier.
        second: of the second.
        bound: one-sided lower bound of the first's difference to the second.
        p: two-sided p-value of the hypothesis that both are equally good.
    """

    first: float
    second: float
    bound: float
    p: float


@dataclass(frozen=True)
class _Pair:
    """Labels and two predictions of the N images, sorted by label: (N,) each."""

    metric: Metric
    labels: Labels
    first: Labels
    second: Labels

    def resampled(self, rng: np.random.Generator) -> float:
        """Return the difference on a sample, with replacement, of the images of each class."""
        _, starts, counts = np.unique(self.labels, return_index=True, return_counts=True)
        within = (rng.random(len(self.labels)) * np.repeat(counts, counts)).astype(np.int64)
        sample = np.repeat(starts, counts) + within
        return self._difference(self.first[sample], self.second[sample])

    def permuted(self, rng: np.random.Generator) -> float:
        """Return the difference with the predictions of about half of the images exchanged."""
        swap = rng.random(len(self.labels)) < 0.5
        first = np.where(swap, self.second, self.first)
        return self._difference(first, np.where(swap, self.first, self.second))

    def _difference(self, first: Labels, second: Labels) -> float:
        values = (value_of(self.metric, self.labels, each) for each in (first, second))
        return next(values) - next(values)


def compare_by(
    metric: Metric,
    labels: Labels,
    first: Labels,
    second: Labels,
    *,
    confidence: float,
    draws: int = DRAWS,
) -> PairedMetric:
    """Compare two classifiers.

    Args:
        metric: the number to compare.
        labels: (N,), at least one.
        first: predictions of the first classifier (N,).
        second: predictions of the second (N,).
        confidence: of the bound, for example 0.95.
        draws: samples of the bootstrap, and permutations of the test.
    """
    values = value_of(metric, labels, first), value_of(metric, labels, second)
    if metric is Metric.ACCURACY:
        counts = paired(first == labels, second == labels)
        return PairedMetric(*values, counts.lower_bound(confidence), counts.mcnemar())
    rng, order = np.random.default_rng(0), np.argsort(labels, kind="stable")
    pair = _Pair(metric, labels[order], first[order], second[order])
    bound = float(np.quantile([pair.resampled(rng) for _ in range(draws)], 1 - confidence))
    observed = abs(values[0] - values[1]) - _ROUNDING
    as_large = sum(abs(pair.permuted(rng)) >= observed for _ in range(draws))
    return PairedMetric(*values, bound, (1 + as_large) / (1 + draws))
