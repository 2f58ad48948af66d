"""The paper's results, and ours beside them where both measured the same, over all seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AllowInfNan, Field, TypeAdapter, ValidationError

from pd_core.core.artifacts import read_json, understood
from pd_core.core.errors import BadArtifact, PdError
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline.redaction import masked
from pd_core.reporting.protocol_results import keys_of, protocols_of
from pd_core.reporting.results import WHO, Scores, Summary

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


NOT_RUN = "Not run. `cd protocols && dvc repro` runs every protocol over several seeds."

_Number = Annotated[float, AllowInfNan(False)]
_Who = Annotated[str, Field(pattern=f"^({'|'.join(WHO)})$")]
_Scores = dict[_Who, dict[str, _Number]]  # number -> percent


@dataclass(frozen=True)
class _Difference:
    first: _Who
    second: _Who
    datasets: int
    seeds: int
    difference: _Number
    p: _Number | None
    difference_std: _Number | None = None


@dataclass(frozen=True)
class _Outlier:
    dataset: str
    who: _Who
    seed: int
    value: _Number
    others: _Number
    deviation: _Number


@dataclass(frozen=True)
class _Measured:
    datasets: dict[str, _Scores]
    average: _Scores
    differences: list[_Difference]
    outliers: list[_Outlier]
    runs: dict[str, dict[str, _Scores]]  # data set -> seed


@dataclass(frozen=True)
class _Summary:
    seeds: Annotated[list[int], Field(min_length=1)]
    protocols: dict[str, _Measured]
    source: str | None = None


@dataclass(frozen=True)
class Seeds:
    """Results over several seeds.

    Attributes:
        summary: as `protocols.results.summarise` made it; empty if there is none.
        note: why there is none; empty if there is one.
    """

    summary: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were run."""
        return tuple(self.summary.get("seeds", ()))

    @property
    def source(self) -> str | None:
        """The data set whose teacher is measured on others; None if none is."""
        return self.summary.get("source")

    @property
    def protocols(self) -> dict[Protocol, Summary]:
        """What was measured, by protocol."""
        return protocols_of(self.summary) if self.summary else {}


def read(folder: Path) -> Seeds:
    """Read the summary of a profile's protocols.

    Args:
        folder: where their report is.

    Returns:
        What was measured; or, if nothing was or the file is damaged, a note that says so.
    """
    path = folder / "summary.json"
    if not path.is_file():
        return Seeds(note=NOT_RUN)
    try:
        return _read(path)
    except PdError as error:
        return Seeds(note=f"Protocols and seeds are left out: {masked(str(error))}.")


def _read(path: Path) -> Seeds:
    what, remedy = "summary of the protocols", "run `cd protocols && dvc repro report`"
    content = read_json(path, what=what, remedy=remedy)
    try:
        TypeAdapter(_Summary).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its top"
        raise BadArtifact(
            f"{what} '{path}' is wrong at {where}: {first['msg']}; {remedy}"
        ) from None
    found = Seeds(content)
    with understood(path, what=what, remedy=remedy):
        _check(found)
    return found


def _check(found: Seeds) -> None:
    """Make sure that nobody lacks a number.

    Raises:
        KeyError: somebody does, or a data set lacks a seed, or the teacher's own is not named.
    """
    for protocol, measured in found.protocols.items():
        if protocol.has_source and not found.source:
            raise KeyError("source")
        rows, runs = measured["datasets"], measured["runs"]
        each = [runs[name][str(seed)] for name in rows for seed in found.seeds]
        for row in (*rows.values(), measured["average"], *each):
            if lacking := [who for who in WHO if not row[who].keys() >= set(keys_of(protocol))]:
                raise KeyError(f"{protocol}.{lacking[0]}")
