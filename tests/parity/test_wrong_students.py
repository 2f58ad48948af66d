"""The parity checks notice when a part of distillation or evaluation is wrong.

Each case replaces one function of ours by a plausible mistake; the check that
is named with it has to fail.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import checks
import numpy as np
import pytest
import traces
from torch import Tensor, nn
from variants import Changed, Patch, patch

from pd_core.data.loading import splits
from pd_core.evaluation import evaluate
from pd_core.models import class_vectors as classifier
from pd_core.models import student as student_module
from pd_core.models.class_vectors import ClassVectors
from pd_core.models.clip import ClipTowers
from pd_core.models.prompts import DeepPrompts, encode_image
from pd_core.models.student import Student
from pd_core.training.loop import losses
from pd_core.training.student import distillation as distilling

distillation, right_step = losses.distillation, distilling.distillation_step
right_predictions, right_classifier = evaluate.predictions, classifier.distilled
untrained = Student.untrained


def distillation_per_image(student: Tensor, teacher: Tensor, **rest: Any) -> Tensor:
    return distillation(student, teacher, **rest) * student.shape[1]


def distillation_reversed(student: Tensor, teacher: Tensor, **rest: Any) -> Tensor:
    return distillation(teacher.clone(), student, **rest) + 0 * student.sum()


def distillation_at_another_temperature(student: Tensor, teacher: Tensor, **rest: Any) -> Tensor:
    return distillation(student, teacher, **(rest | {"temperature": 1.5}))


def distillation_without_square(
    student: Tensor, teacher: Tensor, *, temperature: float, **rest: Any
) -> Tensor:
    return distillation(student, teacher, temperature=temperature, **rest) / temperature**2


def teacher_without_temperature(
    student: Tensor, teacher: Tensor, *, temperature: float, **rest: Any
) -> Tensor:
    return distillation(student, teacher * temperature, temperature=temperature, **rest)


def image_without_ln_pre(tower: Any, images: Tensor, prompts: DeepPrompts | None = None) -> Tensor:
    return encode_image(Changed(tower, ln_pre=nn.Identity()), images, prompts)


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
    _, whole = right_predictions(logits, labels, first_novel)
    return whole, whole


def halves_swapped(logits: Any, labels: Any, first_novel: int) -> Any:
    in_base = labels < first_novel
    swapped = np.where(in_base, first_novel, 0)
    return right_predictions(logits, swapped, first_novel)


def classifier_in_training(student: Student, shared: ClassVectors) -> classifier.Classifier:
    return right_classifier(student.train(), shared)


def classifier_at_another_scale(student: Student, shared: ClassVectors) -> classifier.Classifier:
    return right_classifier(rescaled(student), shared)


def base_count_rounded_down(classes: int) -> int:
    return classes // 2


VARIANTS: dict[str, tuple[Patch, str]] = {
    "prompts deeper than the tower": (
        patch(ClipTowers, "image_layers", property(lambda _: 12)),
        "initial_student",
    ),
    "projector drawn like prompts": (
        patch(Student, "untrained", small_projector),
        "initial_student",
    ),
    "projector without a bias": (
        patch(Student, "untrained", projector_without_bias),
        "initial_student",
    ),
    "distillation divided by the batch only": (
        patch(losses, "distillation", distillation_per_image),
        "distillation_steps",
    ),
    "divergence the wrong way round": (
        patch(losses, "distillation", distillation_reversed),
        "distillation_steps",
    ),
    "another temperature": (
        patch(losses, "distillation", distillation_at_another_temperature),
        "distillation_steps",
    ),
    "loss without the square of the temperature": (
        patch(losses, "distillation", distillation_without_square),
        "distillation_steps",
    ),
    "teacher without the temperature": (
        patch(losses, "distillation", teacher_without_temperature),
        "distillation_steps",
    ),
    "base classes only in the softmax": (
        patch(distilling, "distillation_step", base_classes_only),
        "distillation_steps",
    ),
    "image prompts without ln_pre": (
        patch(student_module, "encode_image", image_without_ln_pre),
        "distillation_steps",
    ),
    "batch norm in evaluation mode": (
        patch(distilling, "distillation_step", frozen_batch_norm),
        "distillation_steps",
    ),
    "batch norm with another momentum": (
        patch(distilling, "distillation_step", slow_batch_norm),
        "distillation_steps",
    ),
    "another logit scale": (
        patch(distilling, "distillation_step", step_at_another_scale),
        "distillation_steps",
    ),
    "evaluation among all classes": (
        patch(evaluate, "predictions", all_classes),
        "evaluation",
    ),
    "evaluation among the other half": (
        patch(evaluate, "predictions", halves_swapped),
        "evaluation",
    ),
    "evaluation with batch norm in training mode": (
        patch(classifier, "distilled", classifier_in_training),
        "evaluation",
    ),
    "evaluation at another logit scale": (
        patch(classifier, "distilled", classifier_at_another_scale),
        "evaluation",
    ),
    "fewer base classes than novel ones": (
        patch(splits, "base_count", base_count_rounded_down),
        "evaluation",
    ),
}

# Where the other recording would not show it: its temperature is 1.
ON_D = {"loss without the square of the temperature", "teacher without the temperature"}


@cache
def right(name: str, part: str) -> traces.Trace:
    """Return a recording that a part agrees with as long as nothing is wrong."""
    steps = 1 if part.endswith("_steps") else None  # the first one shows it
    trace = traces.load(traces.OWN / name, steps=steps)
    checks.ALL[part](trace).verify()
    return trace


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_wrong_student_is_noticed(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, part = VARIANTS[variant]
    trace = right("D" if variant in ON_D else "A", part)

    wrong(monkeypatch)

    with pytest.raises(AssertionError):
        checks.ALL[part](trace).verify()
