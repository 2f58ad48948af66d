"""Data sets of every layout are accepted; without split files, damaged ones are refused as well."""

import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import miniatures
import pytest

from pd_core.data.acquire import verify as inspection
from pd_core.data.acquire.verify import state_of, verify
from pd_core.data.catalog.catalogue import DatasetSpec
from pd_core.data.catalog.readers import Road


@pytest.fixture(autouse=True)
def _decoded_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no process for a dozen pictures; `test_verify.py` does."""
    monkeypatch.setattr(
        inspection, "ProcessPoolExecutor", lambda count, **_: ThreadPoolExecutor(count)
    )


@pytest.mark.parametrize(
    ("name", "split_file"),
    [
        *((name, False) for name in miniatures.NAMES),
        *((name, True) for name in miniatures.WITH_SPLIT_FILE),
    ],
)
def test_every_layout_is_accepted_by_both_roads(
    name: str, split_file: bool, tmp_path: Path
) -> None:
    row = miniatures.miniature(name)
    miniatures.write(row, tmp_path, split_file=split_file)

    for full in (False, True):
        verdict = verify(row, tmp_path, full=full, workers=1)
        assert verdict.problems == ()
        assert verdict.road is (Road.SPLIT_FILE if split_file else Road.ANNOTATIONS)
        assert verdict.counts["test"] == row.test


def annotated(root: Path, name: str, classes: int = 3) -> tuple[DatasetSpec, list[Path]]:
    """Write a miniature with original annotations; return its row and its pictures."""
    row = miniatures.miniature(name, classes=classes)
    pictures = miniatures.write(row, root)
    return row, [root / row.folder / row.image_dir / picture.path for picture in pictures]


def only(row: DatasetSpec, root: Path) -> str:
    """Return the one problem of a miniature."""
    problems = verify(row, root).problems
    assert len(problems) == 1, problems
    return problems[0]


@pytest.mark.parametrize("name", ["oxford_pets", "stanford_cars", "oxford_flowers"])
def test_without_a_split_file_a_missing_picture_is_named_where_lists_have_it(
    name: str, tmp_path: Path
) -> None:
    row, pictures = annotated(tmp_path, name)
    pictures[4].unlink()

    found = only(row, tmp_path)

    assert found.startswith("picture '")
    assert pictures[4].name in found
    assert re.search(r"expected \d+ pictures, found \d+$", found)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("dtd", "expected 30 pictures, found 28"),
        ("imagenet", "expected 12 train pictures, found 10 train"),
        ("imagenet_r", "expected 9 test pictures, found 7 test"),
    ],
)
def test_without_lists_missing_pictures_are_counted_and_the_class_is_named(
    name: str, counts: str, tmp_path: Path
) -> None:
    row, pictures = annotated(tmp_path, name)
    for picture in pictures[:2]:
        picture.unlink()

    found = only(row, tmp_path)

    assert counts in found
    if name != "imagenet":  # whose train and test folders differ in size anyway
        assert f"class folder '{pictures[0].parent.name}' has " in found


@pytest.mark.parametrize("name", ["dtd", "imagenet", "imagenetv2", "imagenet_a"])
def test_without_lists_a_renamed_class_folder_is_recognised(name: str, tmp_path: Path) -> None:
    row, pictures = annotated(tmp_path, name, classes=10 if name == "imagenetv2" else 3)
    folder = pictures[0].parent
    folder.rename(folder.with_name(f"{folder.name}x"))

    found = only(row, tmp_path)

    assert f"{folder.name}' is missing (is '" in found
    assert f"{folder.name}x' it, renamed?): expected {row.num_classes} class folders" in found
    assert found.endswith(f"found {row.num_classes - 1}")


@pytest.mark.parametrize("name", ["sun397", "ucf101"])
def test_without_a_split_file_a_renamed_class_folder_is_recognised(
    name: str, tmp_path: Path
) -> None:
    row, pictures = annotated(tmp_path, name)
    folder = pictures[0].parent
    folder.rename(folder.with_name("other"))

    found = only(row, tmp_path)

    assert f"{folder.name}' is missing (is '" in found
    assert "other' it, renamed?): expected 8 pictures, found 0" in found


def test_of_all_class_folders_each_that_is_missing_empty_or_unknown_is_named(
    tmp_path: Path,
) -> None:
    row, _ = annotated(tmp_path, "eurosat", classes=10)
    images = tmp_path / "eurosat" / "2750"
    for picture in (images / "River").iterdir():
        picture.unlink()
    shutil.rmtree(images / "Forest")
    (images / "Highway").rename(images / "highways")
    shutil.copytree(images / "Pasture", images / "Zoo")
    counts = "expected 10 class folders with pictures, found 7"

    assert verify(row, tmp_path).problems == (
        "class folder 'Zoo' is unknown: rename or remove it",
        f"class folder 'Highway' is missing (is 'highways' it, renamed?): {counts}",
        f"class folder 'River' has no pictures: {counts}",
        f"class folder 'Forest' is missing: {counts}",
    )


def test_of_many_missing_class_folders_the_first_is_named(tmp_path: Path) -> None:
    row, pictures = annotated(tmp_path, "dtd", classes=47)
    for folder in sorted({picture.parent for picture in pictures})[:20]:
        shutil.rmtree(folder)

    assert only(row, tmp_path) == (
        "class folder 'banded' is missing, and so are 19 more: "
        "expected 47 class folders with pictures, found 27"
    )


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, 1))

    return damage


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "oxford_pets",
            edit("oxford_pets/annotations/trainval.txt", "Abyssinian_1 1", "Abyssinian_1 one"),
            "trainval.txt', line 1 is ",
        ),
        (
            "fgvc_aircraft",
            edit("fgvc_aircraft/images_variant_test.txt", "0000006 ", "../0000006 "),
            "images_variant_test.txt', line 1 leads out of the image folder",
        ),
        (
            "fgvc_aircraft",
            edit("fgvc_aircraft/images_variant_test.txt", "0000006 ", "0000001 "),
            "'0000001.jpg' is in both train and test",
        ),
        (
            "sun397",
            lambda root: (root / "sun397" / "ClassName.txt").unlink(),
            "no '.*ClassName.txt'",
        ),
    ],
)
def test_damaged_annotations_are_refused(
    name: str, damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    row, _ = annotated(tmp_path, name)
    damage(tmp_path)

    assert re.search(message, only(row, tmp_path))


@pytest.mark.parametrize("name", miniatures.NAMES)
def test_without_a_split_file_pictures_are_looked_at_as_well(name: str, tmp_path: Path) -> None:
    row, pictures = annotated(tmp_path, name)
    pictures[0].write_bytes(b"<html>")
    whole = pictures[-1].read_bytes()
    pictures[-1].write_bytes(whole[: len(whole) * 2 // 3])

    page = only(row, tmp_path)
    both = verify(row, tmp_path, full=True, workers=1).problems

    assert f"{pictures[0].name}' is an HTML page" in page
    assert len(both) == 2
    assert any(f"{pictures[-1].name}' is damaged" in problem for problem in both)


@pytest.mark.parametrize(
    ("damage", "state"),
    [
        (lambda _: None, "there"),
        (lambda folder: shutil.rmtree(folder), "absent"),
        (lambda folder: shutil.rmtree(folder / "images"), "incomplete: no image folder"),
        (lambda folder: shutil.rmtree(folder / "annotations"), "incomplete: no labels"),
    ],
)
def test_the_state_says_what_is_there(
    damage: Callable[[Path], object], state: str, tmp_path: Path
) -> None:
    row, _ = annotated(tmp_path, "oxford_pets")
    damage(tmp_path / "oxford_pets")

    assert state_of(row, tmp_path) == state
