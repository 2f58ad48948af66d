"""The paper's numbers, and ours beside them where both measured the same.

`paper.json` has them, with their source. What was not run here has no number of ours: a published
one never stands in for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pd_core.artifacts import read_json
from pd_core.results import KEYS, Scores, Summary

PUBLISHED = ("student", "teacher", "zero_shot_student")
"""Whose accuracy the paper has; its zero-shot CLIP is the student's."""

AVERAGE = "average"


@dataclass(frozen=True)
class Beside:
    """The accuracies of one data set, here and in the paper; base, novel, hm -> percent.

    Attributes:
        dataset: its name, or `average`.
        ours: None if it was not run.
        paper: what the paper says.
        difference: ours less the paper's, in points; None if it was not run.
    """

    dataset: str
    ours: dict[str, float] | None
    paper: dict[str, float]
    difference: dict[str, float] | None


@cache
def paper() -> dict[str, Any]:
    """Read the paper's numbers."""
    content: dict[str, Any] = read_json(Path(__file__).with_name("paper.json"))
    return content


def beside(summary: Summary, datasets: Sequence[str]) -> dict[str, tuple[Beside, ...]]:
    """Put our accuracies beside the paper's.

    Args:
        summary: what `results.summarise` made of the data sets that were run.
        datasets: all data sets of the profile, run or not.

    Returns:
        By who, a row for each of `datasets` that the paper has. The paper's average is of its
        eleven data sets, so ours stands beside it only if exactly these were run.
    """
    published = paper()["base_to_novel"]
    shared = [name for name in datasets if name in published]
    if not shared:
        return {}
    rows = {**summary["datasets"]}
    if set(rows) == set(published) - {AVERAGE}:
        rows[AVERAGE] = summary[AVERAGE]
    return {
        who: tuple(
            _beside(name, rows.get(name, {}).get(who), published[name][who])
            for name in (*shared, AVERAGE)
            if who in published[name]
        )
        for who in PUBLISHED
    }


def cost_in_paper() -> Mapping[str, Any]:
    """Return what the paper says of its student's cost: hardware, GFLOPs, images a second."""
    cost: Mapping[str, Any] = paper()["inference_cost"]
    return cost


def _beside(name: str, scores: Scores | None, published: dict[str, float]) -> Beside:
    """Compare the three numbers that the paper has; none are ours where all classes were taught."""
    if scores is None or not set(KEYS) <= set(scores):
        return Beside(name, None, published, None)
    ours = {key: scores[key] for key in KEYS}
    return Beside(name, ours, published, {k: round(ours[k] - published[k], 2) for k in KEYS})
