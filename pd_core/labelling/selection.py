"""Selection of the images to label next: active learning in batches.

Three published criteria, each balanced over the predicted classes as in PCB (Bang et al., "Active
Prompt Learning in Vision Language Models", CVPR 2024), which compares the same three; and random
choice, the baseline.

Shapes: N candidates, L labelled images, C classes, D the joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SAME = 1 - 1e-3
"""Cosine similarity from which on two images are copies: of a batch, only one is chosen."""


class Method(StrEnum):
    """Criterion of the selection."""

    BADGE = "badge"  # uncertain and different: gradient embeddings (Ash et al., ICLR 2020)
    CORESET = "coreset"  # different: k-centre greedy (Sener and Savarese, ICLR 2018)
    ENTROPY = "entropy"  # uncertain (Settles, "Active Learning Literature Survey", 2009)
    RANDOM = "random"  # of all candidates, without balance


@dataclass(frozen=True)
class Candidates:
    """Unlabelled images as the models see them.

    Attributes:
        probabilities: (N, C), mean of teacher and student.
        features: (N, D), unit length, of the teacher.
        labelled: (L, D), features of the labelled images.
        counts: (C,), number of labelled images of each class.
    """

    probabilities: Array
    features: Array
    labelled: Array
    counts: NDArray[np.int64]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The likeliest class of each candidate, (N,)."""
        return np.asarray(self.probabilities.argmax(axis=1))


def select(
    candidates: Candidates, method: Method, count: int, rng: np.random.Generator
) -> list[int]:
    """Choose candidates to label, in the order of choice.

    Each choice is from the predicted class with the fewest labels so far, those chosen before
    counted as of their predicted class. Copies of labelled or chosen images are left out. Random
    choice knows neither.

    Args:
        candidates: the N candidates.
        method: the criterion.
        count: number of images, of which there are fewer if candidates run out.
        rng: source of all random numbers.
    """
    if method is Method.RANDOM:
        total = len(candidates.features)
        return [int(index) for index in rng.permutation(total)[:count]]
    criterion = _CRITERIA[method](candidates)
    predicted, features = candidates.predicted, candidates.features
    counts = candidates.counts.copy()
    order = rng.permutation(len(counts)).tolist()
    is_open = _similarity(features, candidates.labelled) < SAME
    chosen: list[int] = []
    while len(chosen) < count and is_open.any():
        label = _scarcest(counts, set(predicted[is_open].tolist()), order)
        members = np.flatnonzero(is_open & (predicted == label))
        index = criterion.choose(members, rng)
        chosen.append(index)
        counts[label] += 1
        criterion.add(index)
        is_open[index] = False
        is_open &= features @ features[index] < SAME
    return chosen


def _scarcest(counts: NDArray[np.int64], labels: set[int], order: Sequence[int]) -> int:
    """Return the class with the fewest labels; of several, the first in an order."""
    return min((label for label in order if label in labels), key=lambda label: counts[label])


def _similarity(features: Array, others: Array) -> Array:
    """Return the cosine similarity (N,) of each image with the nearest of some others."""
    if len(others) == 0:
        return np.full(len(features), -1.0)
    return np.asarray((features @ others.T).max(axis=1))


class _Entropy:
    """The entropy of the predicted probabilities."""

    def __init__(self, candidates: Candidates) -> None:
        p = candidates.probabilities
        self._entropy = -(p * np.log(np.clip(p, 1e-12, None))).sum(axis=1)

    def choose(self, members: NDArray[np.int64], _rng: np.random.Generator) -> int:
        """Return the member whose class is least certain."""
        return int(members[self._entropy[members].argmax()])

    def add(self, index: int) -> None:
        """Do nothing: what is chosen does not matter."""


class _Coreset:
    """The distance to the nearest labelled or chosen image."""

    def __init__(self, candidates: Candidates) -> None:
        self._features = candidates.features
        self._nearest = _similarity(candidates.features, candidates.labelled)

    def choose(self, members: NDArray[np.int64], _rng: np.random.Generator) -> int:
        """Return the member that is farthest from all of them."""
        return int(members[self._nearest[members].argmin()])

    def add(self, index: int) -> None:
        """Count an image as chosen."""
        self._nearest = np.maximum(self._nearest, self._features @ self._features[index])


class _Badge:
    """The squared distance of gradient embeddings to the nearest chosen one: k-means++ seeding.

    The embedding is the gradient of the loss with respect to the last layer, if the predicted
    class is the label: the outer product of (probabilities - predicted) and the features. It is
    short where the prediction is certain, so the origin counts as chosen from the start.
    """

    def __init__(self, candidates: Candidates) -> None:
        self._features = candidates.features
        self._errors = candidates.probabilities.copy()
        self._errors[np.arange(len(self._errors)), candidates.predicted] -= 1
        self._norms = (self._errors**2).sum(axis=1)  # the features have unit length
        self._distance = self._norms.copy()

    def choose(self, members: NDArray[np.int64], rng: np.random.Generator) -> int:
        """Draw a member in proportion to its squared distance."""
        weights = self._distance[members]
        total = weights.sum()
        return int(rng.choice(members, p=weights / total if total > 0 else None))

    def add(self, index: int) -> None:
        """Count an image as chosen."""
        product = (self._errors @ self._errors[index]) * (self._features @ self._features[index])
        apart = self._norms + self._norms[index] - 2 * product
        self._distance = np.minimum(self._distance, np.clip(apart, 0, None))


_Criterion = _Entropy | _Coreset | _Badge

_CRITERIA: dict[Method, Callable[[Candidates], _Criterion]] = {
    Method.BADGE: _Badge,
    Method.CORESET: _Coreset,
    Method.ENTROPY: _Entropy,
}
