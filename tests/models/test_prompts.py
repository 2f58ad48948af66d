"""Prompts go where the paper puts them, and the towers stay as they are."""

import copy
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from open_clip.transformer import TextTransformer, VisionTransformer
from tiny import CONFIG, NAMES, biased, images, towers
from torch import Tensor

from pd_core.models.prompts import CoupledPrompts, DeepPrompts, encode_image, encode_text


def prompts(depth: int, length: int = 2, width: int = 32, seed: int = 1) -> DeepPrompts:
    made = DeepPrompts(depth, length, width, generator=torch.Generator().manual_seed(seed))
    made.tokens.data.mul_(20)  # large enough to be seen in the features
    return made


def coupled(source: DeepPrompts, depth: int, width: int = 32, seed: int = 5) -> CoupledPrompts:
    generator = torch.Generator().manual_seed(seed)
    return CoupledPrompts(source, width, depth=depth, generator=generator)


def tokens() -> Tensor:
    return towers().tokenize([f"a photo of a {name}." for name in NAMES])


def test_without_prompts_the_features_are_the_towers_own() -> None:
    clip = towers()

    for tower, encode, inputs in (
        (clip.visual, encode_image, images(3)),
        (clip.text, encode_text, tokens()),
    ):
        exact = biased(tower)
        torch.testing.assert_close(encode(tower, inputs), tower(inputs), rtol=0, atol=1e-5)
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        torch.testing.assert_close(encode(exact, inputs), exact(inputs), rtol=0, atol=1e-13)


def inputs_of_blocks(tower: Any, run: Any) -> list[Tensor]:
    """Record what each block of a tower is given, by its first layer norm.

    The text tower gives it what texts have in common, then the rest of each text.
    """
    seen: list[list[Tensor]] = [[] for _ in tower.transformer.resblocks]
    with ExitStack() as hooks:
        for block, parts in zip(tower.transformer.resblocks, seen, strict=True):
            hook = block.ln_1.register_forward_pre_hook(
                lambda _, inputs, parts=parts: parts.append(inputs[0])
            )
            hooks.callback(hook.remove)
        run()
    return [
        torch.cat([parts[0].expand(len(parts[-1]), -1, -1), *parts[1:]], dim=1) for parts in seen
    ]


def test_blocks_of_the_image_tower_compute_no_position_that_nothing_reads() -> None:
    rows: list[torch.Size] = []
    with ExitStack() as hooks:
        for block in towers().visual.transformer.resblocks:
            hook = block.mlp.register_forward_hook(lambda _, __, out: rows.append(out.shape[:2]))
            hooks.callback(hook.remove)
        encode_image(towers().visual, images(3), prompts(2))

    # Class token, four patches and two prompts: the first ones are replaced, the second ones stay.
    assert rows == [(3, 5), (3, 7), (3, 1)]


def test_the_features_are_those_of_blocks_that_compute_all_positions() -> None:
    tower, made = biased(towers().visual), prompts(2).double()
    rows = tower.ln_pre(made.tokens[0]), made.tokens[1]
    first, second, last = tower.transformer.resblocks
    x = tower._embeds(images(3).double())
    for block, row in zip((first, second), rows, strict=True):
        x = block(torch.cat([x[:, :5], row.expand(3, -1, -1)], dim=1))
    expected = tower._pool(last(x)[:, :5])[0] @ tower.proj

    features = encode_image(tower, images(3).double(), made)

    torch.testing.assert_close(features, expected, rtol=0, atol=1e-13)


