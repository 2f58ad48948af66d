"""Tests of paired predictions of two classifiers, two-sided, and exact wherever possible.

On one data set the pairs are its test images, over several data sets the data sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

LEAST_DATASETS = 3
"""Fewer data sets have no p-value: of two it is 0.5 or 1, whatever their differences are."""

_EXACT = 13  # data sets: beyond, the signs of all differences are too many to go through
_ROUNDING = 1e-9  # differences closer than this are the same


@dataclass(frozen=True)
class Paired:
    """Counts of the images that two classifiers predict correctly."""

    pictures: int  # that both classified
    gained: int  # that only the first has right
    lost: int  # that only the second has right
    both: int

    @property
    def first(self) -> float:
        """Accuracy of the first, 0 to 1."""
        return (self.both + self.gained) / self.pictures

    @property
    def second(self) -> float:
        """Accuracy of the second, 0 to 1."""
        return (self.both + self.lost) / self.pictures

    def lower_bound(self, confidence: float) -> float:
        """Return a lower bound of the first accuracy's difference to the second.

        It is Tango's score bound for a difference of paired proportions, which holds for few
        images as well. Two classifiers that are right about the same images are taken as equal.

        Args:
            confidence: of the one-sided bound, for example 0.95.
        """
        if self.gained == self.lost == 0:
            return 0.0
        if self.lost == self.pictures:
            return -1.0
        from scipy.optimize import brentq
        from scipy.stats import norm

        wanted = norm.ppf(confidence)
        estimate = (self.gained - self.lost) / self.pictures
        return float(brentq(lambda value: self._score(value) - wanted, -1 + 1e-9, estimate))

    def mcnemar(self) -> float:
        """Return the exact p-value of McNemar's test that both are equally good."""
        if self.gained == self.lost == 0:
            return 1.0
        from scipy.stats import binomtest

        return float(binomtest(self.gained, self.gained + self.lost).pvalue)

    def _score(self, difference: float) -> float:
        """Return how many standard errors the observation lies above a true difference."""
        n, gained, lost = self.pictures, self.gained, self.lost
        # The likeliest share of lost pictures, if the true difference were this one.
        linear = (2 * n - gained + lost) * difference - gained - lost
        constant = -lost * difference * (1 - difference)
        share = (sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        distance = gained - lost - n * difference
        return distance / sqrt(variance) if variance > 0 else 0.0 if distance == 0 else np.inf


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Count the images that two classifiers predict correctly, of their hits (N,)."""
    return Paired(
        pictures=len(first),
        gained=int((first & ~second).sum()),
        lost=int((second & ~first).sum()),
        both=int((first & second).sum()),
    )


def harmonic_mean_test(base: Paired, novel: Paired) -> float:
    """Return the exact p-value of a permutation test on the harmonic mean of two accuracies.

    If both classifiers were equally good, each image that only one has right could as well be the
    other's. The test goes through all cases: how many of these images are the first one's in either
    half. Where one half decides alone, it is McNemar's test.
    """
    chance, difference = _possibilities(novel)
    p = 0.0
    observed = abs(_harmonic(base.first, novel.first) - _harmonic(base.second, novel.second))
    for weight, (first, second) in zip(*_possibilities(base), strict=True):
        apart = np.abs(_harmonic(first, difference[:, 0]) - _harmonic(second, difference[:, 1]))
        p += float(weight * chance[apart >= observed - _ROUNDING].sum())
    return min(p, 1.0)


def _possibilities(half: Paired) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the K possible cases of a half: their probabilities (K,), and accuracies (K, 2)."""
    from scipy.stats import binom

    discordant = half.gained + half.lost
    first = np.arange(discordant + 1)
    right = half.both + np.stack([first, discordant - first], axis=1)
    return binom.pmf(first, discordant, 0.5), right / half.pictures


def _harmonic(base: float, novel: NDArray[np.float64] | float) -> NDArray[np.float64]:
    total = np.asarray(base + novel, dtype=np.float64)
    return np.divide(2 * base * novel, total, out=np.zeros_like(total), where=total > 0)


@dataclass(frozen=True)
class OverDatasets:
    """Mean difference of two methods over data sets, and its p-value.

    p is of Wilcoxon's signed-rank test that there is none; None of fewer than `LEAST_DATASETS`.
    """

    datasets: int
    difference: float
    p: float | None


def over_datasets(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]
) -> OverDatasets:
    """Compare two methods over the data sets that both were measured on.

    Seeds of one data set are averaged: they share its images, and are no further evidence for other
    data sets. With n data sets p is never below 2 / 2^n.

    Args:
        first: by data set, the first method's number for each seed.
        second: the second's.

    Raises:
        ValueError: they share no data set.
    """
    shared = sorted(set(first) & set(second))
    if not shared:
        raise ValueError("the two methods share no data set")
    differences = [fmean(first[name]) - fmean(second[name]) for name in shared]
    p = signed_ranks(differences) if len(shared) >= LEAST_DATASETS else None
    return OverDatasets(len(shared), fmean(differences), p)


def signed_ranks(differences: Sequence[float]) -> float:
    """Return the p-value of Wilcoxon's signed-rank test.

    Args:
        differences: one of each pair; pairs without a difference are left out.
    """
    from scipy.stats import PermutationMethod, wilcoxon

    nonzero = [round(value, 9) for value in differences if abs(value) > _ROUNDING]
    if not nonzero:
        return 1.0
    exact = PermutationMethod(n_resamples=2**_EXACT) if len(nonzero) <= _EXACT else "auto"
    return float(wilcoxon(nonzero, method=exact).pvalue)
