"""What it costs to classify one picture: parameters and floating point operations.

A multiplication and an addition count as two operations, as in torch's counter. Class vectors are
stored, so text towers cost nothing here.

Shapes: P patches, n prompts a layer, W the tower's width, d its joint width, D the teacher's, C
classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from pd_core.models.prompts import ImagePrompts
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher


@dataclass(frozen=True)
class Cost:
    """What classifying takes.

    Attributes:
        model: name of the CLIP.
        parameters: of image tower, prompts and projector.
        trained: those of them that were trained.
        operations: floating point operations for one picture.
    """

    model: str
    parameters: int
    trained: int
    operations: int


def of_student(student: Student, classes: int) -> Cost:
    """Count what a student costs that is compared with C class vectors."""
    tower = student.towers.visual if student.tower is None else student.tower
    layers = [part for part in student.projector if isinstance(part, nn.Linear)]
    added = _count(student.projector.parameters()) + _prompts(student.image_prompts)
    whole = _count(tower.parameters())
    return Cost(
        student.towers.name,
        whole + added,
        added if student.tower is None else added + whole,
        image_operations(tower, student.image_prompts)
        + sum(2 * layer.in_features * layer.out_features for layer in layers)
        + 2 * classes * int(layers[-1].out_features),
    )


def of_teacher(teacher: Teacher, classes: int) -> Cost:
    """Count what a teacher costs whose C class vectors are stored."""
    tower, added = teacher.towers.visual, _prompts(teacher.image_prompts)
    return Cost(
        teacher.towers.name,
        _count(tower.parameters()) + added,
        added,
        image_operations(tower, teacher.image_prompts) + 2 * classes * teacher.towers.joint_width,
    )


def image_operations(tower: Any, prompts: ImagePrompts | None) -> int:
    """Count the operations of an image tower on one picture, as `prompts.encode_image` drives it.

    Counted are convolution, matrix products and attention, which are all but some thousandths.

    Args:
        tower: open_clip's `VisionTransformer`.
        prompts: of the tower; their last row stays behind the deepest layer that has one.
    """
    width, patches = int(tower.transformer.width), prod(tower.grid_size)
    tokens = 1 + patches + (prompts.length if prompts is not None and prompts.depth else 0)
    blocks = tower.transformer.resblocks
    last = 1 if tower.pool_type == "tok" else tokens  # of the last block only the class token
    embedding = 2 * 3 * prod(tower.patch_size) * width * patches
    projection = 0 if tower.proj is None else 2 * width * int(tower.output_dim)
    return int(
        embedding
        + sum(_block(block, width, tokens, tokens) for block in blocks[:-1])
        + _block(blocks[-1], width, tokens, last)
        + projection
    )


def _block(block: Any, width: int, keys: int, queries: int) -> int:
    """Count a residual block: keys and values of all tokens, the rest of the queries alone."""
    hidden = int(block.mlp.c_fc.out_features)
    linear = 2 * keys + 2 * queries  # key, value; query, output
    attention = 2 * queries * keys  # scores, mixture
    return 2 * width * (linear * width + attention + 2 * queries * hidden)


def _prompts(prompts: ImagePrompts | None) -> int:
    return 0 if prompts is None else prompts.tokens.numel()


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
