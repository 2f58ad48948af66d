"""Headline number of a model's scores, and students that distillation made worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WORSE = "‡"  # † marks a checkpoint chosen on test images
"""Sign of a distilled student that is worse than the zero-shot one."""

LEGEND = f"{WORSE} worse than the zero-shot student"
"""Line below a table that has the sign."""

_HEADLINES = ("hm", "accuracy", "all")


def headline(scores: Mapping[str, float]) -> float:
    """Return the number that sums up a row: the harmonic mean, or the accuracy on all classes."""
    return next(scores[key] for key in _HEADLINES if key in scores)


def gain(evaluation: Mapping[str, Any]) -> float:
    """Return by how many points distillation raised the student's headline number."""
    return headline(evaluation["student"]) - headline(evaluation["zero_shot_student"])


def is_worse(evaluation: Mapping[str, Any]) -> bool:
    """Return True if the distilled student is worse than the zero-shot one.

    Both have to be measured, or estimated by cross-validation.
    """
    models = (evaluation.get(model, ()) for model in ("student", "zero_shot_student"))
    measured = all(any(key in scores for key in _HEADLINES) for scores in models)
    if measured:
        return gain(evaluation) < 0
    estimate = evaluation.get("cross_validated", {})
    return bool(estimate.get("student", 100.0) < estimate.get("zero_shot_student", 0.0))


def sign(worse: bool) -> str:
    """Return the sign to write behind a number or a name, or nothing."""
    return f"\N{NO-BREAK SPACE}{WORSE}" if worse else ""


def mark(model: str, evaluation: Mapping[str, Any], key: str = "hm") -> str:
    """Return the sign of a distilled student that is worse than the zero-shot one, or nothing.

    Args:
        model: the model that a number is of.
        evaluation: scores by model.
        key: the number's; only a headline number has the sign.
    """
    is_headline = key == "hm" or (key in _HEADLINES and "hm" not in evaluation.get(model, ()))
    return sign(model == "student" and is_headline and is_worse(evaluation))
