"""The parity checks fail for plausible mistakes in the teacher and the optimiser."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from variants import Changed, Patch, assert_noticed, cases, image_without_ln_pre, patch

from pd_core.models import class_vectors
from pd_core.models import prompts as prompts_module
from pd_core.models import teacher as teacher_module
from pd_core.models.class_vectors import ClassVectors
from pd_core.models.clip import ClipTowers, imagenet_templates
from pd_core.models.prompts import DeepPrompts, encode_image, encode_text
from pd_core.models.teacher import Teacher
from pd_core.models.text_batching import TextBatch, cut_after_end
from pd_core.training.loop import fit, losses, schedule
from pd_core.training.loop.schedule import WeightedSum

promptsrc, fit_rate = losses.promptsrc, schedule.learning_rate
make_optimizer, weighted = fit.make_optimizer, schedule.gaussian_weights
right_batch = TextBatch.of
build_vectors, mean_of_templates = class_vectors.build, class_vectors.template_features
untrained = Teacher.untrained


def promptsrc_with(**scaled: Callable[[Tensor], float]) -> Callable[..., losses.PromptSRCLoss]:
    """Make PromptSRC's loss with some terms multiplied."""

    def wrong(logits: Tensor, labels: Tensor, **rest: Any) -> losses.PromptSRCLoss:
        right = promptsrc(logits, labels, **rest)
        return replace(
            right, **{name: getattr(right, name) * by(logits) for name, by in scaled.items()}
        )

    return wrong


def classes(logits: Tensor) -> float:
    return logits.shape[1]


def divergence_reversed(logits: Tensor, labels: Tensor, **rest: Any) -> losses.PromptSRCLoss:
    zero_shot = rest["zero_shot_logits"]
    wrong = F.kl_div(
        zero_shot.log_softmax(dim=1), logits.log_softmax(dim=1), reduction="sum", log_target=True
    )
    return replace(promptsrc(logits, labels, **rest), logits=wrong / logits.numel())


def text_without_positions(
    tower: Any, tokens: Tensor, prompts: DeepPrompts | None = None
) -> Tensor:
    nothing = torch.zeros_like(tower.positional_embedding)
    return encode_text(Changed(tower, positional_embedding=nothing), tokens, prompts)


def image_with_first_row_only(tower: Any, images: Tensor, prompts: Any = None) -> Tensor:
    shallow = None if prompts is None else Changed(prompts, depth=1)
    features = encode_image(tower, images, cast(DeepPrompts, shallow))
    return features if prompts is None else features + 0 * prompts.tokens.sum()


def read_too_early(tokens: Tensor, prompt_length: int = 0) -> TextBatch:
    batch = right_batch(tokens, prompt_length)
    return replace(batch, end=batch.end - 1)


def cut_before_the_end(tokens: Tensor) -> Tensor:
    return cut_after_end(tokens)[:, :-1]


def rate_that_reaches_zero(
    epoch: int, *, epochs: int, peak: float, warmup_epochs: int, warmup_lr: float
) -> float:
    if epoch <= warmup_epochs:
        return warmup_lr
    left = (epoch - warmup_epochs - 1) / (epochs - warmup_epochs - 1)
    return 0.5 * peak * (1 + math.cos(math.pi * left))


def decay_on_matrices_only(parameters: Iterable[nn.Parameter], **rest: Any) -> SGD:
    every = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in every if parameter.ndim > 1]},
        {"params": [parameter for parameter in every if parameter.ndim == 1], "weight_decay": 0.0},
    ]
    return SGD(groups, **rest)


def weights_without_their_sum(epochs: int, *, mean: float, deviation: float) -> tuple[float, ...]:
    density = deviation * math.sqrt(2 * math.pi)
    distances = ((epoch - mean) / deviation for epoch in range(1, epochs + 1))
    return tuple(math.exp(-0.5 * distance**2) / density for distance in distances)


def last_epoch_only(total: WeightedSum, epoch: int, module: nn.Module) -> None:
    del epoch
    total.sums.update({name: value.detach() for name, value in module.named_parameters()})


def normalised_templates(teacher: Teacher, names: Any, templates: Any) -> Tensor:
    features = [
        F.normalize(mean_of_templates(teacher, names, [template]), dim=-1) for template in templates
    ]
    return torch.stack(features).mean(dim=0)


def untouched_names(teacher: Teacher, names: Any) -> list[str]:
    return [teacher.template.replace("{}", name) for name in names]


def first_row(make: Callable[[Teacher], Tensor]) -> Callable[..., Teacher]:
    """Make fresh teachers whose first text prompts start differently."""

    def wrong(towers: ClipTowers, **rest: Any) -> Teacher:
        teacher = untrained(towers, **rest)
        teacher.get_parameter("text_prompts.tokens").data[0] = make(teacher)
        return teacher

    return wrong


