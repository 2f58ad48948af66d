"""Names of the user's own classes: what CLIP would read alike is refused before any training."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pd_core.core.errors import BadData
from pd_core.data.catalog.catalogue import OwnImages
from pd_core.data.catalog.class_names import check_names, words
from pd_core.data.catalog.own import read_own
from pd_core.models.clip import local_tokenizer


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        ("Hex_Nut", "HEX  NUT", r"'HEX \\x20NUT'"),
        ("screw", "screw ", "'screw '"),
        ("tea", "te\u200ba", r"'te\\u200ba'"),  # a zero-width space
        ("tea", "tea\ufeff", r"'tea\\ufeff'"),  # a byte order mark
        ("hex", "ＨＥＸ", "'ＨＥＸ'"),  # full-width letters
        ("nut & bolt", "nut &amp; bolt", "'nut &amp; bolt'"),
        ("M10", "m 10", "'m 10'"),
        ("Straße", "STRAẞE", "'STRAẞE'"),
        ("hex\u00a0nut", "hex nut", r"'hex\\xa0nut'"),  # a no-break space
        ("don’t", "don't", '"don\'t"|\'don\'t\''),  # a curly apostrophe
    ],
)  # fmt: skip
def test_names_that_clip_reads_alike_are_refused(first: str, second: str, shown: str) -> None:
    with pytest.raises(BadData, match=f"(?s){shown}.*have the same text for CLIP"):
        check_names(["other", first, second])


def test_names_that_clip_tells_apart_are_read() -> None:
    check_names(["Straße", "Strasse", "hexnut", "hex nut", "no. 1", "no 1", "å", "a", "İ", "i"])


PARTS = [
    *"aAbB01_ -.;ßẞİı", "&amp;", "&#39;", "'s", "'S", "fi", "ﬁ", "é", "e\u0301", "É", "Ｈ", "２",
    "²", "½", "\u00a0", "…", "...", "“", '"', "Ⅷ", "ⅷ", "ſ",
]  # fmt: skip
NAMES = st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map("".join)


@settings(max_examples=300)
@given(NAMES, NAMES)
def test_names_of_the_same_tokens_have_the_same_words(first: str, second: str) -> None:
    tokenize = local_tokenizer("ViT-B-16")
    assert tokenize is not None
    rows = tokenize([f"a photo of a {name.replace('_', ' ')}." for name in (first, second)])

    assert words(first) == words(second) or rows[0].tolist() != rows[1].tolist()


@pytest.mark.parametrize("name", ["_", " ", "\u200b", "&nbsp;"])
def test_a_name_without_words_is_refused(name: str) -> None:
    with pytest.raises(BadData, match="has no words"):
        check_names(["tea", name])


def folder(root: Path, *names: str) -> OwnImages:
    for number, name in enumerate(names):
        (root / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / "photos" / name / f"{number}.png")
    return OwnImages(labelled="photos")


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path: Path) -> None:
    splits = read_own(folder(tmp_path, "caf\u00e9", "cafe\u0301", "tea"), tmp_path)
    assert splits.class_names == ("caf\u00e9", "tea")
    assert [item.path for item in splits.train] == [
        "cafe\u0301/1.png", "caf\u00e9/0.png", "tea/2.png"
    ]  # fmt: skip


def test_folders_that_differ_in_case_and_underscores_are_refused_with_all_names(
    tmp_path: Path,
) -> None:
    own = folder(tmp_path, "Hex_Nut", "hex nut", "HEX NUT", "screw")
    with pytest.raises(BadData, match="'HEX NUT', 'Hex_Nut' and 'hex nut' have the same text"):
        read_own(own, tmp_path)
