"""A check of own images: all four lists, what is unusual, and an overview to look at."""

import shutil
from pathlib import Path

import numpy as np
import own_pictures
import pytest
from own_pictures import OWN, picture
from PIL import Image

from pd_core.core.errors import BadParams
from pd_core.data.acquire import contact_sheet
from pd_core.data.acquire.contact_sheet import write_sheet
from pd_core.data.acquire.overview import ClassOverview, Overview
from pd_core.data.acquire.verify import Report, verify
from pd_core.data.catalog.catalogue import own_spec

SIDE = contact_sheet._SIDE


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return own_pictures.write(tmp_path)


def report(own: Path, **options: object) -> Report:
    return verify(own_spec("mine", OWN), own.parent, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("full", [False, True])
def test_intact_images_have_counts_of_all_four_lists(full: bool, own: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = report(own, full=full, on_progress=lambda done, total: seen.append((done, total)))

    assert result.ok
    assert result.notes == ()
    assert result.counts == {"classes": 2, "train": 6, "val": 0, "test": 4}
    assert result.overview == Overview(
        (
            ClassOverview("box", 3, 0, 2, (*paths("labelled/box", 3), *paths("test/box", 2))),
            ClassOverview(
                "circle", 3, 0, 2, (*paths("labelled/circle", 3), *paths("test/circle", 2))
            ),
        ),
        4,
        paths("unlabelled", 4),
        {},
    )
    assert seen[-1] == (14, 14)


def paths(folder: str, count: int) -> tuple[str, ...]:
    return tuple(f"{folder}/{number}.png" for number in range(count))


def test_corrupt_unlabelled_images_are_found(own: Path) -> None:
    picture = (own / "unlabelled/0.png").read_bytes()
    (own / "unlabelled/half.png").write_bytes(picture[: len(picture) // 2])
    (own / "unlabelled/page.jpg").write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    (own / "unlabelled/empty.jpg").write_bytes(b"")

    heads, full = report(own), report(own, full=True, workers=1)

    assert heads.problems == (
        "'unlabelled/empty.jpg' is an empty file: replace it",
        "'unlabelled/page.jpg' is an HTML page: replace it",
    )
    assert set(full.problems) - set(heads.problems) == {
        "'unlabelled/half.png' is damaged (image file is truncated): replace it"
    }


def test_all_problems_and_notes_are_reported_at_once(own: Path) -> None:
    shutil.copy(own / "labelled/box/0.png", own / "labelled/circle/conflict.png")
    shutil.copy(own / "labelled/box/1.png", own / "test/box/leak.png")
    (own / "unlabelled/page.jpg").write_text("<html>")
    (own / "unlabelled/notes.txt").write_text("of no interest")

    result = report(own)

    assert [line.partition(":")[0] for line in result.problems] == [
        "'labelled/box/0.png' of class 'box' and 'labelled/circle/conflict.png' of class 'circle' "
        "are the same image",
        "'unlabelled/page.jpg' is an HTML page",
    ]
    assert [line.partition(":")[0] for line in result.notes][:2] == [
        "files that are not read",
        "copies of train images among the test images",
    ]
    assert result.overview is not None
    assert result.overview.left_out == {".txt": 1}


def test_one_name_in_two_unicode_forms_is_noted(own: Path) -> None:
    for number, form in enumerate(("caf\u00e9", "cafe\u0301")):
        picture(own / "labelled" / form / "0.png", 100 + number)
        picture(own / "test" / form / "0.png", 200 + number)

    assert report(own).notes == (
        "class 'caf\u00e9' has folders in 2 Unicode forms of its name, which are read as one class",
    )


def test_names_that_a_model_cannot_tell_apart_are_a_problem_and_others_are_noted(own: Path) -> None:
    def refuse(names: object) -> list[str]:
        raise BadParams(f"{names} have the same text")

    assert report(own, check_classes=refuse).problems == ("('box', 'circle') have the same text",)
    assert report(own, check_classes=lambda names: [f"long: {names[0]}"]).notes == ("long: box",)


@pytest.mark.parametrize("part", ["unlabelled", "test"])
def test_a_list_that_cannot_be_read_is_a_problem(part: str, own: Path) -> None:
    shutil.rmtree(own / part)

    result = report(own)

    assert len(result.problems) == 1
    assert str(own / part) in result.problems[0]
    assert result.overview is None


def test_the_table_has_counts_and_an_example_of_each_class(own: Path) -> None:
    picture(own / "labelled/番茄/0.png", 100)
    picture(own / "test/番茄/0.png", 101)

    assert Overview.read(OWN, own.parent).lines() == [
        "        class   train    val   test  example",
        "     1  box         3      0      2  labelled/box/0.png",
        "     2  circle      3      0      2  labelled/circle/0.png",
        "     3  番茄        1      0      1  labelled/番茄/0.png",
        "  4 unlabelled images, such as unlabelled/0.png",
    ]


def test_a_contact_sheet_shows_the_images_of_each_class_and_the_unlabelled_ones(own: Path) -> None:
    (own / "unlabelled/0.png").write_bytes(b"")
    sheet = own.parent / "sheets" / "mine.jpg"

    assert write_sheet(Overview.read(OWN, own.parent), own, sheet) == []

    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("L")).astype(int)
    rows = np.split(pixels, 3)
    for row, name in zip(rows, ("box", "circle"), strict=False):
        with Image.open(own / f"labelled/{name}/0.png") as image:
            expected = np.asarray(image.convert("L"))
        top = (SIDE - len(expected)) // 2 + contact_sheet._GAP // 2
        left = contact_sheet._LABEL + (SIDE - expected.shape[1]) // 2
        shown = row[top : top + expected.shape[0], left : left + expected.shape[1]]
        assert np.abs(shown - expected).mean() < 20  # JPEG
    labels = [row[:, : contact_sheet._LABEL].min() for row in rows]
    assert max(labels) < 80  # every row has a name
    assert (
        np.abs(rows[0][:, : contact_sheet._LABEL] - rows[1][:, : contact_sheet._LABEL]).max() > 80
    )


def overview(*names: str) -> Overview:
    row = ClassOverview("", 1, 0, 0, ("0.png",))
    rows = (ClassOverview(name, row.train, row.val, row.test, row.examples) for name in names)
    return Overview(tuple(rows), 0, (), {})


@pytest.mark.parametrize("name", ["γρανάζι", "шестигранная гайка", "صامولة", "אגוז", "Größe"])
def test_matplotlibs_own_font_has_the_letters_of_many_scripts(name: str, tmp_path: Path) -> None:
    picture(tmp_path / "0.png", 1)

    assert write_sheet(overview(name), tmp_path, tmp_path / "sheet.jpg") == []


def test_a_name_that_no_font_has_is_said_and_its_number_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact_sheet, "_system_fonts", lambda: ())
    picture(tmp_path / "0.png", 1)

    (line,) = write_sheet(overview("box", "番茄"), tmp_path, tmp_path / "sheet.jpg")

    assert line.startswith(
        "no installed font has the letters of 1 class names, the first is '番茄'"
    )


def test_a_font_of_the_system_is_used_where_it_has_the_letters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    default = contact_sheet._default_font()
    letters = {default: frozenset(map(ord, "box")), "cjk.ttf": frozenset(map(ord, "番茄"))}
    monkeypatch.setattr(contact_sheet, "_system_fonts", lambda: ("broken.ttf", "cjk.ttf"))
    monkeypatch.setattr(contact_sheet, "_letters", lambda file: letters.get(file, frozenset()))

    assert contact_sheet.font_of("b o x") == default
    assert contact_sheet.font_of("番茄") == "cjk.ttf"
    assert contact_sheet.font_of("番茄 x") is None


def test_a_file_that_is_no_font_has_no_letters(tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")

    assert contact_sheet._letters(str(tmp_path / "broken.ttf")) == frozenset()


def test_a_sheet_of_too_many_classes_says_how_many_it_shows(tmp_path: Path) -> None:
    picture(tmp_path / "0.png", 1)
    names = [f"class {number}" for number in range(contact_sheet.MOST_CLASSES + 1)]

    (line,) = write_sheet(overview(*names), tmp_path, tmp_path / "sheet.jpg")

    assert line == "the contact sheet shows 100 of 101 classes, the first"


def test_a_long_name_is_broken_at_blanks_and_ends_with_dots() -> None:
    font = contact_sheet._font(contact_sheet._default_font())

    assert contact_sheet._wrapped("hex nut", font) == ["hex nut"]
    lines = contact_sheet._wrapped("a hexagonal nut of stainless steel " * 10, font)
    assert len(lines) == 4
    assert lines[0].startswith("a hexagonal nut of")
    assert lines[-1].endswith("…")
    assert "".join(contact_sheet._wrapped("x" * 30, font)) == "x" * 30
