"""The embedded data sets are what the benchmark needs them to be."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pd_core.core.errors import UnknownName
from pd_core.data.catalog import embedded, glyphs
from pd_core.data.loading.splits import Splits

NAMES = [*embedded.DOMAINS, *embedded.VARIANTS]
SMALL = "embedded_braille"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Splits]:
    folder = tmp_path_factory.mktemp("built")
    return folder, embedded.build(SMALL, folder)


def test_there_are_eleven_and_four_variants_of_one_of_them() -> None:
    assert len(embedded.DOMAINS) == 11
    assert len(embedded.VARIANTS) == 4
    assert {row.source for row in embedded.VARIANTS.values()} == {"embedded_symbols"}


@pytest.mark.parametrize("name", embedded.VARIANTS)
def test_a_variant_has_the_classes_of_its_source_by_the_same_labels(name: str) -> None:
    assert embedded.class_names(name) == embedded.class_names("embedded_symbols")


def test_no_two_variants_look_alike() -> None:
    styles = {embedded.domain(name).style for name in ("embedded_symbols", *embedded.VARIANTS)}
    assert len(styles) == 5


@pytest.mark.parametrize("name", NAMES)
def test_class_names_are_distinct_unicode_names(name: str) -> None:
    names = embedded.class_names(name)
    assert len(set(names)) == len(names) >= 10
    assert all(names)


@pytest.mark.parametrize("name", NAMES)
def test_no_two_classes_of_a_data_set_look_the_same(name: str) -> None:
    if embedded.domain(name).handwritten:
        return
    seen: dict[bytes, str] = {}
    for char in embedded.class_characters(name):
        for font in glyphs.HELD_OUT_FONTS:
            if char in glyphs.characters(font):
                owner = seen.setdefault(glyphs.render(char, font).tobytes(), char)
                assert owner == char


def test_held_out_fonts_are_not_pretraining_fonts() -> None:
    assert not set(glyphs.HELD_OUT_FONTS) & set(glyphs.PRETRAINING_FONTS)


def test_pictures_are_drawn_with_held_out_fonts_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    used = set()
    render = glyphs.render

    def watched(char: str, font: str) -> object:
        used.add(font)
        return render(char, font)

    monkeypatch.setattr(embedded, "render", watched)
    embedded.build("embedded_greek", tmp_path)
    assert used == set(glyphs.HELD_OUT_FONTS)


def test_building_twice_gives_the_same_bytes(built: tuple[Path, Splits], tmp_path: Path) -> None:
    folder, splits = built
    assert embedded.build(SMALL, tmp_path) == splits
    assert (tmp_path / embedded.ARCHIVE).read_bytes() == (folder / embedded.ARCHIVE).read_bytes()


def test_every_class_has_its_share_of_each_split(built: tuple[Path, Splits]) -> None:
    _, splits = built
    for split, count in embedded.IMAGES_PER_CLASS.items():
        labels = [item.label for item in getattr(splits, split)]
        assert np.bincount(labels).tolist() == [count] * len(embedded.class_names(SMALL))


def test_handwriting_has_every_picture_once(tmp_path: Path) -> None:
    splits = embedded.build("embedded_digits", tmp_path)
    check_splits(tmp_path, splits)
    with zipfile.ZipFile(tmp_path / embedded.ARCHIVE) as archive:
        pictures = [archive.read(name) for name in archive.namelist()]
    assert len(set(pictures)) == len(pictures) > 1600


def test_pictures_are_small_colour_pngs(built: tuple[Path, Splits]) -> None:
    folder, splits = built
    with zipfile.ZipFile(folder / embedded.ARCHIVE) as archive:
        for item in splits.test[:5]:
            picture = Image.open(io.BytesIO(archive.read(item.path)))
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (32, 32))


def check_splits(folder: Path, splits: Splits) -> None:
    with zipfile.ZipFile(folder / embedded.ARCHIVE) as archive:
        test = {archive.read(item.path) for item in splits.test}
        rest = {archive.read(item.path) for item in (*splits.train, *splits.val)}
    assert not test & rest


def test_no_test_picture_is_in_another_split(built: tuple[Path, Splits]) -> None:
    check_splits(*built)


@pytest.mark.parametrize("name", NAMES)
def test_no_two_of_a_few_pictures_of_a_data_set_are_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "IMAGES_PER_CLASS", {"train": 3, "val": 1, "test": 2})
    embedded.build(name, tmp_path)
    with zipfile.ZipFile(tmp_path / embedded.ARCHIVE) as archive:
        pictures = [archive.read(path) for path in archive.namelist()]
    assert len(set(pictures)) == len(pictures) >= 60


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_test_picture_of_any_data_set_is_in_another_split(name: str, tmp_path: Path) -> None:
    check_splits(tmp_path, embedded.build(name, tmp_path))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="did you mean 'embedded_greek'"):
        embedded.domain("embedded_greec")
