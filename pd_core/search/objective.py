"""Objectives of a search: what may be looked at, as prepared data sets without test images.

Every objective is an accuracy on the validation list of one or several copies of the prepared data
set. The copies have no test image, and all that a trial trains and measures reads only them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from pd_core.core.errors import BadData
from pd_core.core.hooks import NO_HOOKS
from pd_core.core.options import Computed
from pd_core.data.loading.prepared import (
    Labelled,
    Prepared,
    image_root,
    read_prepared,
    read_split,
    read_unlabelled,
    write_prepared,
)
from pd_core.data.loading.splits import Protocol
from pd_core.evaluation.cross_validate import cut
from pd_core.evaluation.evaluate import Accuracy, accuracy, predict
from pd_core.models.class_vectors import FILE, Classifier, ClassVectors, taught
from pd_core.models.clip import load_clip
from pd_core.models.teacher import Teacher
from pd_core.pipeline.stages.jobs import Job
from pd_core.training.loop.fit import Run
from pd_core.training.student.targets import TEACHER_FILE
from pd_core.training.teacher import class_vectors as vectors_stage
from pd_core.training.teacher import stage as teacher_stage

_HELD_OUT = 0.1  # of the unlabelled images, where there is no label to measure on
_MOST_HELD_OUT = 500


class Kind(StrEnum):
    """Images that candidates are measured on."""

    VALIDATION = "validation"
    CROSS_VALIDATION = "cross-validation"
    AGREEMENT = "agreement with the teacher"


_METRICS = {"hm": "harmonic mean", "base": "accuracy of base classes", "all": "accuracy"}


@dataclass(frozen=True)
class Part:
    """A copy of the prepared data set without test images, and the teacher to distil from."""

    prepared: Path  # candidates are measured on its validation list
    teacher: Path
    vectors: Path


@dataclass(frozen=True)
class Objective:
    """Mean accuracy of a candidate over the validation lists of some copies of the data set."""

    kind: Kind
    parts: tuple[Part, ...]
    images: int  # in all validation lists
    metric: str  # attribute of `Accuracy`

    @property
    def name(self) -> str:
        """Description of the objective, for tables."""
        match self.kind:
            case Kind.VALIDATION:
                return f"{_METRICS[self.metric]} on {self.images} validation images"
            case Kind.CROSS_VALIDATION:
                what, folds = _METRICS[self.metric], len(self.parts)
                return f"{what} by {folds}-fold cross-validation on the {self.images} few labels"
            case Kind.AGREEMENT:
                return f"{self.kind} on {self.images} held-out unlabelled images, no accuracy"


def make_objective(job: Job, stage: str, folder: Path) -> Objective:
    """Choose the objective of a data set, and write the copies that it reads.

    Validation labels come first, then cross-validation on the few labels, then the student's
    agreement with its teacher on unlabelled images.

    Args:
        job: of the data set, whose outputs of earlier stages are there.
        stage: `teacher` or `student`.
        folder: for the copies and, for a cross-validated student, the teachers of the folds.

    Raises:
        MissingFile: an earlier stage has not run.
        BadData: nothing can be looked at.
    """
    content = read_prepared(job.prepared, data_root=job.data_root)
    if content.val:
        return _validation(job, content, folder)
    folds: tuple[Labelled, ...] = ()
    if job.params.teacher.original is None:
        folds = cut(content.few_shot, job.params.evaluate.folds, random.Random(job.seed))
    if folds:
        return _cross_validation(job, stage, content, folds, folder)
    held_out = _held_out(content, read_unlabelled(job.prepared), job.seed)
    if stage == "student" and held_out:
        return _agreement(job, content, held_out, folder)
    raise BadData(
        f"data set '{content.dataset}' has nothing to choose a {stage} by: no validation images,"
        " and no two labels of every class for a cross-validation; add labels, or tune the student"
        " of a data set with unlabelled images"
    )


def measure(classifier: Classifier, part: Part, objective: Objective, job: Job) -> float:
    """Return a classifier's accuracy on the validation list of a part, percent."""
    content = read_prepared(part.prepared, data_root=job.data_root)
    config = job.params.evaluate.model_copy(update={"split": "val"})
    predicted = predict({"it": classifier}, content, config, job.compute, NO_HOOKS)
    numbers = accuracy(predicted.best["it"], predicted.labels, predicted.first_novel)
    return _value(numbers, objective.metric)


