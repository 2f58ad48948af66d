"""Import teachers and students from checkpoints of the paper's original code.

Shapes: n prompts per layer, W a tower's width, D the teacher's joint width, d the student's.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from pd_core.core.errors import BadArtifact
from pd_core.core.options import TeacherMethod
from pd_core.models.checkpoint_io import read_checkpoint
from pd_core.models.class_texts import TEMPLATE
from pd_core.models.clip import ClipTowers
from pd_core.models.prompts import DeepPrompts
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher

_INPUT = {"text": "prompt_learner.ctx", "image": "image_encoder.VPT"}
_DEEPER = "{}_encoder.transformer.resblocks.{}.VPT_shallow"
_DEEPER_PATTERN = re.compile(
    r"(text|image)_encoder\.transformer\.resblocks\.([1-9]\d?)\.VPT_shallow"
)
_PROJECTOR = "VPT_image_trans.conv1."
_TOWERS = {"image_encoder.": "visual.", "text_encoder.": "text."}
_SCALE = "logit_scale"

# Word embeddings around the prompts, and the image tower without prompts; the towers have both.
_IGNORED = (
    "prompt_learner.token_prefix",
    "prompt_learner.token_suffix",
    "prompt_learner.ZS_image_encoder.",
)

_SCALE_ROUNDING = 1e-6  # of an exponential and its logarithm

_Model = TypeVar("_Model", Teacher, Student)


@dataclass(frozen=True)
class Imported(Generic[_Model]):
    """A model imported from a checkpoint."""

    model: _Model  # in evaluation mode
    notes: tuple[str, ...]  # log messages about it


@dataclass(frozen=True)
class _Parts:
    """The tensors of a checkpoint."""

    path: Path
    kind: str  # "teacher" or "student"
    prompts: dict[str, dict[int, Tensor]]  # (n, W) by tower and block; block 0 is the input
    projector: dict[str, Tensor] = field(default_factory=dict)  # by our keys
    backbone: dict[str, Tensor] = field(default_factory=dict)  # by the original keys


def import_teacher(
    path: Path,
    towers: ClipTowers,
    *,
    text_depth: int | None = None,
    text_length: int | None = None,
    image_depth: int | None = None,
    image_length: int | None = None,
    template: str = TEMPLATE,
) -> Imported[Teacher]:
    """Import a teacher from a checkpoint of the original code's PromptSRC, `model.pth.tar-20`.

    Frozen weights that differ from those of the fp32 towers, as after Gaussian averaging in half
    precision, are taken from the file, like in the original code. Depths and lengths of the prompts
    must be as given; a depth beyond the tower means all of its layers, None anything.

    Raises:
        MissingFile: the file does not exist.
        BadArtifact: it cannot be read, or does not fit the towers or the expected sizes.
    """
    parts = _read_parts(path, "teacher", branches=("text", "image"))
    text = _prompts(parts, "text", towers, depth=text_depth, length=text_length)
    image = _prompts(parts, "image", towers, depth=image_depth, length=image_length)
    towers, notes = _with_backbone(towers, parts)
    teacher = Teacher(towers, text, image, method=TeacherMethod.PROMPTSRC, template=template)
    return Imported(teacher.eval(), notes)


def import_student(
    path: Path,
    towers: ClipTowers,
    *,
    feature_width: int | None = None,
    image_depth: int | None = None,
    image_length: int | None = None,
) -> Imported[Student]:
    """Import a student from a checkpoint of the original code's PromptKD, `model-best.pth.tar`.

    Towers and sizes are as in `import_teacher`; `feature_width` is D, that of the class vectors.

    Raises:
        MissingFile: the file does not exist.
        BadArtifact: it cannot be read, or does not fit the towers or the expected sizes.
    """
    parts = _read_parts(path, "student", branches=("image",))
    prompts = _prompts(parts, "image", towers, depth=image_depth, length=image_length)
    width = _projector_width(parts, towers, feature_width)
    towers, notes = _with_backbone(towers, parts)
    with torch.random.fork_rng(devices=[]):  # its random weights are replaced below
        student = Student(towers, prompts, width)
    try:
        student.projector.load_state_dict(parts.projector)
    except RuntimeError as error:
        raise BadArtifact(
            f"projector in '{path}' does not fit: {str(error)[:300]}; give a student with a"
            " projector of two layers"
        ) from None
    return Imported(student.eval(), notes)


def _read_parts(path: Path, kind: str, *, branches: tuple[str, ...]) -> _Parts:
    parts = _Parts(path, kind, prompts={branch: {} for branch in branches})
    for key, value in _read_state(path).items():
        if key.startswith(_IGNORED):
            continue
        if not torch.isfinite(value).all():
            raise BadArtifact(
                f"'{key}' in '{path}' is not finite; give the checkpoint of an epoch before the"
                " training diverged"
            )
        branch, block = _prompt_place(key)
        if branch in branches:
            parts.prompts[branch][block] = value
        elif kind == "student" and key.startswith(_PROJECTOR):
            matrix = value.flatten(1) if value.ndim == 4 else value  # of a 1x1 convolution
            parts.projector[key.removeprefix(_PROJECTOR)] = matrix
        elif key == _SCALE or key.startswith(tuple(_TOWERS)):
            parts.backbone[key] = value
        else:
            raise _unknown_key(key, parts)
    return parts


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict, or that of a checkpoint."""
    content = read_checkpoint(path)
    state = content.get("state_dict", content)
    entries = state.items() if isinstance(state, dict) else [("state_dict", None)]
    for key, value in entries:
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise BadArtifact(
                f"'{key}' in '{path}' is not a named tensor; give a file with a 'state_dict', or a"
                " state dict itself"
            )
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _prompt_place(key: str) -> tuple[str, int]:
    """Return tower and block of a key of prompts, or "" for any other key."""
    for branch, name in _INPUT.items():
        if key == name:
            return branch, 0
    match = _DEEPER_PATTERN.fullmatch(key)
    return (match[1], int(match[2])) if match else ("", 0)


