"""Texts of classes: the same tokens for two names are refused, truncated texts are noted."""

import re

import pytest
import tiny
import torch

from pd_core.core.errors import BadParams
from pd_core.models.class_texts import check_classes, check_distinct
from pd_core.models.class_vectors import build, template_features
from pd_core.models.clip import local_tokenizer
from pd_core.models.embedded import EMBEDDED
from pd_core.models.teacher import Teacher

EARLY, LATE = "番茄植株叶片早疫病初期", "番茄植株叶片早疫病晚期"


def check(*names: str, model: str = "ViT-B-16") -> list[str]:
    tokenize = local_tokenizer(model)
    assert tokenize is not None
    return check_classes(names, model, tokenize)


@pytest.mark.parametrize(
    "names",
    [
        ("Hex_Nut", "hex nut", "HEX NUT"),
        ("caf\u00e9", "cafe\u0301"),
        ("ＨＥＸ", "hex"),
        ("screw", "screw "),
        ("nut &amp; bolt", "nut & bolt"),
        ("M 10", "m10"),
        ("t-shirt", "T - Shirt"),
    ],
)  # fmt: skip
def test_names_with_the_same_tokens_are_refused_and_all_are_named(names: tuple[str, ...]) -> None:
    with pytest.raises(BadParams, match="ignores case, underscores and blanks") as refused:
        check("tea", *names)
    assert all(f"'{name}'" in str(refused.value) for name in names)


@pytest.mark.parametrize(
    "names", [("Straße", "Strasse"), ("hexnut", "hex nut"), ("nut", "nuts"), ("M10", "M100")]
)
def test_names_that_clip_tells_apart_are_read(names: tuple[str, ...]) -> None:
    assert check(*names) == []


def test_names_that_differ_beyond_the_context_length_are_refused_and_the_limit_is_named() -> None:
    with pytest.raises(BadParams, match=f"'{EARLY}' and '{LATE}'.*reads 32 tokens.*shorten"):
        check(EARLY, LATE, model=EMBEDDED[0])
    assert check(EARLY, LATE) == []  # with 77 positions


def test_a_truncated_text_is_noted_with_its_length_and_the_limit() -> None:
    (line,) = check("tea", EARLY, model=EMBEDDED[0])
    tokens = re.fullmatch(
        f"model 'embedded-teacher' reads 32 of the ([0-9]+) tokens of class '{EARLY}': the end of "
        "the name has no effect",
        line,
    )
    assert tokens is not None
    assert 32 < int(tokens[1]) < 80


def test_the_same_name_twice_is_no_clash() -> None:
    assert check("missile", "tea", "missile") == []


@pytest.mark.parametrize("model", ["no-model", "xlm-roberta-base-ViT-B-32"])
def test_a_model_without_a_tokenizer_of_its_own_has_none_without_a_download(model: str) -> None:
    assert local_tokenizer(model) is None


def test_class_vectors_and_template_features_refuse_names_with_the_same_tokens() -> None:
    teacher = Teacher(tiny.towers()).eval()
    with pytest.raises(BadParams, match="'maine coon' and 'Maine_Coon' have the same text"):
        build(teacher, ["tench", "maine coon", "Maine_Coon"])
    with pytest.raises(BadParams, match="model 'tiny'"):
        template_features(teacher, ["tench", "Tench"], ["a photo of a {}.", "art of the {}."])


def test_one_template_that_tells_two_names_apart_is_enough() -> None:
    tokens = torch.tensor([[[1, 5], [2, 5]], [[1, 5], [3, 5]]])

    check_distinct(["a", "b"], tokens, "tiny", tiny.towers().tokenize)
