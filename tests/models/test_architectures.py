"""Models of every architecture as teacher and student."""

from pathlib import Path
from typing import Any

import architectures
import open_clip
import pytest
import tiny
import torch
import torch.nn.functional as F
import trainings
from architectures import Letters, model, towers
from torch import Tensor

from pd_core.core.artifacts import read_tensors
from pd_core.core.errors import BadParams
from pd_core.core.options import TeacherMethod, Trained
from pd_core.models import class_vectors, clip
from pd_core.models.class_texts import check_classes, phrase_tokens
from pd_core.models.prompts import DeepPrompts, encode_image, encode_text
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.models.towers import (
    teacher_methods,
    trained_parts,
    with_image_prompts,
    with_text_prompts,
)

NAMES = ("golden_retriever", "maine coon", "tench", "sea or lake")
EVERY = list(architectures.VISION)
WITHOUT_IMAGE_PROMPTS = ["RN50", "convnext_base", "MobileCLIP-S1", "MobileCLIP2-S3"]
WITH_IMAGE_PROMPTS = [name for name in EVERY if name not in WITHOUT_IMAGE_PROMPTS]
TUNED = [method for method in TeacherMethod if method is not TeacherMethod.CLIP]
LABELS = torch.arange(8) % len(NAMES)


def pictures(name: str, count: int = 3) -> Tensor:
    return tiny.images(count, side=towers(name).image_size)


def batches(name: str) -> tiny.Batches:
    return tiny.Batches(8, size=8, side=towers(name).image_size)


def prompts(width: int, *, first: int = 1) -> DeepPrompts:
    generator = torch.Generator().manual_seed(3)
    made = DeepPrompts(2, 3, width, generator=generator, first=first)
    made.tokens.data *= 20
    return made.double()


def first(output: Any) -> Tensor:
    """Drop the tokens that CoCa returns."""
    features: Tensor = output[0] if isinstance(output, tuple) else output
    return features


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_features_without_prompts_are_those_of_open_clip(name: str) -> None:
    teacher = Teacher(towers(name)).eval()

    image = teacher.image_features(pictures(name))
    text = class_vectors.build(teacher, NAMES).vectors

    tokens = architectures.tokenizer(name)(teacher.texts(NAMES))
    expected = first(model(name).encode_image(pictures(name)))
    torch.testing.assert_close(image, F.normalize(expected, dim=-1), atol=1e-5, rtol=0)
    expected = first(model(name).encode_text(tokens))
    torch.testing.assert_close(text, F.normalize(expected, dim=-1), atol=1e-5, rtol=0)
    assert teacher.logit_scale == pytest.approx(float(model(name).logit_scale.exp()))
    assert towers(name).joint_width == image.shape[1] == text.shape[1]


@pytest.mark.parametrize("method", TUNED)
@pytest.mark.parametrize("name", EVERY)
def test_a_method_tunes_every_teacher_that_it_can_and_is_refused_for_the_others(
    name: str, method: TeacherMethod
) -> None:
    image = method is not TeacherMethod.COOP
    if image and name in WITHOUT_IMAGE_PROMPTS:
        assert method not in teacher_methods(towers(name).visual, towers(name).text)
        with pytest.raises(BadParams, match=r"image tower .* set teacher.method to coop or clip$"):
            Teacher.untrained(towers(name), method=method)
        return

    _, history = trainings.tune(
        towers(name), batches(name), LABELS, NAMES, method=method, epochs=5, lr=0.0005,
        gpa_mean=2, templates=2, text_depth=2, image_depth=2,
    )  # fmt: skip

    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("part", Trained)
@pytest.mark.parametrize("name", EVERY)
def test_a_student_of_every_model_learns_and_is_stored(
    name: str, part: Trained, tmp_path: Path
) -> None:
    if part is Trained.PROMPTS_AND_PROJECTOR and name in WITHOUT_IMAGE_PROMPTS:
        assert part not in trained_parts(towers(name).visual)
        others = "projector_only, norm_and_projector, full_finetune"
        with pytest.raises(BadParams, match=f"set student.trained to one of {others}$"):
            Student.untrained(towers(name), feature_width=8, trained=part)
        return
    teacher = Teacher(towers(name)).eval()
    vectors = class_vectors.build(teacher, NAMES)

    student, history = trainings.distill(
        towers(name), teacher, vectors, batches(name), epochs=5, lr=0.001, kd_weight=10,
        trained=part, image_depth=2,
    )  # fmt: skip

    assert history[-1]["loss"] < history[0]["loss"]
    student.save(tmp_path / "student.safetensors")
    read = Student.load(tmp_path / "student.safetensors", towers(name))
    with torch.no_grad():
        torch.testing.assert_close(read(pictures(name)), student(pictures(name)))


