"""Compiled blocks compute what plain ones do, up to rounding."""

from collections.abc import Iterator

import pytest
import tiny
import torch
from torch import Tensor

from pd_core.models.prompts import DeepPrompts, compile_blocks, encode_image, encode_texts
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