def _unknown_key(key: str, parts: _Parts, model: str = "") -> BadArtifact:
    on = f" on model '{model}'" if model else ""
    return BadArtifact(
        f"'{key}' in '{parts.path}' is no part of the original code's {parts.kind}{on}; give"
        f" the checkpoint of a {parts.kind} and the model that belongs to it"
    )


def _prompts(
    parts: _Parts, branch: str, towers: ClipTowers, *, depth: int | None, length: int | None
) -> DeepPrompts:
    """Make the prompts of a tower; BadArtifact if they do not fit it or the expected sizes."""
    rows = _rows(parts, branch)
    width, layers = towers.size(branch)
    if rows.shape[2] != width or len(rows) > layers:
        raise BadArtifact(
            f"{branch} prompts of depth {len(rows)} and width {rows.shape[2]} in '{parts.path}',"
            f" but the {branch} tower of model '{towers.name}' has {layers} layers of width"
            f" {width}; set {parts.kind}.model to the one that they were tuned on"
        )
    if branch == "text" and rows.shape[1] + 2 >= towers.context_length:
        raise BadArtifact(
            f"text prompts of length {rows.shape[1]} in '{parts.path}' leave no room for class"
            f" names in the {towers.context_length} positions of model '{towers.name}'; use the"
            " model that they were tuned on"
        )
    for name, actual, expected, limit in (
        ("depth", len(rows), depth, layers),
        ("length", rows.shape[1], length, math.inf),
    ):
        if expected is not None and actual != min(expected, limit):
            raise BadArtifact(
                f"{branch} prompts of {name} {actual} in '{parts.path}', but {branch}_{name} ="
                f" {expected}; set {parts.kind}.{branch}_{name}: {actual}"
            )
    return DeepPrompts.of(rows)