@pytest.mark.parametrize("name", ["RN50", "MobileCLIP-S1", "ViT-B-16", "convnext_base"])
def test_the_normalisations_alone_are_trained_and_batch_norms_keep_their_statistics(
    name: str, tmp_path: Path
) -> None:
    student = Student.untrained(
        towers(name), feature_width=8, trained=Trained.NORM_AND_PROJECTOR
    ).train()
    before = {key: value.clone() for key, value in student.tower.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=1.0)

    student(pictures(name))[:, 0].sum().backward()
    optimiser.step()

    after = student.tower.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    norms = {
        f"{key}.{part}"
        for key, module in student.tower.named_modules()
        if "Norm" in type(module).__name__
        for part in ("weight", "bias")
    }
    assert changed
    assert changed <= norms
    student.save(tmp_path / "student.safetensors")
    stored, _ = read_tensors(tmp_path / "student.safetensors", what="student", remedy="")
    start = "backbone.visual."
    kept = {key.removeprefix(start) for key in stored if key.startswith(start)}
    assert changed <= kept <= norms


@pytest.mark.parametrize("name", WITH_IMAGE_PROMPTS)
@torch.no_grad()
def test_prompts_act_and_leave_nothing_behind(name: str) -> None:
    made = prompts(towers(name).image_width)
    tower, images = tiny.biased(towers(name).visual), pictures(name).double()
    before = encode_image(tower, images)

    prompted = encode_image(tower, images, made)
    shallow = encode_image(tower, images, DeepPrompts.of(made.tokens[:1]).double())

    assert torch.equal(encode_image(tower, images), before)
    assert not torch.allclose(prompted, before, atol=1e-8, rtol=0)
    assert not torch.allclose(prompted, shallow, atol=1e-8, rtol=0)
    # Prompts have no position: neither an embedding nor a rotation.
    swapped = encode_image(tower, images, DeepPrompts.of(made.tokens.flip(1)).double())
    torch.testing.assert_close(swapped, prompted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["EVA02-B-16", "PE-Core-B-16"])