def _value(numbers: Accuracy, metric: str) -> float:
    return round(float(getattr(numbers, metric)), 4)


def _validation(job: Job, content: Prepared, folder: Path) -> Objective:
    part = Part(folder / "validation", job.teacher, job.vectors)
    _write(part.prepared, job)
    has_halves = content.protocol is Protocol.BASE_TO_NOVEL
    base = [label < content.base_count for _, label in content.val]
    metric = "all" if not has_halves or not any(base) else "base" if all(base) else "hm"
    return Objective(Kind.VALIDATION, (part,), len(content.val), metric)


def _cross_validation(
    job: Job, stage: str, content: Prepared, folds: tuple[Labelled, ...], folder: Path
) -> Objective:
    parts = []
    for number, held_out in enumerate(folds, start=1):
        place = folder / f"fold-{number}"
        part = Part(place / "prepared", place / "teacher", place / "class_vectors")
        taken = {path for path, _ in held_out}
        few = [row for row in content.few_shot if row[0] not in taken]
        _write(part.prepared, job, few_shot=few, val=held_out)
        if stage == "student":
            _train_teacher(job, part)
        parts.append(part)
    metric = "base" if content.protocol is Protocol.BASE_TO_NOVEL else "all"
    return Objective(Kind.CROSS_VALIDATION, tuple(parts), len(content.few_shot), metric)


def _train_teacher(job: Job, part: Part) -> None:
    """Train the teacher of a fold, unless an earlier search has done so."""
    if (part.vectors / FILE).is_file():
        return
    teacher, compute = job.params.teacher, job.compute
    config = teacher.model_copy(update={"frozen_features": Computed.ONLINE})
    teacher_stage.run(part.prepared, part.teacher, config, Run(compute))
    vectors_stage.run(
        part.prepared, part.teacher, part.vectors, model=teacher.model, weights=teacher.weights,
        threads=compute.threads, device=compute.device,
    )  # fmt: skip


def _agreement(job: Job, content: Prepared, held_out: list[str], folder: Path) -> Objective:
    """Hold out unlabelled images, whose labels are the teacher's predictions."""
    part = Part(folder / "agreement", job.teacher, job.vectors)
    vectors = ClassVectors.load(job.vectors / FILE, remedy=_again(job))
    rest = sorted({*read_unlabelled(job.prepared)} - {*held_out})
    unknown = replace(content, val=tuple((path, 0) for path in held_out))
    clip, compute = job.params.teacher, job.compute
    towers = load_clip(clip.model, clip.weights, device=compute.device)
    teacher = Teacher.load(job.teacher / TEACHER_FILE, towers, remedy=_again(job))
    config = job.params.evaluate.model_copy(update={"split": "val"})
    predicted = predict(
        {"teacher": taught(teacher, vectors.to(compute.device))}, unknown, config, compute, NO_HOOKS
    )
    labels = predicted.best["teacher"][:, 1]
    rows = [(path, int(label)) for (path, _), label in zip(predicted.items, labels, strict=True)]
    _write(part.prepared, job, val=rows, unlabelled=rest)
    return Objective(Kind.AGREEMENT, (part,), len(rows), "all")


def _held_out(content: Prepared, unlabelled: Iterable[str], seed: int) -> list[str]:
    """Draw unlabelled images, which must not be test images (`prepare.transductive`)."""
    tested = {path for path, _ in content.test}
    candidates = sorted({*unlabelled} - tested)
    count = min(_MOST_HELD_OUT, round(_HELD_OUT * len(candidates)))
    return random.Random(seed).sample(candidates, count)


def _write(folder: Path, job: Job, *, unlabelled: list[str] | None = None, **lists: Any) -> None:
    """Write a copy of the prepared data set without its test images."""
    content = read_split(job.prepared)
    content["images"] = str(image_root(job.prepared, data_root=job.data_root).resolve())
    content |= {"test": [], **lists}
    folder.mkdir(parents=True, exist_ok=True)
    write_prepared(folder, content, unlabelled or read_unlabelled(job.prepared))


def _again(job: Job) -> str:
    return f"run `dvc repro class_vectors@{job.vectors.name}`"
