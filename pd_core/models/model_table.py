"""Open_clip's models: their sizes, their cost, and their roles in a distillation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pd_core.core.artifacts import read_json
from pd_core.models.pretrained import published, tags_of

FILE = Path(__file__).with_name("open_clip_models.json")
"""Measurements of all models, written by `recipes/model_table.py`."""


@dataclass(frozen=True)
class ModelRow:
    """A model of open_clip.

    Attributes:
        name: of the model.
        image_size: side of its images, in pixels.
        image_mparams: parameters of the image tower, in millions.
        text_mparams: parameters of the text tower; None if that has to be downloaded.
        gflops: of one image in the image tower; a multiplication and an addition are two.
        teacher: methods for a teacher; `clip` is the zero-shot model.
        student: parts of a student that can be trained.
        onnx: torch can export the image tower.
        text_model: text tower of the package transformers; None if it is open_clip's.
        tokenizer: tokenizer of the package transformers; None if it is open_clip's.
    """

    name: str
    image_size: int
    image_mparams: float
    text_mparams: float | None
    gflops: float
    teacher: tuple[str, ...]
    student: tuple[str, ...]
    onnx: bool
    text_model: str | None
    tokenizer: str | None

    @property
    def tags(self) -> list[str]:
        """Tags of weights that were trained with this model's activation."""
        return [tag for tag in tags_of(self.name) if published(self.name, tag).model == self.name]

    def as_json(self) -> dict[str, Any]:
        """Return all values, with the tags."""
        return {**vars(self), "tags": self.tags}


def model_rows() -> dict[str, ModelRow]:
    """Return all models by name, in open_clip's order."""
    rows = {}
    for name, values in read_json(FILE).items():
        roles = {key: tuple(values[key]) for key in ("teacher", "student")}
        rows[name] = ModelRow(name, **{**values, **roles})
    return rows
