"""The page's content for one data set, from its stages' outputs; predictions are cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pd_core.core.artifacts import read_json, understood, write_json
from pd_core.core.errors import PdError
from pd_core.data.loading.prepared import Prepared, read_prepared, read_split
from pd_core.evaluation.metrics import (
    Calibration,
    Confused,
    class_accuracies,
    confusion,
    most_confused,
)
from pd_core.pipeline import code_hash
from pd_core.pipeline.provenance import content_hash, params_hash
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.stages.jobs import Job, inputs
from pd_core.reporting.page.models import PEOPLE, Answered, Cost, Gallery, answer

Curve = tuple[Mapping[str, float], ...]  # an entry an epoch: loss, accuracy or agreement, ...


@dataclass(frozen=True)
class Person:
    """What is known of a teacher or a student, all classes compared at once.

    Attributes:
        accuracy: percent.
        classes: each class's accuracy, percent; None for one without test images.
        confused: pairs of classes, the most frequent ones first.
        calibration: None if the pictures or the model are not here.
        cost: None likewise.
    """

    accuracy: float
    classes: tuple[float | None, ...]
    confused: tuple[Confused, ...]
    calibration: Calibration | None = None
    cost: Cost | None = None


@dataclass(frozen=True)
class DatasetPage:
    """One data set.

    Attributes:
        name: as in `params.yaml`.
        title: for people.
        classes: C names, by label.
        base_count: how many of the first are base classes, all where all were taught.
        images: test images of each class, by label; none where no test image has a label.
        curves: by stage, what its training wrote after each epoch.
        people: teacher and student; nobody where no test image has a label.
        gallery: None if the pictures or a model are not here.
        notes: what is missing, or does not fit, and why.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    base_count: int
    images: tuple[int, ...]
    curves: dict[str, Curve]
    people: dict[str, Person] = field(default_factory=dict)
    gallery: Gallery | None = None
    notes: tuple[str, ...] = ()

    @property
    def calibrated(self) -> bool:
        """Whether the calibration of teacher or student is known."""
        return any(person.calibration for person in self.people.values())


def gather(job: Job, folder: Path) -> DatasetPage:
    """Gather what the stages of an evaluated data set wrote, and let both models answer again.

    What is not on this machine, such as photos, is left out and noted.

    Args:
        job: the data set's.
        folder: where answers are kept until something changes.

    Raises:
        MissingFile: the data set is not prepared.
        BadArtifact: a file is damaged.
    """
    page, prepared, rows = read_stages(job)
    if not rows:
        return page
    try:
        found = _answered(job, prepared, rows, folder / f"{page.name}.json")
    except PdError as error:
        note = f"calibration, cost and pictures are left out: {masked(str(error))}"
        return replace(page, notes=(*page.notes, note))
    other = (
        f"{who}: {count} of {len(rows)} answers are not those that evaluate wrote; calibration and "
        "pictures show the present ones"
        for who, count in found.other.items()
        if count
    )
    people = {
        who: replace(person, calibration=found.calibration[who], cost=found.cost[who])
        for who, person in page.people.items()
    }
    return replace(page, people=people, gallery=found.gallery, notes=(*page.notes, *other))


def read_stages(job: Job) -> tuple[DatasetPage, Prepared, list[dict[str, Any]]]:
    """Read what the stages of an evaluated data set wrote, without asking a model.

    Returns:
        It, the data set, and the predictions of images with a label.

    Raises:
        MissingFile: the data set is not prepared.
        BadArtifact: a file is damaged.
    """
    prepared = read_prepared(job.prepared, data_root=job.data_root)
    notes: list[str] = []
    path = job.evaluation / "predictions.json"
    rows: list[dict[str, Any]] = read_json(path) if path.is_file() else []
    rows = rows if rows and "label" in rows[0] else []
    labels = np.array([row["label"] for row in rows], np.int64)
    classes = len(prepared.classes)
    page = DatasetPage(
        job.prepared.name,
        str(read_split(job.prepared)["title"]),
        prepared.classes,
        len(prepared.taught),
        tuple(np.bincount(labels, minlength=classes).tolist()) if rows else (),
        {"teacher": _curve(job.teacher, notes), "student": _curve(job.student, notes)},
        {who: _told(rows, who, classes, job.evaluation) for who in PEOPLE if rows},
    )
    if not rows:
        notes.append("no test image has a label, so nothing is compared")
    return replace(page, notes=tuple(notes)), prepared, rows


def _curve(folder: Path, notes: list[str]) -> Curve:
    """Read what a training wrote; a zero-shot teacher has no training."""
    try:
        rows = read_json(folder / "history.json", what="history", remedy="run `dvc pull`")
    except PdError as error:
        notes.append(f"no learning curve: {masked(str(error))}")
        return ()
    return tuple(rows)


def _told(rows: Sequence[Mapping[str, Any]], who: str, classes: int, folder: Path) -> Person:
    """Count what `evaluate` wrote down."""
    remedy = f"run `dvc repro evaluate@{folder.name}`"
    with understood(folder / "predictions.json", what="predictions", remedy=remedy):
        labels = np.array([row["label"] for row in rows])
        best = np.array([row[who][1] for row in rows])
    return Person(
        100 * float((labels == best).mean()),
        class_accuracies(labels, best, classes),
        most_confused(confusion(labels, best, classes)),
    )


@dataclass(frozen=True)
class _Kept:
    key: str
    answered: Answered


def _answered(
    job: Job, prepared: Prepared, rows: Sequence[Mapping[str, Any]], path: Path
) -> Answered:
    """Let teacher and student answer, or read what they answered before, by a hash of its causes.

    What was kept and cannot be read is made anew.
    """
    files = [*inputs(job, "evaluate"), job.evaluation, Path(__file__).with_name("models.py")]
    key = params_hash({
        **{str(number): content_hash(file) for number, file in enumerate(files)},
        "code": code_hash.of_stage("evaluate"),
        "params": [job.params.student.model_dump(mode="json"), job.params.teacher.model,
                   job.params.evaluate.model_dump(mode="json"), job.params.run.precision],
    })  # fmt: skip
    with suppress(OSError, ValidationError):
        kept = TypeAdapter(_Kept).validate_json(path.read_bytes())
        if kept.key == key:
            return kept.answered
    found = answer(job, prepared, rows)
    write_json(path, asdict(_Kept(key, found)))
    return found
