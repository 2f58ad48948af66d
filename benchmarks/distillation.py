"""A step of distillation, from the images to the optimiser's step.

Ours computes the class vectors before, and the teacher's logits online or from a cache. The
reference computes both at every step.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trainings
from torch import Tensor

from benchmarks import reference
from benchmarks.outcome import Outcome, Row
from benchmarks.sizes import (
    LARGE,
    SMALL,
    TINY_LARGE,
    TINY_SMALL,
    build,
    class_names,
    images,
    optimizer,
    record,
)
from benchmarks.timing import Note, Turns, Work, check_agreement, take_turns
from pd_core.models import class_vectors
from pd_core.models.class_vectors import ClassVectors
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher

REFERENCE, ONLINE, CACHED = "reference", "ours, online", "ours, cached"


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmark.

    Attributes:
        compared: classes of the step that is compared with the reference.
        others: numbers of classes that our step should not notice.
        rounds: of the comparison with the reference.
        more_rounds: of the numbers of classes, which are to differ by less.
    """

    teacher: str = LARGE
    student: str = SMALL
    batch: int = 8
    compared: int = 100
    others: tuple[int, ...] = (10, 1000)
    rounds: int = 3
    more_rounds: int = 5


REAL = Size()
TINY = Size(TINY_LARGE, TINY_SMALL, batch=4, compared=5, others=(3, 8), rounds=2, more_rounds=2)


def measure(size: Size, note: Note) -> Outcome:
    """Measure the step."""
    teacher = Teacher.untrained(build(size.teacher)).eval()
    students = build(size.student)
    views = images(students, size.batch)
    note("computes the class vectors")
    vectors = {
        count: class_vectors.build(teacher, class_names(count))
        for count in sorted({size.compared, *size.others})
    }

    def student() -> Student:
        width = teacher.towers.joint_width
        return Student.untrained(students, feature_width=width, seed=1).train()

    def ask(count: int) -> Callable[[], Tensor]:
        return lambda: trainings.live(teacher, vectors[count]).logits(trainings.batch(views))

    with tempfile.TemporaryDirectory() as folder:
        cached = record(
            Path(folder),
            views,
            trainings.live(teacher, vectors[size.compared]).logits,
            width=size.compared,
        )
        batch = trainings.batch(views)
        compared = vectors[size.compared]
        sides: dict[str, Work] = {
            ONLINE: ours(student(), views, ask(size.compared), compared),
            CACHED: ours(student(), views, lambda: cached.at(batch), compared),
            REFERENCE: plain(teacher, student(), views, list(compared.names)),
        }
        turns = take_turns(sides, rounds=size.rounds, note=note)
    check_agreement(turns.values)
    by_classes = {
        _with(count): ours(student(), views, ask(count), vectors[count]) for count in vectors
    }
    growing = take_turns(by_classes, rounds=size.more_rounds, note=note)
    return Outcome((*_rows(size, turns), *_growth(size, growing)))


def ours(
    student: Student, views: Tensor, targets: Callable[[], Tensor], vectors: ClassVectors
) -> Work:
    """Make our step: `targets` are the teacher's logits (B, C)."""
    sgd = optimizer(student)

    def step() -> float:
        return reference.step(
            sgd, lambda: trainings.distillation_step(student, views, targets(), vectors).loss
        )

    return step


def plain(teacher: Teacher, student: Student, views: Tensor, names: list[str]) -> Work:
    """Make the reference's step."""
    sgd = optimizer(student)
    tokens = reference.tokenize(teacher.towers, teacher.texts(names))

    def step() -> float:
        return reference.step(
            sgd, lambda: reference.distillation_loss(teacher, student, views, tokens)
        )

    return step


def _with(count: int) -> str:
    return f"ours, online, {count} classes"


def _rows(size: Size, turns: Turns) -> list[Row]:
    step = f"step, batch {size.batch}, {size.compared} classes"
    return [
        turns.row(f"{step}, online", ONLINE, REFERENCE, most=0.62),
        turns.row(f"{step}, cached", CACHED, REFERENCE, most=0.26),
    ]


def _growth(size: Size, turns: Turns) -> list[Row]:
    return [
        turns.row(
            f"our step, {count} against {size.compared} classes",
            _with(count), _with(size.compared), least=0.95, most=1.05,
        )
        for count in size.others
    ]  # fmt: skip
