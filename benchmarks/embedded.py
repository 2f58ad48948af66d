"""The trainings of the embedded benchmark, end to end, by the stages and by the plain path.

Ours is what `dvc repro` runs, with the committed numbers, from loading the models to the files.
The stage `student` shows the same views again after some epochs, and remembers what the teacher
said; the plain path makes new views, and asks, in every epoch.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import stages
from benchmarks.outcome import Outcome
from benchmarks.timing import Note, Turns, Work, check_agreement, take_turns
from pd_core.core.options import Computed
from pd_core.pipeline.stages import jobs

OURS, CACHED, REFERENCE = "ours", "ours, recorded before", "reference"


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmark.

    Attributes:
        teacher_epochs: of the tuning.
        student_epochs: of the distillation.
        per_class: unlabelled pictures of each class; None for all.
        templates: of the teacher's frozen text features.
        short: whether this is too short for a student to learn anything.
    """

    teacher_epochs: int = 4
    student_epochs: int = 8
    per_class: int | None = None
    short: bool = False
    templates: int = 60
    rounds: int = 3


REAL = Size()
TINY = Size(teacher_epochs=1, student_epochs=1, per_class=1, short=True, templates=2, rounds=1)


def measure(size: Size, note: Note) -> Outcome:
    """Measure both trainings."""
    with tempfile.TemporaryDirectory() as name, stages.unchecked(on=size.short):
        teachers = _teachers(size, Path(name), note)
        students = _students(size, Path(name), note)
    tuning = f"tuning of the teacher, {stages.DATASET}, epochs: {size.teacher_epochs}"
    distillation = f"distillation, {stages.DATASET}, epochs: {size.student_epochs}"
    rows = [
        teachers.row(tuning, OURS, REFERENCE),
        students.row(distillation, OURS, REFERENCE),
        students.row(f"{distillation}, all answers recorded before", CACHED, REFERENCE),
    ]
    return Outcome(tuple(rows), remarks=("one thread, as the committed numbers have it",))


def _teachers(size: Size, folder: Path, note: Note) -> Turns:
    job = stages.make_job(
        folder, per_class=size.per_class, teacher_epochs=size.teacher_epochs,
        teacher_gpa_mean=size.teacher_epochs, teacher_templates=size.templates,
    )  # fmt: skip
    jobs.prepare(job)
    sides: dict[str, Work] = {
        OURS: lambda: stages.teacher(job), REFERENCE: lambda: stages.plain_teacher(job)
    }  # fmt: skip
    turns = take_turns(sides, rounds=size.rounds, note=_named(note, "teacher"), warm_up=False)
    check_agreement(turns.values, within=0.01)
    return turns


def _students(size: Size, folder: Path, note: Note) -> Turns:
    job = stages.make_job(folder, per_class=size.per_class, student_epochs=size.student_epochs)
    cached = stages.make_job(
        folder, per_class=size.per_class, features=folder / "features",
        student_epochs=size.student_epochs, student_teacher_targets=Computed.CACHED,
    )  # fmt: skip
    note("student: records the teacher's answers")
    stages.student(cached)
    sides: dict[str, Work] = {
        OURS: lambda: stages.student(job),
        CACHED: lambda: stages.student(cached),
        REFERENCE: lambda: stages.plain_student(job),
    }
    turns = take_turns(sides, rounds=size.rounds, note=_named(note, "student"), warm_up=False)
    check_agreement(turns.values, within=0.01)
    return turns


def _named(note: Note, name: str) -> Note:
    return lambda line: note(f"{name}: {line}")