def test_a_tower_that_pools_all_tokens_gets_all_of_them() -> None:
    tower = biased(VisionTransformer(16, 8, 32, 3, 2, 4.0, pool_type="avg", output_dim=16).eval())

    features = encode_image(tower, images(3).double())

    torch.testing.assert_close(features, tower(images(3).double()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("depth", [0, 2])
def test_no_images_have_no_features(depth: int) -> None:
    tower = towers().visual
    given = prompts(depth) if depth else None

    assert encode_image(tower, images(3)[:0], given).shape == (0, 16)
    assert len(encode_image(tower, images(1), given)) == 1


def test_image_prompts_stand_behind_the_patches_and_are_replaced_layer_by_layer() -> None:
    clip, made = towers(), prompts(2)
    plain = inputs_of_blocks(clip.visual, lambda: encode_image(clip.visual, images(3)))

    seen = inputs_of_blocks(clip.visual, lambda: encode_image(clip.visual, images(3), made))

    assert [x.shape[1] for x in plain] == [5, 5, 5]
    assert [x.shape[1] for x in seen] == [7, 7, 7]
    assert torch.equal(seen[0][:, :5], plain[0])
    assert torch.equal(seen[0][:, 5:], clip.visual.ln_pre(made.tokens[0]).expand(3, -1, -1))
    assert torch.equal(seen[1][:, 5:], made.tokens[1].expand(3, -1, -1))
    assert not torch.equal(seen[2][:, 5:], seen[1][:, 5:])  # beyond the depth they live on


def test_text_prompts_stand_behind_the_start_token_and_are_replaced_layer_by_layer() -> None:
    clip, made = towers(), prompts(2)
    plain = inputs_of_blocks(clip.text, lambda: encode_text(clip.text, tokens()))

    seen = inputs_of_blocks(clip.text, lambda: encode_text(clip.text, tokens(), made))

    place = made.tokens[0] + clip.text.positional_embedding[1:3]
    assert torch.equal(seen[0][:, 1:3], place.expand(len(NAMES), -1, -1))
    assert torch.equal(seen[0][:, 3:], plain[0][:, 3:])
    assert torch.equal(seen[0][:, :1], plain[0][:, :1])
    assert torch.equal(seen[1][:, 1:3], made.tokens[1].expand(len(NAMES), -1, -1))
    assert not torch.equal(seen[2][:, 1:3], seen[1][:, 1:3])


def test_prompts_that_repeat_the_words_change_nothing() -> None:
    clip, made = towers(), prompts(1)
    made.tokens.data[0] = clip.text.token_embedding(tokens()[0, 1:3])

    torch.testing.assert_close(
        encode_text(clip.text, tokens(), made), encode_text(clip.text, tokens())
    )


def test_every_row_of_prompts_gets_a_gradient_and_no_tower_weight_does() -> None:
    clip, text, image = towers(), prompts(3), prompts(3)
    features = encode_image(clip.visual, images(3), image).sum()

    torch.autograd.backward(features + encode_text(clip.text, tokens(), text).sum())

    for made in (text, image):
        assert made.tokens.grad is not None
        assert all(float(row.abs().sum()) > 0 for row in made.tokens.grad)
    assert not any(
        p.requires_grad for tower in (clip.visual, clip.text) for p in tower.parameters()
    )


@pytest.mark.parametrize(
    "make", [lambda seed: prompts(2, seed=seed), lambda seed: coupled(prompts(2), 2, seed=seed)]
)
def test_random_prompts_follow_their_generator_and_leave_the_global_one_alone(make: Any) -> None:
    before = torch.get_rng_state()
    first, second, other = (make(seed).tokens for seed in (5, 5, 6))

    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_prompts_have_the_published_deviation() -> None:
    made = DeepPrompts(9, 4, 512, generator=torch.Generator().manual_seed(0)).tokens.detach()

    assert float(made.std()) == pytest.approx(0.02, rel=0.02)
    assert float(made.mean()) == pytest.approx(0, abs=5e-4)


def test_a_copy_has_prompts_of_its_own() -> None:
    made = prompts(2)
    copied = copy.deepcopy(made)
    copied.tokens.data.zero_()

    assert made.tokens.detach().abs().sum() > 0
    assert not torch.equal(
        encode_image(towers().visual, images(2), made),
        encode_image(towers().visual, images(2), copied),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pictures_and_prompts_take_on_the_precision_of_the_tower(dtype: torch.dtype) -> None:
    clip, made = towers(), prompts(2)
    visual, text = (copy.deepcopy(tower).to(dtype) for tower in (clip.visual, clip.text))

    features = encode_image(visual, images(3), made), encode_text(text, tokens(), made)

    expected = encode_image(clip.visual, images(3), made), encode_text(clip.text, tokens(), made)
    for ours, plain in zip(features, expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), plain, rtol=0.1, atol=0.1)


def test_words_get_their_positions_in_the_precision_of_the_tower() -> None:
    text, made = copy.deepcopy(towers().text).to(torch.bfloat16), prompts(1)
    text.positional_embedding.data = text.positional_embedding.data.float()

    seen = inputs_of_blocks(text, lambda: encode_text(text, tokens(), made))

    assert all(x.dtype == torch.bfloat16 for x in seen)


@pytest.mark.parametrize(("width", "has_bias"), [(7, True), (7, False), (None, False)])
def test_features_leave_a_tower_through_whatever_projects_them(
    width: int | None, has_bias: bool
) -> None:
    tower = TextTransformer(**CONFIG["text_cfg"], output_dim=width, proj_bias=has_bias)

    features = encode_text(tower, tokens())

    torch.testing.assert_close(features, tower(tokens()))
    assert features.shape == (len(NAMES), width or 32)


def test_prompts_know_their_depth_and_length_and_start_at_zero_without_a_generator() -> None:
    made = DeepPrompts(3, 2, 32)

    assert (made.depth, made.length) == (3, 2)
    assert made.tokens.shape == (3, 2, 32)
    assert not made.tokens.any()
    assert made.tokens.requires_grad


def test_coupled_image_prompts_are_linear_in_the_text_prompts_layer_by_layer() -> None:
    text = prompts(3)

    made = coupled(text, depth=2, width=48)

    assert (made.depth, made.length) == (2, 2)
    assert made.tokens.shape == (2, 2, 48)
    for row, words, couple in zip(made.tokens, text.tokens, made.couplings, strict=False):
        torch.testing.assert_close(row, words @ couple.weight.T + couple.bias)


def test_couplings_are_trained_and_the_text_prompts_belong_to_somebody_else() -> None:
    text = prompts(2)
    made = coupled(text, depth=2)

    torch.autograd.backward(made.tokens.square().sum())

    names = [f"couplings.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")]
    assert [name for name, _ in made.named_parameters()] == names
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert text.tokens.grad is not None


def test_hardly_any_two_seeds_have_the_same_couplings() -> None:
    text = prompts(1)
    made = [coupled(text, depth=1, width=1, seed=seed).tokens.tolist() for seed in range(60)]

    assert all(made.count(prompt) == 1 for prompt in made)


def test_folded_prompts_are_what_the_coupled_ones_compute_and_follow_them_no_more() -> None:
    text = prompts(2)
    made = coupled(text, depth=2)
    folded = made.folded()
    before = made.tokens.detach().clone()

    text.tokens.data.zero_()

    assert isinstance(folded, DeepPrompts)
    assert folded.tokens.requires_grad
    assert torch.equal(folded.tokens, before)
    assert not torch.equal(folded.tokens, made.tokens)
