"""Texts go through the tower without a wasted token, and with the memory that there is."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from tiny import CONTEXT_LENGTH, NAMES, biased, towers
from torch import Tensor

from pd_core.core.errors import BadParams
from pd_core.models.prompts import DeepPrompts, encode_many_texts, encode_text, encode_texts
from pd_core.models.text_batching import TOGETHER, TextBatch, TextPlan, cut_after_end

LONG = "the quick brown fox jumps over it"
EXACT: dict[str, Any] = {
    "rtol": 0,
    "atol": 1e-12,
}  # in fp64, so that rounding cannot hide a difference


@cache
def exact() -> Any:
    return biased(towers().text)


def prompts(depth: int = 2, length: int = 2) -> DeepPrompts:
    made = DeepPrompts(depth, length, 32, generator=torch.Generator().manual_seed(1))
    made.tokens.data.mul_(20)  # large enough to be seen in the features
    return made.double()


def tokens(names: tuple[str, ...] = NAMES) -> Tensor:
    return towers().tokenize([f"a photo of a {name}." for name in names])


def many(count: int) -> Tensor:
    """Texts of many lengths, in no order."""
    return tokens(tuple(" ".join(LONG.split()[: 1 + 5 * n % 7]) + f" {n}" for n in range(count)))


def plainly(tokens: Tensor, prompts: DeepPrompts | None = None) -> Tensor:
    """Encode texts as the published code does: every position of every text in every block."""
    tower = exact()
    x, mask = tower._embeds(tokens)
    for layer, block in enumerate(tower.transformer.resblocks):
        if prompts is not None and layer < prompts.depth:
            n, row = prompts.length, prompts.tokens[layer]
            row = row + tower.positional_embedding[1 : 1 + n] if layer == 0 else row
            x = torch.cat([x[:, :1], row.expand(len(x), -1, -1), x[:, 1 + n :]], dim=1)
        x = block(x, attn_mask=mask)
    x = tower.ln_final(x)
    features: Tensor = x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ tower.text_projection
    return features


def gradient(features: Tensor, prompts: DeepPrompts) -> Tensor:
    weights = torch.linspace(-1, 1, features.numel(), dtype=features.dtype)
    (slopes,) = torch.autograd.grad(features.flatten() @ weights, prompts.tokens)
    return slopes


@pytest.mark.parametrize("made", [None, prompts(1), prompts(2), prompts(3), prompts(2, length=4)])
@pytest.mark.parametrize("names", [NAMES, NAMES[:1], ("dog", "dog"), ("", LONG)])
def test_no_feature_and_no_gradient_differs_from_the_plain_way(
    made: DeepPrompts | None, names: tuple[str, ...]
) -> None:
    ours, expected = encode_text(exact(), tokens(names), made), plainly(tokens(names), made)

    torch.testing.assert_close(ours, expected, **EXACT)
    if made is not None:
        torch.testing.assert_close(gradient(ours, made), gradient(expected, made), **EXACT)


def test_texts_that_share_nothing_but_their_start_are_encoded_too() -> None:
    different = towers().tokenize(["a dog", "the dog.", "dogs"])

    assert TextBatch.of(different).shared == 1
    torch.testing.assert_close(encode_text(exact(), different), plainly(different), **EXACT)


@pytest.mark.parametrize("made", [None, prompts()])
def test_texts_may_differ_where_prompts_stand(made: DeepPrompts | None) -> None:
    different = towers().tokenize(["one dog runs.", "two cats run fast.", "a hen"])

    assert TextBatch.of(different, 2).shared == 3  # the start and two prompts
    expected = plainly(different, made)
    torch.testing.assert_close(encode_text(exact(), different, made), expected, **EXACT)
    if made is None:
        planned = encode_texts(exact(), TextPlan.of(exact(), different))
        torch.testing.assert_close(planned, expected, **EXACT)
    many = encode_many_texts(exact(), different, made).double()
    torch.testing.assert_close(many, expected, rtol=0, atol=1e-6)


def test_a_batch_is_cut_behind_its_longest_text() -> None:
    longest = max(len(row[row > 0]) for row in tokens())  # 0 fills what is behind the end of text

    assert longest < CONTEXT_LENGTH
    assert cut_after_end(tokens()).shape == TextBatch.of(tokens()).tokens.shape
    assert TextBatch.of(tokens()).tokens.shape == (len(NAMES), longest)


def test_what_texts_share_is_computed_once_and_of_the_last_block_only_their_ends() -> None:
    rows: list[int] = []
    handles = [
        block.mlp.register_forward_hook(lambda _, __, out: rows.append(out.shape[:2].numel()))
        for block in exact().transformer.resblocks
    ]
    batch = TextBatch.of(tokens(), prompt_length=2)
    encode_text(exact(), batch, prompts())
    for handle in handles:
        handle.remove()

    assert batch.shared == 5  # start, a photo of a
    rest = len(NAMES) * (batch.tokens.shape[1] - 5)
    assert rows == [rest, 5, rest, 5, len(NAMES)]


@pytest.mark.parametrize("made", [None, prompts()])
def test_many_texts_keep_their_order_whatever_their_lengths(made: DeepPrompts | None) -> None:
    texts = many(2 * TOGETHER + 3)
    plan = TextPlan.of(exact(), texts, 2 if made else 0)

    assert len(plan.batches) == plan.kept == 3
    lengths = [batch.tokens.shape[1] for batch in plan.batches]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
    torch.testing.assert_close(encode_texts(exact(), plan, made), plainly(texts, made), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_computed_twice_has_the_same_gradient(dtype: torch.dtype) -> None:
    tower, texts, made = copy.deepcopy(exact()).to(dtype), many(80), prompts().to(dtype)
    each = TextBatch.of(texts, 2).memory(tower) // 80
    features, gradients = [], []
    for memory in (None, 64 * each, 40 * each, 0):
        plan = TextPlan.of(tower, texts, 2, memory=memory)
        features.append(encode_texts(tower, plan, made))
        gradients.append(gradient(features[-1], made))

    atol = 1e-12 if dtype is torch.float64 else 1e-5
    for ours, own in zip(features[1:], gradients[1:], strict=True):
        torch.testing.assert_close(ours, features[0], rtol=0, atol=atol)
        torch.testing.assert_close(own, gradients[0], rtol=0, atol=atol * float(own.abs().max()))


def test_batches_are_kept_as_long_as_the_memory_suffices() -> None:
    tower, texts = exact(), many(128)
    each = TextBatch.of(texts, 2).memory(tower) // 128  # of the longest

    def planned(memory: int) -> tuple[int, int]:
        plan = TextPlan.of(tower, texts, 2, memory=memory)
        return len(plan.batches), plan.kept

    assert planned(128 * each) == (2, 2)
    batches, kept = planned(80 * each)
    assert batches == 7  # of 20 texts
    assert 3 <= kept < 7
    needed = [
        batch.memory(tower) for batch in TextPlan.of(tower, texts, 2, memory=80 * each).batches
    ]
    assert sum(needed[:kept]) + needed[-1] <= 80 * each < sum(needed[: kept + 1]) + needed[-1]
    assert planned(each) == (8, 0)  # of 16 texts, the least that is worth while
    assert planned(0) == (8, 0)


def test_what_is_computed_twice_keeps_no_activations() -> None:
    tower, texts, made = exact(), many(40), prompts()
    everything = kept_bytes(tower, TextPlan.of(tower, texts, 2), made)
    nothing = kept_bytes(tower, TextPlan.of(tower, texts, 2, memory=0), made)

    assert nothing < 0.05 * everything


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_the_memory_of_a_batch_is_estimated_from_above_and_not_far(*, quick_gelu: bool) -> None:
    from open_clip.transformer import QuickGELU, TextTransformer

    more = {"act_layer": QuickGELU} if quick_gelu else {}
    tower = TextTransformer(context_length=77, width=128, heads=2, layers=4, **more)
    tower.requires_grad_(requires_grad=False)
    made = DeepPrompts(2, 2, 128, generator=torch.Generator().manual_seed(1))
    texts = torch.zeros(32, 77, dtype=torch.int64)
    texts[:, 40] = 49407
    texts[:, 3:40] = torch.arange(32)[:, None]
    plan = TextPlan.of(tower, texts, 2)

    ratio = kept_bytes(tower, plan, made) / sum(batch.memory(tower) for batch in plan.batches)

    assert 0.5 < ratio < 1


def kept_bytes(tower: Any, plan: TextPlan, prompts: DeepPrompts) -> int:
    """Count the bytes that autograd keeps, each storage once, the tower's own apart."""
    own = {value.untyped_storage().data_ptr() for value in tower.state_dict().values()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        features = encode_texts(tower, plan, prompts)
    del features
    return sum(kept.values())


def test_prompts_that_reach_beyond_a_text_are_refused() -> None:
    short = towers().tokenize(["a photo of a dog", "hm"])

    with pytest.raises(
        BadParams,
        match="at position 2, within prompts of length 2; use shorter prompts, or longer texts$",
    ):
        TextBatch.of(short, prompt_length=2)


def test_many_texts_are_encoded_without_gradients_in_fp32() -> None:
    features = encode_many_texts(exact(), tokens(), prompts())

    assert not features.requires_grad
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.double(), plainly(tokens(), prompts()), rtol=0, atol=1e-6)
