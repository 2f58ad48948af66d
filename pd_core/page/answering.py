"""Teacher and student, loaded once more from what the stages wrote, and their answers.

`predictions.json` has the best classes alone. Confidence, the classes behind the best one, and
what a picture costs need the models, not their training.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pd_core.class_vectors import FILE as VECTORS_FILE
from pd_core.class_vectors import ClassVectors
from pd_core.classifier import Classifier, distilled
from pd_core.data.prepared import Labelled, Prepared
from pd_core.evaluate import judge
from pd_core.layout import Job
from pd_core.models.clip import load_clip
from pd_core.models.compute import set_threads
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.page import cost
from pd_core.page.cost import Cost
from pd_core.predictor import STUDENT_FILE

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