def _rows(parts: _Parts, branch: str) -> Tensor:
    """Stack the prompts of a tower by block: (depth, n, W), fp32."""
    rows = parts.prompts[branch]
    if not rows:
        raise BadArtifact(
            f"no {branch} prompts in '{parts.path}': neither '{_INPUT[branch]}' nor"
            f" '{_DEEPER.format(branch, 'N')}'; give the checkpoint of a {parts.kind}"
        )
    last = max(rows)
    for block in range(last):
        if block not in rows:
            raise BadArtifact(
                f"{branch} prompts in '{parts.path}' reach block {last}, but those of block {block}"
                f" ('{_key(branch, block)}') are missing; save the checkpoint again"
            )
    in_order = [rows[block] for block in range(last + 1)]
    for block, row in enumerate(in_order):
        if row.ndim != 2 or 0 in row.shape:
            raise BadArtifact(
                f"'{_key(branch, block)}' in '{parts.path}' has shape {list(row.shape)}; expected"
                " [length, width], the same for all classes"
            )
        if row.shape != rows[0].shape:
            raise BadArtifact(
                f"{branch} prompts in '{parts.path}' have length and width {list(rows[0].shape)} at"
                f" the input but {list(row.shape)} at block {block}; they must be the same"
            )
    return torch.stack([row.float() for row in in_order])


def _key(branch: str, block: int) -> str:
    return _DEEPER.format(branch, block) if block else _INPUT[branch]


def _projector_width(parts: _Parts, towers: ClipTowers, expected: int | None) -> int:
    """Return D of the projector d -> D; BadArtifact if it does not fit the tower or `expected`."""
    first, last = (parts.projector.get(key) for key in ("0.weight", "3.weight"))
    if first is None or last is None or first.ndim != 2 or last.ndim != 2:
        raise BadArtifact(
            f"no projector of two layers in '{parts.path}' ('{_PROJECTOR}0.weight' and"
            f" '{_PROJECTOR}3.weight'); give the checkpoint of a student"
        )
    if first.shape[1] != towers.joint_width:
        raise BadArtifact(
            f"projector of input width {first.shape[1]} in '{parts.path}', but the features of"
            f" model '{towers.name}' have width {towers.joint_width}; set student.model to the one"
            " that it was distilled into"
        )
    if expected is not None and last.shape[0] != expected:
        raise BadArtifact(
            f"projector of output width {last.shape[0]} in '{parts.path}', but the class vectors"
            f" have width {expected}; use those of the teacher that it was distilled from"
        )
    return last.shape[0]


def _with_backbone(towers: ClipTowers, parts: _Parts) -> tuple[ClipTowers, tuple[str, ...]]:
    """Return towers with the file's frozen weights, and log messages if they differ."""
    if not parts.backbone:
        note = f"no frozen weights in '{parts.path}'; those of model '{towers.name}' are used"
        return towers, (note,)
    own = towers.weights()
    changes: dict[str, Tensor] = {}
    largest = 0.0
    for key, value in parts.backbone.items():
        ours = _our_key(key)
        if ours not in own:
            raise _unknown_key(key, parts, towers.name)
        base = own[ours]
        if value.numel() != 1 if ours == _SCALE else value.shape != base.shape:
            raise BadArtifact(
                f"'{key}' in '{parts.path}' has shape {list(value.shape)}, but model"
                f" '{towers.name}' has {list(base.shape)}; set {parts.kind}.model to the one that"
                " it was tuned on"
            )
        base = base.cpu().to(value.dtype)  # in the precision of the file
        if not _same(ours, value, base):
            changes[ours] = value.reshape(base.shape).to(torch.float32, copy=True)
            largest = max(largest, float((changes[ours] - base.float()).abs().max()))
    if not changes:
        return towers, ()
    note = (
        f"{len(changes)} of {len(parts.backbone)} frozen weights in '{parts.path}' differ from"
        f" those of model '{towers.name}', by up to {largest:.1e}; the file's are used"
    )
    return towers.with_changes(changes), (note,)


def _our_key(key: str) -> str:
    for start, ours in _TOWERS.items():
        if key.startswith(start):
            return ours + key.removeprefix(start)
    return key


def _same(ours: str, value: Tensor, base: Tensor) -> bool:
    if ours == _SCALE:
        return torch.allclose(
            value.float().reshape(()), base.float(), rtol=_SCALE_ROUNDING, atol=0.0
        )
    return torch.equal(value, base)
