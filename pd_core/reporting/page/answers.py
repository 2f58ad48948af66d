"""Predictions of teacher and student on the test images, and images on which they differ."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.prepared import Labelled, Prepared
from pd_core.evaluation.evaluate import judge
from pd_core.mlops.predictor import STUDENT_FILE
from pd_core.models.class_vectors import FILE as VECTORS_FILE
from pd_core.models.class_vectors import Classifier, ClassVectors, distilled
from pd_core.models.clip import load_clip
from pd_core.models.precision import set_threads
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.pipeline.stages.layout import Job
from pd_core.reporting.page import cost
from pd_core.reporting.page.cost import Cost

if TYPE_CHECKING:
    from PIL import Image

    from pd_core.data.loading.prepared import Prepared

TEACHER_FILE = "teacher.safetensors"
PEOPLE = ("teacher", "student")
AT_A_TIME = 2
"""Data sets whose models answer together; they share the cores."""


@dataclass(frozen=True)
class Loaded:
    """A classifier, the side of its pictures in pixels, and what it costs."""

    classifier: Classifier
    image_size: int
    cost: Cost


@dataclass(frozen=True)
class Answers:
    """What teacher and student say about N test pictures and C classes.

    Attributes:
        items: path and label of each picture.
        probabilities: (N, C) by who, among all classes.
        cost: by who.
    """

    items: Labelled
    probabilities: dict[str, NDArray[np.float64]]
    cost: dict[str, Cost]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels (N,)."""
        return np.array([label for _, label in self.items])


def load(job: Job, who: str) -> Loaded:
    """Load the `teacher` or the `student` of a job.

    Raises:
        PdError: what the stages wrote is not there, or does not fit together.
    """
    again = f"run `dvc repro class_vectors@{job.vectors.name}`"
    vectors = ClassVectors.load(job.vectors / VECTORS_FILE, remedy=again).to(job.device)
    classes = len(vectors.names)
    if who == "teacher":
        clip = load_clip(job.params.teacher.model, job.params.teacher.weights, device=job.device)
        again = f"run `dvc repro teacher@{job.teacher.name}`"
        tuned = Teacher.load(job.teacher / TEACHER_FILE, clip, remedy=again)
        classifier = Classifier(tuned.image_features, vectors, tuned.logit_scale)
        return Loaded(classifier, clip.image_size, cost.of_teacher(tuned, classes))
    clip = load_clip(job.params.student.model, job.params.student.weights, device=job.device)
    again = f"run `dvc repro student@{job.student.name}`"
    student = Student.load(job.student / STUDENT_FILE, clip, remedy=again)
    return Loaded(distilled(student, vectors), clip.image_size, cost.of_student(student, classes))


def answers(job: Job, prepared: Prepared) -> Answers:
    """Let teacher and student answer all test pictures of a data set, as `evaluate` did.

    Raises:
        PdError: pictures or what the stages wrote are not there.
    """
    computing = job.params.run
    # The page is no result: its last bits do not matter.
    set_threads(max(1, (os.cpu_count() or 1) // AT_A_TIME))
    loaded = {who: load(job, who) for who in PEOPLE}
    judged = judge(
        {who: one.classifier for who, one in loaded.items()},
        prepared,
        split=job.params.evaluate.split,
        image_size=loaded["student"].image_size,
        batch_size=job.params.evaluate.batch_size,
        workers=computing.workers,
        device=loaded["teacher"].classifier.vectors.vectors.device,
        precision=computing.precision,
        on_corrupt=computing.on_corrupt,
    )
    return Answers(
        judged.items,
        {who: _softmax(logits) for who, logits in judged.logits.items()},
        {who: one.cost for who, one in loaded.items()},
    )


def likeliest(
    row: NDArray[np.float64], names: Sequence[str], count: int
) -> tuple[tuple[str, float], ...]:
    """Name the likeliest classes of one picture with their probabilities (C,)."""
    best = np.argsort(-row, kind="stable")[:count]
    return tuple((names[label], round(float(row[label]), 4)) for label in best)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


_PICTURES, _TOP = 8, 3
_SIDE = 96  # pixels; a smaller picture stays as it is


@dataclass(frozen=True)
class Shown:
    """A picture, and what both say of it.

    Attributes:
        path: of the picture in its data set.
        name: its class.
        top: by who, the likeliest classes with their probabilities.
        data: the picture, small, as a `data:` address.
    """

    path: str
    name: str
    top: dict[str, tuple[tuple[str, float], ...]]
    data: str


@dataclass(frozen=True)
class Gallery:
    """Where teacher and student name different classes.

    Attributes:
        images: how many were compared.
        teacher_right: those on which they differ and the teacher is right.
        student_right: those on which they differ and the student is right.
        both_wrong: the rest of those on which they differ.
        shown: some of these, evenly spread over the test list.
    """

    images: int
    teacher_right: int
    student_right: int
    both_wrong: int
    shown: tuple[Shown, ...]


def gallery(answers: Answers, prepared: Prepared) -> Gallery:
    """Choose pictures on which teacher and student differ.

    Raises:
        PdError: a picture is not there.
    """
    teacher, student = (answers.probabilities[who].argmax(axis=1) for who in PEOPLE)
    labels = answers.labels
    differ = teacher != student
    teachers, students = (int((differ & (one == labels)).sum()) for one in (teacher, student))
    places = np.flatnonzero(differ).tolist()
    store = ImageStore(prepared.images)
    return Gallery(
        len(labels),
        teachers,
        students,
        len(places) - teachers - students,
        tuple(_shown(answers, place, prepared.classes, store) for place in _spread(places)),
    )


def _spread(places: Sequence[int]) -> list[int]:
    count = min(_PICTURES, len(places))
    return [places[number * len(places) // count] for number in range(count)]


def _shown(answers: Answers, place: int, names: Sequence[str], store: ImageStore) -> Shown:
    path, label = answers.items[place]
    top = {who: likeliest(answers.probabilities[who][place], names, _TOP) for who in PEOPLE}
    return Shown(path, names[label], top, _address(store.open(path)))


def _address(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    small.save(file, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
