"""The teacher writes its texts as published, keeps its prompts, and refuses what does not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import NAMES, images, towers
from torch import Tensor

from pd_core.core.artifacts import read_tensors, write_tensors
from pd_core.core.errors import BadArtifact, BadParams, MissingFile
from pd_core.core.options import TeacherMethod
from pd_core.models.teacher import Teacher


def teacher(**sizes: Any) -> Teacher:
    return Teacher.untrained(towers(), **sizes)


def test_only_the_prompts_are_parameters_and_state() -> None:
    made = teacher(text_depth=2, image_depth=3)

    names = {"text_prompts.tokens", "image_prompts.tokens"}
    assert {name for name, _ in made.named_parameters()} == names
    assert made.state_dict().keys() == names


def test_a_depth_beyond_the_layers_is_clipped() -> None:
    made = teacher(text_depth=9, image_depth=9, text_length=4, image_length=5)

    assert made.state_dict()["text_prompts.tokens"].shape == (3, 4, 32)
    assert made.state_dict()["image_prompts.tokens"].shape == (3, 5, 32)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_up_to_four_text_prompts_start_as_words_and_the_whole_phrase_stays(length: int) -> None:
    made = teacher(text_length=length)

    words = towers().text.token_embedding(towers().tokenize(["a photo of a"])[0, 1 : 1 + length])
    assert torch.equal(made.state_dict()["text_prompts.tokens"][0], words)
    assert made.texts(["golden_retriever"]) == ["a photo of a golden retriever."]


def test_more_prompts_than_words_are_random_and_placeholders_hold_their_places() -> None:
    made = teacher(text_length=6)

    assert made.texts(["maine coon"]) == ["X X X X X X maine coon."]
    assert float(made.state_dict()["text_prompts.tokens"][0].std()) == pytest.approx(0.02, rel=0.3)


def test_the_template_is_an_argument() -> None:
    made = Teacher.untrained(towers(), template="a drawing of {}, a letter.", text_length=3)

    words = towers().text.token_embedding(towers().tokenize(["a drawing of"])[0, 1:4])
    assert made.texts(["new_york"]) == ["a drawing of new york, a letter."]
    assert torch.equal(made.state_dict()["text_prompts.tokens"][0], words)
    with pytest.raises(BadParams, match="has no {}"):
        Teacher.untrained(towers(), template="a drawing")


def test_a_fresh_teacher_with_shallow_word_prompts_computes_what_zero_shot_does() -> None:
    fresh, zero_shot = teacher(text_depth=1), Teacher(towers())
    tokens = zero_shot.tokens(NAMES)

    torch.testing.assert_close(fresh.text_features(tokens), zero_shot.text_features(tokens))


def test_features_have_unit_length_and_frozen_ones_have_no_prompts() -> None:
    made = teacher()

    for features in (made.image_features(images(3)), made.text_features(made.tokens(NAMES))):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))
    zero_shot = Teacher(towers()).image_features(images(3))
    torch.testing.assert_close(made.frozen_image_features(images(3)), zero_shot)
    assert not made.frozen_image_features(images(3)).requires_grad


def test_the_seed_decides_the_prompts() -> None:
    first, again = teacher().state_dict(), teacher().state_dict()
    other = Teacher.untrained(towers(), seed=2).state_dict()

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("size", ["text_depth", "text_length", "image_depth", "image_length"])
def test_sizes_below_one_are_refused(size: str) -> None:
    with pytest.raises(BadParams, match=f"{size.replace('_', ' prompt ')} = 0"):
        teacher(**{size: 0})


def test_prompts_that_leave_no_room_for_a_name_are_refused() -> None:
    with pytest.raises(BadParams, match="22 leaves no room .* 24 positions"):
        teacher(text_length=22).tokens(NAMES)


def test_a_stored_teacher_gives_the_same_features(tmp_path: Path) -> None:
    made = teacher(text_depth=2, image_length=3)
    made.save(tmp_path / "teacher.safetensors")

    loaded = Teacher.load(tmp_path / "teacher.safetensors", towers())

    assert loaded.method is TeacherMethod.PROMPTSRC
    assert torch.equal(loaded.image_features(images(3)), made.image_features(images(3)))
    tokens = made.tokens(NAMES)
    assert torch.equal(loaded.text_features(tokens), made.text_features(tokens))


def test_a_zero_shot_teacher_comes_back_without_prompts(tmp_path: Path) -> None:
    Teacher(towers()).save(tmp_path / "teacher.safetensors")

    loaded = Teacher.load(tmp_path / "teacher.safetensors", towers())

    assert loaded.method is TeacherMethod.CLIP
    assert list(loaded.parameters()) == []


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (
            {"text.tokens": torch.zeros(2, 4, 64)},
            {"text_depth": "2"},
            "64.; the tower has 3 layers",
        ),
        (
            {"text.tokens": torch.zeros(5, 4, 32)},
            {"text_depth": "5"},
            ".5, 4, 32.; the tower has 3",
        ),
        (
            {},
            {"image_depth": "2"},
            "image prompts of depth and length .3, 4., but its metadata has",
        ),
        (
            {},
            {"image_depth": "0"},
            "image prompts of depth and length .3, 4., but its metadata has",
        ),
        ({}, {"model": "other"}, "trained on model 'other', not on 'tiny'"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_with_the_numbers(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], message: str
) -> None:
    path = tmp_path / "teacher.safetensors"
    teacher().save(path)
    stored, described = read_tensors(path)
    write_tensors(path, stored | tensors, described | metadata)

    with pytest.raises(BadArtifact, match=message):
        Teacher.load(path, towers())


def test_a_missing_teacher_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="dvc repro teacher@dtd"):
        Teacher.load(tmp_path / "no", towers(), remedy="run `dvc repro teacher@dtd`")
