"""The parity checks fail for plausible mistakes in distillation and evaluation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn
from variants import Patch, assert_noticed, cases, image_without_ln_pre, patch

from pd_core.data.loading import splits
from pd_core.evaluation import evaluate
from pd_core.models import class_vectors as classifier
from pd_core.models import student as student_module
from pd_core.models.class_vectors import ClassVectors
from pd_core.models.clip import ClipTowers
from pd_core.models.student import Student
from pd_core.training.loop import losses
from pd_core.training.student import distillation as distilling

distillation, right_step = losses.distillation, distilling.distillation_step
right_predictions, right_classifier = evaluate.predictions, classifier.distilled
untrained = Student.untrained


def frozen_batch_norm(student: Student, *args: Any, **rest: Any) -> distilling.DistillationStep:
    return right_step(student.eval(), *args, **rest)


def slow_batch_norm(student: Student, *args: Any, **rest: Any) -> distilling.DistillationStep:
    norm = student.projector[1]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.momentum = 0.01
    return right_step(student, *args, **rest)


def rescaled(student: Student) -> Student:
    towers = student.towers
    student.towers = replace(towers, logit_scale=towers.logit_scale * 0.999)
    return student


def step_at_another_scale(student: Student, *args: Any, **rest: Any) -> distilling.DistillationStep:
    return right_step(rescaled(student), *args, **rest)


def base_classes_only(
    student: Student, images: Tensor, targets: Tensor, vectors: ClassVectors, **rest: Any
) -> distilling.DistillationStep:
    base = splits.base_count(len(vectors.names))
    step = right_step(student, images, targets[:, :base], vectors.select(range(base)), **rest)
    return replace(step, student_logits=vectors.logits(student(images)))


def small_projector(towers: ClipTowers, **rest: Any) -> Student:
    student = untrained(towers, **rest)
    nn.init.normal_(student.get_parameter("projector.3.weight"), std=0.02)
    return student


def projector_without_bias(towers: ClipTowers, **rest: Any) -> Student:
    student = untrained(towers, **rest)
    width, inner = student.get_parameter("projector.3.weight").shape
    student.projector[3] = nn.Linear(inner, width, bias=False)
    return student


def all_classes(logits: Any, labels: Any, first_novel: int) -> Any:
    _, whole = right_predictions(logits, labels, first_novel).T
    return np.stack([whole, whole], axis=1)


def halves_swapped(logits: Any, labels: Any, first_novel: int) -> Any:
    in_base = labels < first_novel
    swapped = np.where(in_base, first_novel, 0)
    return right_predictions(logits, swapped, first_novel)


def classifier_in_training(student: Student, shared: ClassVectors) -> classifier.Classifier:
    return right_classifier(student.train(), shared)


def classifier_at_another_scale(student: Student, shared: ClassVectors) -> classifier.Classifier:
    return right_classifier(rescaled(student), shared)


DISTILLATION: dict[str, Callable[..., Tensor]] = {
    "divided by the batch only": lambda student, teacher, **rest: (
        distillation(student, teacher, **rest) * student.shape[1]
    ),
    "the wrong way round": lambda student, teacher, **rest: (
        distillation(teacher.clone(), student, **rest) + 0 * student.sum()
    ),
    "another temperature": lambda student, teacher, **rest: distillation(
        student, teacher, **(rest | {"temperature": 1.5})
    ),
}
# Shown by the other recording only: the temperature of A is 1.
WITH_TEMPERATURE: dict[str, Callable[..., Tensor]] = {
    "without the square of the temperature": lambda student, teacher, *, temperature, **rest: (
        distillation(student, teacher, temperature=temperature, **rest) / temperature**2
    ),
    "teacher without the temperature": lambda student, teacher, *, temperature, **rest: (
        distillation(student, teacher * temperature, temperature=temperature, **rest)
    ),
}
STEPS = {
    "base classes only in the softmax": base_classes_only,
    "batch norm in evaluation mode": frozen_batch_norm,
    "batch norm with another momentum": slow_batch_norm,
    "another logit scale": step_at_another_scale,
}
VARIANTS = {
    "initial_student": {
        "prompts deeper than the tower": patch(ClipTowers, "image_layers", property(lambda _: 12)),
        "projector drawn like prompts": patch(Student, "untrained", small_projector),
        "projector without a bias": patch(Student, "untrained", projector_without_bias),
    },
    "distillation_steps": {
        **{name: patch(losses, "distillation", wrong) for name, wrong in DISTILLATION.items()},
        **{name: patch(distilling, "distillation_step", wrong) for name, wrong in STEPS.items()},
        "image prompts without ln_pre": patch(student_module, "encode_image", image_without_ln_pre),
    },
    "evaluation": {
        "among all classes": patch(evaluate, "predictions", all_classes),
        "among the other half": patch(evaluate, "predictions", halves_swapped),
        "batch norm in training mode": patch(classifier, "distilled", classifier_in_training),
        "another scale": patch(classifier, "distilled", classifier_at_another_scale),
        "base classes rounded down": patch(splits, "base_count", lambda classes: classes // 2),
    },
}


@cases(VARIANTS)
def test_a_wrong_student_is_noticed(
    part: str, wrong: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_noticed("A", part, wrong, monkeypatch)


@pytest.mark.parametrize("variant", WITH_TEMPERATURE)
def test_a_wrong_temperature_is_noticed(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = patch(losses, "distillation", WITH_TEMPERATURE[variant])
    assert_noticed("D", "distillation_steps", wrong, monkeypatch)
