"""Typed models of the blocks of ``params.yaml``: which keys, of which type, in which range.

Unknown keys are refused, and nothing is converted: text where a number belongs is an error.
Defaults live in the file, none here, so that every number has one home.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pd_core.core.config import Config, Count, CountOrZero
from pd_core.core.options import (
    Computed,
    Form,
    OnCorrupt,
    OnNonFinite,
    Precision,
    Selection,
    TeacherMethod,
    TeacherWeighting,
    TextFeatures,
    Trained,
)

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def _ordered(scale: tuple[float, float]) -> tuple[float, float]:
    low, high = scale
    if not 0 < low <= high <= 1:
        raise ValueError("give two shares of the picture, 0 < least <= largest <= 1")
    return scale


def _with_gap(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError("write {} once, where the class name goes")
    return template


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ValueError("give cpu, mps, cuda or cuda:<number>")
    return name


Device = Annotated[str, AfterValidator(_device)]
CropScale = Annotated[tuple[float, float], AfterValidator(_ordered)]
Template = Annotated[str, AfterValidator(_with_gap)]


class ProfileParams(Config):
    """Which benchmark this file describes."""

    name: Literal["quickstart", "paper"]
    root: str  # the repository's root, seen from this file; dvc.yaml starts stages there


class RunParams(Config):
    """What every stage shares."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]  # as far as torch's generators go
    threads: Count
    processes: Count
    device: Device
    precision: Precision
    workers: CountOrZero
    on_corrupt: OnCorrupt
    checkpoint_minutes: Positive
    compile: bool
    features_gb: Positive
    features_precision: Literal["fp16", "fp32"]


class _Training(Config):
    """What both training stages have."""

    model: Annotated[str, Field(min_length=1)]
    weights: str | None
    epochs: Count
    batch_size: Count
    accumulate: Count
    lr: Positive
    warmup_epochs: CountOrZero
    warmup_lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NotNegative
    image_length: Count
    image_depth: Count
    crop_scale: CropScale
    flip: bool
    max_grad_norm: Positive | None
    on_non_finite: OnNonFinite


class OriginalParams(Config):
    """A teacher's checkpoint of the published code."""

    path: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # DVC does not watch the file


class TeacherParams(_Training):
    """The teacher's prompts, tuned on few-shot labels."""

    method: TeacherMethod
    original: OriginalParams | None
    template: Template
    text_length: Count
    text_depth: Count
    text_loss_weight: NotNegative
    image_loss_weight: NotNegative
    logits_loss_weight: NotNegative
    gpa_mean: Positive
    gpa_std: Positive
    templates: Count
    text_memory_gb: Positive
    view_epochs: Count | None
    frozen_features: Computed


class ClassVectorsParams(Config):
    """Class vectors need nothing but the teacher."""


class CrossValidateParams(Config):
    """Cross-validation needs nothing but the stages that it repeats."""


class FurtherTeacherParams(Config):
    """A teacher beside the first; a key left out is that of the first, or the zero-shot model."""

    folder: str | None = None
    model: str | None = None
    weights: str | None = None


class StudentParams(_Training):
    """The student's prompts and projector, distilled on unlabelled pictures."""

    batch_size: Annotated[int, Field(ge=2)]  # batch normalisation needs two
    form: Form
    temperature: Positive
    kd_weight: Positive
    trained: Trained
    text_features: TextFeatures
    projector_layers: Annotated[int, Field(ge=1, le=3)]
    further_teachers: tuple[FurtherTeacherParams, ...]
    teacher_weighting: TeacherWeighting
    view_epochs: Count | None
    teacher_targets: Computed
    selection: Selection


class EvaluateParams(Config):
    """Accuracy of everybody."""

    split: Literal["test", "val"]
    batch_size: Count
    folds: Annotated[int, Field(ge=2)]


class PromotionParams(Config):
    """What a version has to show before it becomes the champion."""

    margin: Annotated[float, Field(ge=0, lt=1)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    latency_ms: Positive
    megabytes: Positive
    warm_ups: CountOrZero
    timed: Count
    seconds: Positive
