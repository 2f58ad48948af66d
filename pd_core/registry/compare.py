"""Two classifiers' answers to the same test pictures, on the classes that both know.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from pd_core.significance import Paired, paired


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
class Comparison(Paired):
    """How often two classifiers are right about the same pictures, among the classes they share.

    Attributes:
        classes: how many these are.
    """

    classes: int


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
    return Comparison(**asdict(paired(one, other)), classes=len(shared))


def _choices(answers: Answers, among: Sequence[str]) -> NDArray[np.str_]:
    """Return each picture's likeliest name among some: (N,)."""
    columns = [answers.names.index(name) for name in among]
    chosen: NDArray[np.str_] = np.asarray(among)[answers.scores[:, columns].argmax(axis=1)]
    return chosen