@torch.no_grad()
def test_prompts_are_rotated_no_more_than_the_class_token(name: str) -> None:
    tower, made = tiny.biased(towers(name).visual), prompts(48)
    images, trunk = pictures(name).double(), tower.trunk

    features = encode_image(tower, images, made)

    x, rope = trunk._pos_embed(trunk.patch_embed(images))
    x = trunk.norm_pre(x)
    first, patches = x[:, :1], x[:, 1:]
    row = trunk.norm_pre(made.tokens[0]).expand(len(x), -1, -1)
    for layer, block in enumerate(trunk.blocks):
        if layer == 1:
            row = made.tokens[1].expand(len(x), -1, -1)
        block.attn.num_prefix_tokens += made.length  # with the class token, in front
        x = block(torch.cat([first, row, patches], dim=1), rope=rope)
        first, row, patches = x.tensor_split([1, 1 + made.length], dim=1)
    expected = tower.head(trunk.forward_head(trunk.norm(torch.cat([first, patches], dim=1))))
    torch.testing.assert_close(features, expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_prompts_through_the_models_own_forward_pass_give_the_features_of_the_plain_road() -> None:
    visual, text = (tiny.biased(tower) for tower in (tiny.towers().visual, tiny.towers().text))
    images, made = tiny.images(3).double(), prompts(32)
    tokens = tiny.towers().tokenize([f"a photo of a {name}." for name in tiny.NAMES])

    image = with_image_prompts(visual, images, made.tokens)
    of_text = with_text_prompts(text, tokens, made.tokens, 1)

    torch.testing.assert_close(image, encode_image(visual, images, made), atol=1e-12, rtol=0)
    torch.testing.assert_close(of_text, encode_text(text, tokens, made), atol=1e-12, rtol=0)


@torch.no_grad()
def test_an_average_over_patches_leaves_prompts_out() -> None:
    tower, made = tiny.biased(towers("ViT-L-14-CLIPA").visual), prompts(32)
    images = pictures("ViT-L-14-CLIPA").double()

    expected = with_image_prompts(tower, images, made.tokens)

    torch.testing.assert_close(encode_image(tower, images, made), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_prompts_take_the_place_of_the_first_words_where_texts_have_no_start_token() -> None:
    name = "ViT-B-16-SigLIP"
    teacher = Teacher.untrained(
        towers(name), method=TeacherMethod.COOP, text_length=2, template="old words {}"
    )
    other = Teacher(towers(name), teacher.text_prompts, template="new things {}")

    assert phrase_tokens(towers(name).tokenize, "old words {}").tolist() == [
        *towers(name).tokenize(["old words"])[0, :2]
    ]
    features = [each.text_features(each.tokens(["cat", "dog"])) for each in (teacher, other)]
    torch.testing.assert_close(features[0], features[1])
    assert not torch.allclose(features[0][0], features[0][1], atol=1e-3)


@pytest.mark.parametrize("name", architectures.TOKENIZERS)
def test_a_text_that_is_cut_is_named_for_every_kind_of_tokenizer(name: str) -> None:
    tokenize = architectures.tokenizer(name)
    long = " ".join(f"w{number}" for number in range(30))

    notes = check_classes(["cat", long], name, tokenize)

    assert len(notes) == 1
    assert f"reads {architectures.LENGTH} of the" in notes[0]
    with pytest.raises(BadParams, match=f"reads {architectures.LENGTH} tokens of a text"):
        check_classes([f"{long} one", f"{long} two"], name, tokenize)


def test_a_text_is_cut_by_its_end_token_where_that_is_the_padding_too() -> None:
    tokenize = architectures.tokenizer("ViT-B-16-SigLIP")
    words = [f"w{number}" for number in range(12)]  # behind the four of the template

    assert check_classes([" ".join(words[:11])], "SigLIP", tokenize) == []
    assert "reads 16 of the 17 tokens" in check_classes([" ".join(words)], "SigLIP", tokenize)[0]


def test_words_before_the_name_are_found_by_every_kind_of_tokenizer() -> None:
    for tokenize in (
        Letters(start=None, end=1, fill=1),
        Letters(start=None, end=1, fill=0),
        Letters(start=5, end=None, fill=0),
        Letters(start=0, end=2, fill=1),
        tiny.towers().tokenize,
    ):
        assert len(phrase_tokens(tokenize, "a photo of a {}.")) == 4
        assert len(phrase_tokens(tokenize, "{}.")) == 0


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_a_tower_with_blocks_of_another_kind_takes_prompts(tower: str) -> None:
    part = {"visual": "vision_cfg", "text": "text_cfg"}[tower]
    config = tiny.CONFIG | {part: tiny.CONFIG[part] | {"block_type": "custom"}}
    base = clip.freeze("other", open_clip.CustomTextCLIP(**config), tiny.towers().tokenize)

    teacher = Teacher.untrained(base, text_depth=2, image_depth=2)
    image = teacher.image_features(tiny.images(2))
    text = teacher.text_features(teacher.tokens(NAMES))

    gradients = torch.autograd.grad((image @ text.T).sum(), list(teacher.parameters()))
    assert [bool(gradient.abs().sum() > 0) for gradient in gradients] == [True, True]


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "coca_ViT-B-32"])
def test_texts_that_are_computed_again_for_their_gradients_give_the_same_ones(name: str) -> None:
    teacher = Teacher.untrained(towers(name), text_depth=2, text_length=3, image_depth=2)
    names = [f"class {number}" for number in range(40)]
    gradients: list[Tensor] = []
    for memory in (None, 0):
        plan = teacher.text_plan(names, memory=memory)
        assert plan.kept == (0 if memory == 0 else 1)
        features = teacher.text_features(plan)
        assert teacher.text_prompts is not None
        gradients += torch.autograd.grad(features[:, 0].sum(), [teacher.text_prompts.tokens])

    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
