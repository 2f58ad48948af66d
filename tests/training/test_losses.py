"""The losses are those of the paper, term by term."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pd_core.training.loop import losses

PUBLISHED: dict[str, Any] = {"temperature": 1.0, "weight": 1000.0}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(random(*shape, seed=seed), dim=-1)


def promptsrc(**changed: Tensor) -> losses.PromptSRCLoss:
    same = {"zero_shot_logits": random(4, 3), "text": unit(3, 8), "image": unit(4, 8, seed=1)}
    frozen = {"frozen_text": same["text"], "frozen_image": same["image"]}
    values: dict[str, Any] = same | frozen | changed
    values |= {"text_weight": 25.0, "image_weight": 10.0, "logits_weight": 1.0}
    return losses.promptsrc(random(4, 3), torch.tensor([0, 1, 2, 0]), **values)


def test_a_model_that_did_not_move_only_pays_cross_entropy() -> None:
    loss = promptsrc()

    assert loss.text == 0
    assert loss.image == 0
    assert loss.logits == pytest.approx(0, abs=1e-6)
    assert loss.total == pytest.approx(float(loss.cross_entropy), abs=1e-6)


def test_distances_are_means_over_all_elements_with_the_published_weights() -> None:
    loss = promptsrc(frozen_text=unit(3, 8) + 0.01, frozen_image=unit(4, 8, seed=1) - 0.02)

    assert float(loss.text) == pytest.approx(25 * 0.01, rel=1e-4)
    assert float(loss.image) == pytest.approx(10 * 0.02, rel=1e-4)


def test_the_divergence_from_zero_shot_is_divided_by_images_and_classes() -> None:
    target = random(4, 3, seed=2)
    loss = promptsrc(zero_shot_logits=target)

    expected = 0.0
    for prompted, frozen in zip(random(4, 3).softmax(1), target.softmax(1), strict=True):
        for q, p in zip(prompted.tolist(), frozen.tolist(), strict=True):
            expected += p * math.log(p / q)
    assert float(loss.logits) == pytest.approx(expected / (4 * 3), rel=1e-5)


def test_the_total_is_the_sum_of_the_terms() -> None:
    loss = promptsrc(
        zero_shot_logits=random(4, 3, seed=2),
        frozen_text=unit(3, 8, seed=3),
        frozen_image=unit(4, 8, seed=4),
    )

    terms = [loss.cross_entropy, loss.text, loss.image, loss.logits]
    assert all(float(term) > 0 for term in terms)
    assert float(loss.total) == pytest.approx(sum(map(float, terms)), rel=1e-6)


def test_a_student_that_agrees_pays_nothing() -> None:
    logits = random(5, 7)

    assert float(losses.distillation(logits, logits, **PUBLISHED)) == pytest.approx(0, abs=1e-3)
    # A constant added to all logits of an image changes no probability.
    assert float(losses.distillation(logits + 3, logits, **PUBLISHED)) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_distillation_is_the_divergence_of_student_from_teacher_over_all_elements(
    temperature: float,
) -> None:
    student, teacher = random(5, 7), random(5, 7, seed=1)

    loss = losses.distillation(student, teacher, temperature=temperature, weight=10.0)

    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    expected = 10 * temperature**2 * (p * (p / q).log()).sum() / 35
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("squared", [False, True])
def test_the_distance_of_features_is_a_mean_over_all_elements(squared: bool) -> None:
    student, teacher = unit(4, 8), unit(4, 8, seed=1)

    loss = losses.feature_distance(student, teacher, squared=squared, weight=10.0)

    differences = (student - teacher).abs().flatten().tolist()
    expected = 10 * sum(d**2 if squared else d for d in differences) / (4 * 8)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        partial(losses.distillation, **PUBLISHED),
        partial(losses.feature_distance, squared=False, weight=1000.0),
    ],
)
def test_no_gradient_reaches_the_teacher(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student, teacher = random(5, 7).requires_grad_(), random(5, 7, seed=1).requires_grad_()

    torch.autograd.backward(loss(student, teacher))

    assert student.grad is not None
    assert teacher.grad is None
