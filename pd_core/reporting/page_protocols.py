"""Results over several seeds on the page: the summary of the protocols, if there is one."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from pd_core.core.artifacts import read_json, understood
from pd_core.core.errors import PdError
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline.redaction import masked
from pd_core.reporting.protocol_report import markdown
from pd_core.reporting.results import MODELS, Summary, keys_of, protocols_of, scores_of

_NOT_RUN = "Not run. `cd protocols && dvc repro` runs every protocol over several seeds."


@dataclass(frozen=True)
class Seeds:
    """Results over several seeds."""

    summary: dict[str, Any] = field(default_factory=dict)  # as of `summarise`; empty without any
    note: str = ""  # why there is none

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
        """The results by protocol."""
        return protocols_of(self.summary) if self.summary else {}


def read_summary(folder: Path) -> Seeds:
    """Read the summary in a report's folder, or return a note if there is none or it is corrupt."""
    path = folder / "summary.json"
    if not path.is_file():
        return Seeds(note=_NOT_RUN)
    what, remedy = "summary of the protocols", "run `cd protocols && dvc repro report`"
    try:
        summary = read_json(path, what=what, remedy=remedy)
        with understood(path, what=what, remedy=remedy):
            _check_complete(summary, path, remedy)
            markdown(summary)  # fails where a difference or an outlier is not as `summarise` has it
    except (PdError, AttributeError) as error:
        return Seeds(note=f"Protocols and seeds are left out: {masked(str(error))}.")
    return Seeds(summary)


def _check_complete(summary: Summary, path: Path, remedy: str) -> None:
    """Check that every model has every number.

    Raises:
        BadArtifact: a number is missing.
        KeyError: a seed of a data set or the teacher's source is missing.
    """
    if not summary["seeds"]:
        raise KeyError("seeds")
    if any(protocol.has_source for protocol in protocols_of(summary)) and not summary["source"]:
        raise KeyError("source")
    for protocol, part in protocols_of(summary).items():
        names, seeds = part["datasets"], map(str, summary["seeds"])
        runs = [part["runs"][name][seed] for name, seed in product(names, seeds)]
        for row in (*names.values(), part["average"], *runs):
            scores_of(row, MODELS, keys_of(protocol), path=path, remedy=remedy)
