"""Two classifiers' answers to the same test pictures, on the classes that both know.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Answers:
    """What a classifier said.

    Attributes:
        names: its C classes.
        scores: (N, C), the higher the likelier; a row of NaN where it said nothing.
    """

    names: tuple[str, ...]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """How often two classifiers are right about the same pictures.

    Attributes:
        classes: how many classes they share, and chose among.
        pictures: how many pictures of these classes both answered.
        gained: pictures that only the first is right about.
        lost: pictures that only the second is right about.
        both: pictures that both are right about.
    """

    classes: int
    pictures: int
    gained: int
    lost: int
    both: int

    @property
    def first(self) -> float:
        """The first one's share of right answers."""
        return (self.both + self.gained) / self.pictures

    @property
    def second(self) -> float:
        """The second one's share of right answers."""
        return (self.both + self.lost) / self.pictures

    def lower_bound(self, confidence: float) -> float:
        """Return what the first one's share is at least above the second's (below: negative).

        It is Tango's score bound for a difference of paired shares, which holds for few pictures
        as well. Two classifiers that are right about the same pictures are taken to be equal.

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
        """Return the exact two-sided p-value of McNemar's test that both are equally good."""
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


def compare(first: Answers, second: Answers, labels: Sequence[str]) -> Comparison | None:
    """Let two classifiers choose among the classes that both know.

    Args:
        first: one's answers to N pictures.
        second: the other's, to the same ones.
        labels: the N right names.

    Returns:
        The comparison on the pictures of these classes; None if there is no such picture.
    """
    shared = sorted(set(first.names) & set(second.names))
    answered = np.isfinite(first.scores).all(axis=1) & np.isfinite(second.scores).all(axis=1)
    counts = answered & np.isin(np.asarray(labels), shared)
    if not counts.any():
        return None
    right = np.asarray(labels)[counts]
    one, other = (_choices(answers, shared)[counts] == right for answers in (first, second))
    return Comparison(
        classes=len(shared),
        pictures=len(right),
        gained=int((one & ~other).sum()),
        lost=int((other & ~one).sum()),
        both=int((one & other).sum()),
    )


def _choices(answers: Answers, among: Sequence[str]) -> NDArray[np.str_]:
    """Return each picture's likeliest name among some: (N,)."""
    columns = [answers.names.index(name) for name in among]
    chosen: NDArray[np.str_] = np.asarray(among)[answers.scores[:, columns].argmax(axis=1)]
    return chosen
