"""Table of open_clip's models: their sizes, their cost, and their roles in a distillation."""

from __future__ import annotations

from collections.abc import Iterable

from pd_core.core.options import TeacherMethod, Trained
from pd_core.models.model_table import ModelRow
from pd_core.reporting.tables import NONE, Column, Table


def markdown(rows: Iterable[ModelRow]) -> str:
    """Return a table of models."""
    words = [Column(head, words=True) for head in ("teacher", "student", "ONNX", "tags")]
    heads: list[str | Column] = [
        "model",
        "image tower, M",
        "text tower, M",
        "GFLOPs",
        "pixels",
        *words,
    ]
    body = [(f"`{row.name}`", *cells(row), ", ".join(row.tags) or NONE) for row in rows]
    return Table(heads, body).markdown()


def cells(row: ModelRow) -> tuple[str, ...]:
    """Return parameters of both towers, GFLOPs, pixels, teacher, student and ONNX of a model."""
    return (
        _number(row.image_mparams),
        NONE if row.text_mparams is None else _number(row.text_mparams),
        _number(row.gflops),
        str(row.image_size),
        _teacher(row),
        "prompts" if Trained.PROMPTS_AND_PROJECTOR in row.student else NONE,
        "yes" if row.onnx else "no",
    )


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _teacher(row: ModelRow) -> str:
    if TeacherMethod.PROMPTSRC in row.teacher:
        return "prompts"
    return "CoOp" if TeacherMethod.COOP in row.teacher else NONE
