"""Test pictures on which teacher and student differ."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pd_core.data.decode import ImageStore
from pd_core.page.answering import PEOPLE, Answers, likeliest

if TYPE_CHECKING:
    from PIL import Image

    from pd_core.data.prepared import Prepared

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