def random_row(teacher: Teacher) -> Tensor:
    return teacher.get_parameter("text_prompts.tokens")[1].detach()


def row_from_the_start_token(teacher: Teacher) -> Tensor:
    tokens = teacher.towers.tokenize(["a photo of a"])[0]
    return cast(Tensor, teacher.towers.text.token_embedding(tokens[:4]).detach())


def wide_prompts(towers: ClipTowers, **rest: Any) -> Teacher:
    teacher = untrained(towers, **rest)
    teacher.get_parameter("image_prompts.tokens").data *= 2
    return teacher


def vectors_with(change: Callable[[Teacher, Any], Tensor]) -> Callable[..., ClassVectors]:
    """Make class vectors of other features."""

    def wrong(teacher: Teacher, names: Any) -> ClassVectors:
        return replace(build_vectors(teacher, names), vectors=change(teacher, names))

    return wrong


def long_vectors(teacher: Teacher, names: Any) -> Tensor:
    tokens = teacher.tokens(names)
    return prompts_module.encode_many_texts(teacher.towers.text, tokens, teacher.text_prompts)


def frozen_vectors(teacher: Teacher, names: Any) -> Tensor:
    return build_vectors(Teacher(teacher.towers), names).vectors


def template_vectors(teacher: Teacher, names: Any) -> Tensor:
    return F.normalize(mean_of_templates(teacher, names, imagenet_templates(60)), dim=-1)


def first_row_of(make: Callable[[Teacher], Tensor]) -> Patch:
    return patch(Teacher, "untrained", first_row(make))


DEEP = property(lambda _: 12)
PROMPTSRC = {
    "divergence divided by the batch only": promptsrc_with(logits=classes),
    "divergence the wrong way round": divergence_reversed,
    "text term summed over classes": promptsrc_with(text=classes),
    "image term forgotten": promptsrc_with(image=lambda _: 0.0),
}
OPTIMISERS: dict[str, Callable[..., SGD]] = {
    "Nesterov momentum": partial(SGD, nesterov=True),
    "damped momentum": partial(SGD, dampening=0.9),
    "no weight decay": lambda parameters, **rest: make_optimizer(
        parameters, **(rest | {"weight_decay": 0.0})
    ),
    "no weight decay on batch norm": decay_on_matrices_only,
}
VECTORS = {"not normalised": long_vectors, "frozen": frozen_vectors, "averaged": template_vectors}
VARIANTS = {
    "tokens": {
        "underscores kept": patch(Teacher, "texts", untouched_names),
        "text cut before its end": patch(teacher_module, "cut_after_end", cut_before_the_end),
    },
    "initial_prompts": {
        "text prompts deeper than the tower": patch(ClipTowers, "text_layers", DEEP),
        "image prompts deeper than the tower": patch(ClipTowers, "image_layers", DEEP),
        "first text prompts random": first_row_of(random_row),
        "first text prompts one word too early": first_row_of(row_from_the_start_token),
        "random prompts twice as wide": patch(Teacher, "untrained", wide_prompts),
    },
    "frozen_text": {
        "normalised before the mean": patch(
            class_vectors, "template_features", normalised_templates
        ),
        "read before the end": patch(TextBatch, "of", read_too_early),
    },
    "teacher_steps": {
        **{name: patch(losses, "promptsrc", wrong) for name, wrong in PROMPTSRC.items()},
        "image prompts without ln_pre": patch(teacher_module, "encode_image", image_without_ln_pre),
        "text without positions": patch(teacher_module, "encode_text", text_without_positions),
        "first row only": patch(teacher_module, "encode_image", image_with_first_row_only),
    },
    "learning_rates": {
        "rate that reaches zero": patch(schedule, "learning_rate", rate_that_reaches_zero),
        "no warm-up": patch(
            schedule,
            "learning_rate",
            lambda epoch, **rest: fit_rate(
                epoch, **(rest | {"warmup_epochs": 0, "warmup_lr": rest["peak"]})
            ),
        ),
    },
    "optimiser": {name: patch(fit, "make_optimizer", wrong) for name, wrong in OPTIMISERS.items()},
    "averaging": {
        "counted from epoch zero": patch(
            schedule,
            "gaussian_weights",
            lambda epochs, *, mean, **rest: weighted(epochs, mean=mean + 1, **rest),
        ),
        "not normalised": patch(schedule, "gaussian_weights", weights_without_their_sum),
        "last epoch only": patch(WeightedSum, "add", last_epoch_only),
    },
    "vectors": {
        f"vectors {name}": patch(class_vectors, "build", vectors_with(change))
        for name, change in VECTORS.items()
    },
}


@cases(VARIANTS)
def test_a_wrong_teacher_is_noticed(
    part: str, wrong: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_noticed("A", part, wrong, monkeypatch)
