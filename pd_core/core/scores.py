"""Headline number of a model's scores, and students that distillation made worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WORSE = "‡"  # † marks a checkpoint chosen on test images
"""Sign of a distilled student that is worse than the zero-shot one."""

_HEADLINES = ("hm", "accuracy", "all")


def headline(scores: Mapping[str, float]) -> float:
    """Return the number that sums up a row: the harmonic mean, or the accuracy on all classes."""
    return next(scores[key] for key in _HEADLINES if key in scores)


def gain(evaluation: Mapping[str, Any]) -> float:
    """Return by how many points distillation raised the student's headline number."""
    return headline(evaluation["student"]) - headline(evaluation["zero_shot_student"])


def is_worse(evaluation: Mapping[str, Any]) -> bool:
    """Return True if the distilled student is worse than the zero-shot one, both measured."""
    measured = all(model in evaluation for model in ("student", "zero_shot_student"))
    return measured and gain(evaluation) < 0
