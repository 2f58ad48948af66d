"""List and contact sheet of the images to label next."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pd_core.core.artifacts import write_text
from pd_core.core.errors import BadData, BadParams
from pd_core.core.hooks import Hooks
from pd_core.data.acquire.contact_sheet import SheetRow, write_rows
from pd_core.data.acquire.overview import EXAMPLES
from pd_core.labelling.pool import Pool, read_pool
from pd_core.labelling.selection import Method, select
from pd_core.pipeline.stages.jobs import Job

MOST_ROWS = 500
"""Rows of a contact sheet: JPEG has no room for many more."""

LABEL = "label"
"""Column of a list that is to be filled in."""


class Suggestion(NamedTuple):
    """An image to label: a row of the list."""

    file: str  # below the images' folder
    predicted: str  # class name, by the mean of both models
    teacher: float  # its probability of this class
    student: float


def suggest(job: Job, method: Method, count: int, file: Path, hooks: Hooks) -> list[Suggestion]:
    """Choose unlabelled images to label next, and write their list, sorted by predicted class.

    The same seed gives the same images. There are fewer than `count` if all others are copies.

    Args:
        job: of the data set, whose stages have run.
        method: criterion of the choice.
        count: number of images.
        file: CSV file to write.
        hooks: progress is in images.

    Raises:
        BadParams: there are fewer unlabelled images.
        BadData: the file has labels that were not taken in.
        PdError: as `read_pool`.
    """
    pool = read_pool(job, hooks)
    if count > len(pool.paths):
        raise BadParams(
            f"count = {count}: '{job.params.name}' has {len(pool.paths)} images that may be"
            f" labelled; give a number from 1 to {len(pool.paths)}"
        )
    _check_list(file, pool.paths)
    rows = select(pool.candidates, method, count, np.random.default_rng(job.seed))
    labels = pool.candidates.predicted
    suggestions = [_suggestion(pool, row) for row in sorted(rows, key=lambda row: labels[row])]
    _write_list(suggestions, file)
    return suggestions


def _suggestion(pool: Pool, row: int) -> Suggestion:
    name = pool.classes[pool.candidates.predicted[row]]
    teacher, student = (float(values[row]) for values in pool.confidences.values())
    return Suggestion(pool.paths[row], name, round(teacher, 4), round(student, 4))


def _check_list(file: Path, unlabelled: Collection[str]) -> None:
    """Refuse to replace a list with labels of images that have none in the data set."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        labelled = {row.get("file") for row in csv.DictReader(lines) if row.get(LABEL)}
    if not labelled.isdisjoint(unlabelled):
        raise BadData(
            f"'{file}' has labels, which would be lost: take them in with `promptkd data label`"
            " and run `dvc repro`, or move the file"
        )


def _write_list(suggestions: Sequence[Suggestion], file: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "predicted", "teacher_confidence", "student_confidence", LABEL))
    writer.writerows((*suggestion, "") for suggestion in suggestions)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text.getvalue())


def write_sheet(suggestions: Sequence[Suggestion], images: Path, file: Path) -> bool:
    """Write a contact sheet, rows of a predicted class below each other, numbered as in the list.

    Args:
        suggestions: sorted by predicted class.
        images: folder or zip file of the images.
        file: the picture to write.

    Returns:
        False if the sheet has no room for all images.
    """
    rows = []
    for name, group in groupby(enumerate(suggestions, 1), key=lambda item: item[1].predicted):
        members = list(group)
        for start in range(0, len(members), EXAMPLES):
            part = members[start : start + EXAMPLES]
            span = f"images {part[0][0]} to {part[-1][0]}"
            rows.append(SheetRow("", name, span, [each.file for _, each in part]))
    write_rows(rows[:MOST_ROWS], images, file)
    return len(rows) <= MOST_ROWS
