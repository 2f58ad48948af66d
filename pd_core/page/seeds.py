"""What the project `protocols/` measured over several seeds, read back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AllowInfNan, Field, TypeAdapter, ValidationError

from pd_core.artifacts import read_json, understood
from pd_core.data.splits import Protocol
from pd_core.errors import BadArtifact, PdError
from pd_core.masking import masked
from pd_core.protocols.results import keys_of, protocols_of
from pd_core.results import WHO, Summary

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
