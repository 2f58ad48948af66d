"""The user's own images before any training: class names for the models, and what there is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pd_core.core.options import TeacherMethod
from pd_core.pipeline.stages.params import DATA, PARAMS, load_params

if TYPE_CHECKING:
    from pd_core.data.acquire.overview import Overview

SHEETS = DATA / "contact_sheets"
"""Folder of the contact sheets, one a data set."""


def check_classes(dataset: str, names: Sequence[str]) -> list[str]:
    """Check the class names of a data set for the models in params.yaml; weights are not needed.

    Returns:
        A line for each text that a model truncates.

    Raises:
        BadParams: classes have the same text for a model.
    """
    from pd_core.models import class_texts
    from pd_core.models.clip import local_tokenizer

    params = load_params(PARAMS).for_dataset(dataset)
    teacher, student = params.teacher, params.student
    length = 0 if teacher.method is TeacherMethod.CLIP else teacher.text_length
    notes = []
    for model, template, prompt_length in (
        (student.model, class_texts.TEMPLATE, 0),
        (teacher.model, teacher.template, length),
    ):
        if tokenize := local_tokenizer(model):
            notes += class_texts.check_classes(
                names, model, tokenize, template=template, prompt_length=prompt_length
            )
    return notes


def describe(dataset: str, overview: Overview, images: Path, project: Path = Path()) -> list[str]:
    """Write the contact sheet of a data set; return the lines that describe the data set.

    Args:
        dataset: Name of the data set.
        overview: Of its images.
        images: Folder that their paths are below.
        project: Folder of the project (default: the current one).
    """
    from pd_core.data.acquire.contact_sheet import write_sheet

    file = project / SHEETS / f"{dataset}.jpg"
    limits = write_sheet(overview, images, file)
    return [*overview.lines(), f"  contact sheet: {file}", *(f"  {line}" for line in limits)]
