"""Check of class names for the models in params.yaml."""

from collections.abc import Sequence
from pathlib import Path

from pd_core.core.options import TeacherMethod
from pd_core.data.catalog.own import read_own
from pd_core.models import class_texts
from pd_core.models.clip import local_tokenizer
from pd_core.pipeline.stages.params import DatasetParams


def check_classes(params: DatasetParams, names: Sequence[str]) -> list[str]:
    """Check class names for the models of a data set; weights are not needed.

    Returns:
        A line for each text that a model truncates.

    Raises:
        BadParams: classes have the same text for a model.
    """
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


def check_own_classes(params: DatasetParams, data_root: Path) -> list[str]:
    """Check the classes of the user's own images, if any; as `check_classes`."""
    if params.prepare.own is None:
        return []
    names = read_own(params.prepare.own, data_root).class_names
    return [f"{params.name}: {line}" for line in check_classes(params, names)]
