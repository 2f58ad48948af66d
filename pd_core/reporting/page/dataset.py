"""The page's content for one data set, from its stages' outputs; predictions are cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from pd_core.core.artifacts import read_json, understood, write_json
from pd_core.core.errors import PdError
from pd_core.data.loading.prepared import Prepared, read_prepared, read_split
from pd_core.evaluation.metrics import (
    Calibration,
    Confused,
    calibration,
    class_accuracies,
    confusion,
    most_confused,
)
from pd_core.pipeline import code_hash
from pd_core.pipeline.provenance import content_hash, params_hash
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.stages.layout import Job, inputs
from pd_core.reporting.page.answers import PEOPLE, Answers, Gallery, answers, gallery
from pd_core.reporting.page.cost import Cost


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
    files = [*inputs(job, "evaluate"), job.evaluation, Path(__file__)]
    return params_hash({
        **{str(number): content_hash(file) for number, file in enumerate(files)},
        "code": code_hash.of_stage("evaluate"),
        "params": [job.params.student.model_dump(mode="json"), job.params.teacher.model,
                   job.params.evaluate.model_dump(mode="json"), job.params.run.precision],
    })  # fmt: skip


def _summed_up(found: Answers, prepared: Prepared, rows: Sequence[Mapping[str, Any]]) -> Answered:
    return Answered(
        {who: calibration(found.probabilities[who], found.labels) for who in PEOPLE},
        found.cost,
        {who: _unlike(found, who, rows) for who in PEOPLE},
        gallery(found, prepared),
    )


def _unlike(found: Answers, who: str, rows: Sequence[Mapping[str, Any]]) -> int:
    before = {row["path"]: row[who][1] for row in rows}
    now = found.probabilities[who].argmax(axis=1).tolist()
    return sum(before.get(path) != best for (path, _), best in zip(found.items, now, strict=True))


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
    page, prepared, rows = _read(job)
    if not rows:
        return page
    try:
        found = answered(job, prepared, rows, folder)
    except PdError as error:
        note = f"calibration, cost and pictures are left out: {masked(str(error))}"
        return replace(page, notes=(*page.notes, note))
    return replace(
        page,
        people=_with_answers(page.people, found),
        gallery=found.gallery,
        notes=(*page.notes, *_other(found, len(rows))),
    )


def written(job: Job) -> DatasetPage:
    """Gather what the stages of an evaluated data set wrote, without asking a model.

    Raises:
        MissingFile: the data set is not prepared.
        BadArtifact: a file is damaged.
    """
    return _read(job)[0]


def shares(page: DatasetPage, who: str) -> NDArray[np.float64]:
    """Return a confusion matrix (C, C) as shares of each class's images, 0 to 1."""
    person = page.people[who]
    cells = np.diag([(one or 0.0) / 100 for one in person.classes])
    for pair in person.confused:
        cells[pair.label, pair.taken_for] = pair.count / page.images[pair.label]
    return cells


def _read(job: Job) -> tuple[DatasetPage, Prepared, list[dict[str, Any]]]:
    """Return what the stages wrote, the data set, and the predictions with labels."""
    prepared = read_prepared(job.prepared, data_root=job.data_root)
    notes: list[str] = []
    rows = _predictions(job)
    classes = len(prepared.classes)
    page = DatasetPage(
        job.prepared.name,
        str(read_split(job.prepared)["title"]),
        prepared.classes,
        len(prepared.taught),
        _images(rows, classes),
        {stage: _curve(folder, notes) for stage, folder in _trainings(job).items()},
        {who: _told(rows, who, classes, job.evaluation) for who in PEOPLE if rows},
    )
    if not rows:
        notes.append("no test image has a label, so nothing is compared")
    return replace(page, notes=tuple(notes)), prepared, rows


def _trainings(job: Job) -> dict[str, Path]:
    return {"teacher": job.teacher, "student": job.student}


def _curve(folder: Path, notes: list[str]) -> Curve:
    """Read what a training wrote; a zero-shot teacher has no training."""
    try:
        rows = read_json(folder / "history.json", what="history", remedy="run `dvc pull`")
    except PdError as error:
        notes.append(f"no learning curve: {masked(str(error))}")
        return ()
    return tuple(rows)


def _predictions(job: Job) -> list[dict[str, Any]]:
    """Read the predictions; none where no test image has a label."""
    path = job.evaluation / "predictions.json"
    rows: list[dict[str, Any]] = read_json(path) if path.is_file() else []
    return rows if rows and "label" in rows[0] else []


def _images(rows: Sequence[Mapping[str, Any]], classes: int) -> tuple[int, ...]:
    labels = np.array([row["label"] for row in rows], np.int64)
    return tuple(np.bincount(labels, minlength=classes).tolist()) if rows else ()


def _told(rows: Sequence[Mapping[str, Any]], who: str, classes: int, folder: Path) -> Person:
    """Count what `evaluate` wrote down."""
    remedy = f"run `dvc repro evaluate@{folder.name}`"
    with understood(folder / "predictions.json", what="predictions", remedy=remedy):
        labels = np.array([row["label"] for row in rows])
        best = np.array([row[who][1] for row in rows])
    cells = confusion(labels, best, classes)
    return Person(
        100 * float((labels == best).mean()),
        class_accuracies(labels, best, classes),
        most_confused(cells),
    )


def _with_answers(told: Mapping[str, Person], found: Answered) -> dict[str, Person]:
    return {
        who: replace(person, calibration=found.calibration[who], cost=found.cost[who])
        for who, person in told.items()
    }


def _other(found: Answered, images: int) -> list[str]:
    """Note where the models no longer answer what `evaluate` wrote."""
    return [
        f"{who}: {count} of {images} answers are not those that evaluate wrote; calibration and "
        "pictures show the present ones"
        for who, count in found.other.items()
        if count
    ]
