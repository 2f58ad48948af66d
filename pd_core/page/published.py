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
from pd_core.data.splits import Protocol
from pd_core.results import Scores, Summary

PUBLISHED = ("student", "teacher", "zero_shot_student")
"""Whose accuracy the paper has; its zero-shot CLIP is the student's."""

AVERAGE = "average"


@dataclass(frozen=True)
class Beside:
    """The accuracies of one data set, here and in the paper.

    Numbers are in percent, by their names: base, novel and hm, or accuracy alone.

    Attributes:
        dataset: its name, or `average`.
        ours: None if it was not run.
        paper: what the paper says.
        difference: ours less the paper's, in points; None if it was not run.
        spread: standard deviation of ours over seeds, in points; None of a single seed.
    """

    dataset: str
    ours: dict[str, float] | None
    paper: dict[str, float]
    difference: dict[str, float] | None
    spread: dict[str, float] | None = None


@cache
def paper() -> dict[str, Any]:
    """Read the paper's numbers."""
    content: dict[str, Any] = read_json(Path(__file__).with_name("paper.json"))
    return content


def beside(
    summary: Summary, datasets: Sequence[str], protocol: Protocol = Protocol.BASE_TO_NOVEL
) -> dict[str, tuple[Beside, ...]]:
    """Put our accuracies beside the paper's.

    Args:
        summary: `datasets` and `average`, as of `results.summarise`, of what was run.
        datasets: all data sets, run or not.
        protocol: which of the paper's tables.

    Returns:
        By who, a row for each of `datasets` that the paper has. The paper's average is of all its
        data sets, so ours stands beside it only if exactly these were run.
    """
    published = paper()[protocol]
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


def across(
    protocols: Mapping[Protocol, Summary], source: str | None, datasets: Sequence[str]
) -> dict[Protocol, dict[str, tuple[Beside, ...]]]:
    """Put our accuracies on other data sets than the teacher's beside the paper's.

    Args:
        protocols: what was run, by protocol.
        source: the data set that its teacher was tuned on.
        datasets: of the profile; without the paper's source among them there is nothing to compare.

    Returns:
        By protocol and by who, a row for each of the paper's targets.
    """
    theirs = paper()["source_dataset"]
    if theirs not in datasets:
        return {}
    run = protocols if source == theirs else {}
    nothing: Summary = {"datasets": {}, AVERAGE: {}}
    return {
        protocol: beside(run.get(protocol, nothing), targets(protocol), protocol)
        for protocol in Protocol
        if protocol.has_source
    }


def targets(protocol: Protocol) -> list[str]:
    """Name the data sets that the paper has in a protocol."""
    return [name for name in paper()[protocol] if name != AVERAGE]


def cost_in_paper() -> Mapping[str, Any]:
    """Return what the paper says of its student's cost: hardware, GFLOPs, images a second."""
    cost: Mapping[str, Any] = paper()["inference_cost"]
    return cost


def _beside(name: str, scores: Scores | None, published: dict[str, float]) -> Beside:
    """Compare the numbers that the paper has; none are ours where other ones were measured."""
    if scores is None or not set(published) <= set(scores):
        return Beside(name, None, published, None)
    ours = {key: scores[key] for key in published}
    difference = {key: round(ours[key] - published[key], 2) for key in published}
    spread = {key: scores[f"{key}_std"] for key in published if f"{key}_std" in scores}
    return Beside(name, ours, published, difference, spread or None)
