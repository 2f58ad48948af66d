"""Cost of our steps and stages by the number of classes, images and epochs."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import promptsrc, stages
from benchmarks.outcome import Outcome, Row, Series
from benchmarks.sizes import SMALL, TINY_SMALL, build, images
from benchmarks.timing import Line, Note, Turns, Work, take_turns
from pd_core.core.options import Computed
from pd_core.data.loading.prepared import read_unlabelled
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job

PROMPTSRC, ONLINE = "step of PromptSRC", "distillation, online"
ONE = {"classes": "class", "pictures": "picture", "epochs": "epoch"}
FIRST, AGAIN = "distillation, recording first", "distillation, recorded before"


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmark.

    Attributes:
        model: of the PromptSRC step.
        classes: of the PromptSRC step.
        per_class: unlabelled pictures of each class, in a distillation of one epoch.
        epochs: of a distillation with the smallest number of pictures.
        templates: of the teacher, which is not measured.
    """

    model: str = SMALL
    batch: int = 4
    classes: tuple[int, ...] = (10, 50, 100, 200)
    per_class: tuple[int, ...] = (6, 12, 24)
    epochs: tuple[int, ...] = (1, 2, 4)
    templates: int = 60
    rounds: int = 3


REAL = Size()
TINY = Size(TINY_SMALL, 2, classes=(3, 4), per_class=(1, 2), epochs=(1, 2), templates=2, rounds=1)


def measure(size: Size, note: Note) -> Outcome:
    """Measure all series, and put a line through each."""
    series = [_by_classes(size, note)]
    # Trainings of an epoch teach no student anything.
    with tempfile.TemporaryDirectory() as name, stages.unchecked(on=True):
        folder = Path(name)
        tuned = _prepared(
            folder, size.per_class[0], teacher_epochs=1, teacher_gpa_mean=1,
            teacher_templates=size.templates,
        )  # fmt: skip
        jobs.teacher(tuned)
        series.append(_by_pictures(size, folder, note))
        series += _by_epochs(size, folder, note)
    return Outcome(tuple(map(_row, series)), tuple(series))


def _by_classes(size: Size, note: Note) -> Series:
    towers = build(size.model)
    views = images(towers, size.batch)
    sides = {f"{n} classes": promptsrc.ours(towers, views, n) for n in size.classes}
    turns = take_turns(sides, rounds=size.rounds, note=note)
    return _series(PROMPTSRC, "classes", turns, size.classes, lambda n: f"{n} classes")


def _by_pictures(size: Size, folder: Path, note: Note) -> Series:
    counts = {}
    sides: dict[str, Work] = {}
    for per_class in size.per_class:
        job = _prepared(folder, per_class, student_epochs=1)
        count = len(read_unlabelled(job.prepared))
        counts[count] = f"{count} pictures"
        sides[counts[count]] = _distilled(job)
    turns = take_turns(sides, rounds=size.rounds, note=note)
    return _series(f"{ONLINE}, 1 epoch", "pictures", turns, list(counts), counts.__getitem__)


def _by_epochs(size: Size, folder: Path, note: Note) -> list[Series]:
    per_class = size.per_class[0]
    sides: dict[str, Work] = {}
    for epochs in size.epochs:
        online = _prepared(folder, per_class, student_epochs=epochs)
        sides[_with(ONLINE, epochs)] = _distilled(online)
        sides[_with(FIRST, epochs)] = _recording(folder, per_class, epochs)
        sides[_with(AGAIN, epochs)] = _distilled(_cached(folder, per_class, epochs))
    turns = take_turns(sides, rounds=size.rounds, note=note)
    return [
        _series(side, "epochs", turns, size.epochs, lambda n, side=side: _with(side, n))  # type: ignore[misc]
        for side in (ONLINE, FIRST, AGAIN)
    ]


def _prepared(folder: Path, per_class: int, **changes: Any) -> Job:
    """Describe the stages on some of the images, and prepare them."""
    job = stages.make_job(folder / f"of-{per_class}", per_class=per_class, **changes)
    if not job.prepared.is_dir():
        jobs.prepare(job)
        made = folder / f"of-{per_class}" / "teacher"
        first = next(folder.glob("of-*/teacher"), made)
        if first != made:  # one teacher for all
            made.symlink_to(first)
    return job


def _cached(folder: Path, per_class: int, epochs: int) -> Job:
    return stages.make_job(
        folder / f"of-{per_class}", per_class=per_class, features=folder / f"features-{epochs}",
        student_epochs=epochs, student_teacher_targets=Computed.CACHED,
    )  # fmt: skip


def _recording(folder: Path, per_class: int, epochs: int) -> Work:
    """Make a distillation that caches the teacher's logits each time."""
    job = _cached(folder, per_class, epochs)

    def work() -> float:
        shutil.rmtree(folder / f"features-{epochs}", ignore_errors=True)
        return stages.student(job)

    return work


def _distilled(job: Job) -> Work:
    return lambda: stages.student(job)


def _with(side: str, epochs: int) -> str:
    return f"{side}, epochs: {epochs}"


def _series(
    name: str, size: str, turns: Turns, sizes: Sequence[int], side: Callable[[int], str]
) -> Series:
    costs = [turns.median(side(number)) for number in sizes]
    line = Line.through(sizes, costs)
    points = tuple(zip(map(float, sizes), costs, strict=True))
    return Series(name, size, points, line.describe(ONE[size]))


def _row(series: Series) -> Row:
    sizes, costs = zip(*series.points, strict=True)
    line = Line.through(sizes, costs)
    return Row(
        what=f"{series.name} by {series.size}: largest distance from a line",
        value=100 * line.residual,
        unit="%",
        note=series.line,
    )
