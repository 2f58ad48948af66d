"""What teacher and student answer, summed up, and kept beside the page until something changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pd_core.artifacts import write_json
from pd_core.data.prepared import Prepared
from pd_core.layout import Job, inputs
from pd_core.lineage import code_of
from pd_core.page.answering import PEOPLE, Answers, answers
from pd_core.page.cost import Cost
from pd_core.page.gallery import Gallery, gallery
from pd_core.page.measures import Calibration, calibration
from pd_core.provenance import content_hash, params_hash


@dataclass(frozen=True)
class Answered:
    """What the answers tell that `predictions.json` does not.

    Attributes:
        calibration: by who.
        cost: by who.
        other: by who, how many answers are not those that `evaluate` wrote.
        gallery: pictures on which teacher and student differ.
    """

    calibration: dict[str, Calibration]
    cost: dict[str, Cost]
    other: dict[str, int]
    gallery: Gallery


@dataclass(frozen=True)
class _Kept:
    key: str
    answered: Answered


def answered(
    job: Job, prepared: Prepared, rows: Sequence[Mapping[str, Any]], folder: Path
) -> Answered:
    """Let teacher and student answer the test pictures, or read what they answered before.

    Args:
        job: whose stages made them.
        prepared: the data set.
        rows: what `evaluate` wrote in `predictions.json`.
        folder: where the answers are kept.

    Raises:
        PdError: pictures or what the stages wrote are not there.
    """
    path, key = folder / f"{job.evaluation.name}.json", _key(job)
    before = _kept(path)
    if before is not None and before.key == key:
        return before.answered
    found = _summed_up(answers(job, prepared), prepared, rows)
    write_json(path, asdict(_Kept(key, found)))
    return found


def _kept(path: Path) -> _Kept | None:
    """Read what was kept; what cannot be read is made anew."""
    try:
        return TypeAdapter(_Kept).validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _key(job: Job) -> str:
    """Return a hash of all that decides the answers."""
    files = [*inputs(job, "evaluate"), job.evaluation, *code_of(__name__)]
    return params_hash({
        **{str(number): content_hash(file) for number, file in enumerate(files)},
        "params": [job.params.student.model_dump(mode="json"), job.params.teacher.model,
                   job.params.evaluate.model_dump(mode="json"), job.params.run.precision],
    })  # fmt: skip


def _summed_up(found: Answers, prepared: Prepared, rows: Sequence[Mapping[str, Any]]) -> Answered:
    return Answered(
        {who: calibration(found.probabilities[who], found.labels) for who in PEOPLE},
        found.cost,
        {who: _other(found, who, rows) for who in PEOPLE},
        gallery(found, prepared),
    )


def _other(found: Answers, who: str, rows: Sequence[Mapping[str, Any]]) -> int:
    before = {row["path"]: row[who][1] for row in rows}
    now = found.probabilities[who].argmax(axis=1).tolist()
    return sum(before.get(path) != best for (path, _), best in zip(found.items, now, strict=True))
