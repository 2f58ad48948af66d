"""Compiled blocks compute what plain ones do, up to rounding."""

from collections.abc import Iterator

import pytest
import tiny
import torch
import trainings
from torch import Tensor

from pd_core.models import class_vectors
from pd_core.models.prompts import DeepPrompts, compile_blocks, encode_image, encode_texts
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.models.text_batching import TextPlan

pytestmark = [
    pytest.mark.slow,  # a minute of compiling
    pytest.mark.filterwarnings("ignore"),  # torch's compiler uses what torch deprecates
]


@pytest.fixture
def _compiled() -> Iterator[None]:
    compile_blocks(on=True)
    yield
    compile_blocks(on=False)
    torch.compiler.reset()


def prompts() -> DeepPrompts:
    return DeepPrompts(2, 2, 32, generator=torch.Generator().manual_seed(1))


def encoded() -> list[Tensor]:
    """Return features and gradients of both towers, for several sizes of batch."""
    clip, values = tiny.towers(), []
    for count in (2, 3, 5):
        image, text = prompts(), prompts()
        names = [f"a photo of a {name}." for name in tiny.NAMES[:count]]
        plan = TextPlan.of(clip.text, clip.tokenize(names), 2)
        pictures = encode_image(clip.visual, tiny.images(count), image)
        texts = encode_texts(clip.text, plan, text)
        torch.autograd.backward((pictures * texts).sum())
        for made, features in ((image, pictures), (text, texts)):
            assert made.tokens.grad is not None
            values += [features.detach(), made.tokens.grad]
    return values


def test_compiled_blocks_give_the_same_features_and_gradients(
    request: pytest.FixtureRequest,
) -> None:
    plain = encoded()

    request.getfixturevalue("_compiled")
    calls = torch._dynamo.utils.counters["stats"]["calls_captured"]
    compiled = encoded()

    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > calls
    for ours, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def losses() -> list[Tensor]:
    """Return the gradients and losses of a step of both trainings, whose towers differ in width."""
    large, small = tiny.towers("large", width=48), tiny.towers()
    teacher = Teacher.untrained(large, text_length=2, text_depth=2, image_depth=2, seed=1)
    vectors = class_vectors.build(teacher, tiny.NAMES)
    student = Student.untrained(small, feature_width=large.joint_width, depth=2, seed=1).train()
    views, labels = tiny.images(4), torch.arange(4)
    targets = trainings.live(teacher, vectors).logits(trainings.batch(views))
    frozen = teacher.text_features(teacher.text_plan(tiny.NAMES)).detach().flip(0)
    steps: dict[torch.nn.Module, Tensor] = {
        student: trainings.distillation_step(student, views, targets, vectors).loss,
        teacher: trainings.promptsrc_step(
            teacher, views, labels, tokens=teacher.text_plan(tiny.NAMES), frozen_text=frozen
        ).loss.total,
    }
    # In one tensor, since a bias before batch norm has no gradient but rounding's.
    return [
        torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(module.parameters()))])
        for module, loss in steps.items()
    ] + [loss.detach() for loss in steps.values()]


def test_every_block_of_both_trainings_is_compiled_and_gives_the_same_losses_and_gradients(
    request: pytest.FixtureRequest,
) -> None:
    plain = losses()

    request.getfixturevalue("_compiled")
    torch._dynamo.utils.counters.clear()
    compiled = losses()

    frames = torch._dynamo.utils.counters["frames"]
    assert frames["ok"] == frames["total"] > 8  # torch's own limit
    for ours, expected in zip(compiled, plain, strict=True):
        largest = float(expected.abs().max())
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * largest)
