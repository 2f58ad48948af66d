"""The parity checks notice when a part of the method is wrong.

Each case replaces one function of ours by a plausible mistake; the check that
is named with it has to fail.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import checks
import pytest
import torch
import torch.nn.functional as F
import traces
from torch import Tensor
from torch.optim import SGD

from pd_core import class_vectors, distill, fit, losses
from pd_core.models import teacher as teacher_module
from pd_core.models.prompts import DeepPrompts, encode_image, encode_text
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher

Patch = Callable[[pytest.MonkeyPatch], None]

promptsrc, distillation = losses.promptsrc, losses.distillation
make_optimizer, weighted = fit.make_optimizer, fit.gaussian_weights


def promptsrc_with(**scaled: Callable[[Tensor], float]) -> Callable[..., losses.PromptSRCLoss]:
    """Make PromptSRC's loss with some terms multiplied."""

    def wrong(logits: Tensor, labels: Tensor, **rest: Any) -> losses.PromptSRCLoss:
        right = promptsrc(logits, labels, **rest)
        return replace(
            right, **{name: getattr(right, name) * by(logits) for name, by in scaled.items()}
        )

    return wrong


def divergence_per_image(logits: Tensor) -> float:
    return logits.shape[1]


def distillation_per_image(student: Tensor, teacher: Tensor, **rest: Any) -> Tensor:
    return distillation(student, teacher, **rest) * student.shape[1]


def distillation_reversed(student: Tensor, teacher: Tensor, **rest: Any) -> Tensor:
    return distillation(teacher.clone(), student, **rest) + 0 * student.sum()


def distillation_without_temperature(student: Tensor, teacher: Tensor, **rest: Any) -> Tensor:
    return distillation(student, teacher, **(rest | {"temperature": 1.5}))


class Changed:
    """Another object with some attributes replaced."""

    def __init__(self, original: Any, **replaced: Any) -> None:
        self._original = original
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def image_without_ln_pre(tower: Any, images: Tensor, prompts: DeepPrompts | None = None) -> Tensor:
    return encode_image(Changed(tower, ln_pre=torch.nn.Identity()), images, prompts)


def text_without_positions(
    tower: Any, tokens: Tensor, prompts: DeepPrompts | None = None
) -> Tensor:
    nothing = torch.zeros_like(tower.positional_embedding)
    return encode_text(Changed(tower, positional_embedding=nothing), tokens, prompts)


def image_with_first_row_only(tower: Any, images: Tensor, prompts: Any = None) -> Tensor:
    shallow = None if prompts is None else Changed(prompts, depth=1)
    features = encode_image(tower, images, cast(DeepPrompts, shallow))
    return features if prompts is None else features + 0 * prompts.tokens.sum()


def rate_that_reaches_zero(
    epoch: int, *, epochs: int, peak: float, warmup_epochs: int, warmup_lr: float
) -> float:
    if epoch <= warmup_epochs:
        return warmup_lr
    left = (epoch - warmup_epochs - 1) / (epochs - warmup_epochs - 1)
    return 0.5 * peak * (1 + float(torch.cos(torch.tensor(torch.pi * left))))


def rate_without_warmup(epoch: int, *, epochs: int, peak: float, **_: Any) -> float:
    return fit_rate(epoch, epochs=epochs, peak=peak, warmup_epochs=0)


fit_rate = fit.learning_rate


def nesterov(parameters: Any, *, lr: float) -> SGD:
    return SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)


def no_decay(parameters: Any, *, lr: float) -> SGD:
    return make_optimizer(parameters, lr=lr, weight_decay=0.0)


def weights_from_epoch_zero(epochs: int, *, mean: float, deviation: float) -> tuple[float, ...]:
    return weighted(epochs, mean=mean + 1, deviation=deviation)


def normalised_templates(teacher: Teacher, names: Any, templates: Any) -> Tensor:
    features = [
        F.normalize(mean_of_templates(teacher, names, [template]), dim=-1) for template in templates
    ]
    return torch.stack(features).mean(dim=0)


mean_of_templates = class_vectors.template_features


def untouched_names(teacher: Teacher, names: Any) -> list[str]:
    return [teacher.template.replace("{}", name) for name in names]


def frozen_batch_norm(student: Student, *args: Any, **rest: Any) -> distill.DistillationStep:
    return right_step(student.eval(), *args, **rest)


def teachers_scale(student: Student, images: Tensor, *args: Any, **rest: Any) -> Any:
    towers = student.towers
    student.towers = replace(towers, logit_scale=towers.logit_scale * 0.999)
    return right_step(student, images, *args, **rest)


right_step = distill.distillation_step


def patch(target: object, name: str, wrong: object) -> Patch:
    return lambda monkeypatch: monkeypatch.setattr(target, name, wrong)


TIMES_C = divergence_per_image

VARIANTS: dict[str, tuple[Patch, str]] = {
    "divergence divided by the batch only": (
        patch(losses, "promptsrc", promptsrc_with(logits=TIMES_C)),
        "teacher_steps",
    ),
    "text term summed over classes": (
        patch(losses, "promptsrc", promptsrc_with(text=TIMES_C)),
        "teacher_steps",
    ),
    "image term forgotten": (
        patch(losses, "promptsrc", promptsrc_with(image=lambda _: 0.0)),
        "teacher_steps",
    ),
    "image prompts without ln_pre": (
        patch(teacher_module, "encode_image", image_without_ln_pre),
        "teacher_steps",
    ),
    "text prompts without positions": (
        patch(teacher_module, "encode_text", text_without_positions),
        "teacher_steps",
    ),
    "deep image prompts ignored": (
        patch(teacher_module, "encode_image", image_with_first_row_only),
        "teacher_steps",
    ),
    "templates normalised before the mean": (
        patch(class_vectors, "template_features", normalised_templates),
        "frozen_text",
    ),
    "underscores kept": (patch(Teacher, "texts", untouched_names), "tokens"),
    "rate that reaches zero": (
        patch(fit, "learning_rate", rate_that_reaches_zero),
        "learning_rates",
    ),
    "no warm-up": (patch(fit, "learning_rate", rate_without_warmup), "learning_rates"),
    "Nesterov momentum": (patch(fit, "make_optimizer", nesterov), "optimiser"),
    "no weight decay": (patch(fit, "make_optimizer", no_decay), "optimiser"),
    "averaging counted from epoch zero": (
        patch(fit, "gaussian_weights", weights_from_epoch_zero),
        "averaging",
    ),
    "distillation divided by the batch only": (
        patch(losses, "distillation", distillation_per_image),
        "distillation_steps",
    ),
    "divergence the wrong way round": (
        patch(losses, "distillation", distillation_reversed),
        "distillation_steps",
    ),
    "wrong temperature": (
        patch(losses, "distillation", distillation_without_temperature),
        "distillation_steps",
    ),
    "batch norm in evaluation mode": (
        patch(distill, "distillation_step", frozen_batch_norm),
        "distillation_steps",
    ),
    "wrong logit scale": (
        patch(distill, "distillation_step", teachers_scale),
        "distillation_steps",
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_wrong_variant_is_noticed(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, part = VARIANTS[variant]
    trace = traces.load(traces.folders()[0] / "A")
    check = checks.ALL[part]
    check(trace).verify()

    wrong(monkeypatch)

    with pytest.raises(AssertionError):
        check(trace).verify()
