"""Data sets of every layout are verified, with a split file and with the original annotations."""

import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import miniatures
import pytest

from pd_core.data.acquire import image_files
from pd_core.data.acquire.verify import state_of, verify
from pd_core.data.catalog.catalogue import DatasetSpec
from pd_core.data.catalog.readers import LabelSource


@pytest.fixture(autouse=True)
def _decoded_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no process for a dozen pictures; `test_verify.py` does."""
    monkeypatch.setattr(
        image_files, "ProcessPoolExecutor", lambda count, **_: ThreadPoolExecutor(count)
    )


@pytest.mark.parametrize(
    ("name", "split_file"),
    [
        *((name, False) for name in miniatures.NAMES),
        *((name, True) for name in miniatures.WITH_SPLIT_FILE),
    ],
)
def test_an_intact_miniature_of_every_layout_has_no_problems(
    name: str, split_file: bool, tmp_path: Path
) -> None:
    row = miniatures.miniature(name)
    miniatures.write(row, tmp_path, split_file=split_file)

    for full in (False, True):
        report = verify(row, tmp_path, full=full, workers=1)
        assert report.problems == ()
        assert report.source is (LabelSource.SPLIT_FILE if split_file else LabelSource.ANNOTATIONS)
        assert report.counts["test"] == row.test


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

    line = only(row, tmp_path)

    assert line.startswith("image '")
    assert pictures[4].name in line
    assert re.search(r"expected \d+ images, found \d+$", line)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("dtd", "expected 30 images, found 28"),
        ("imagenet", "expected 12 train images, found 10 train"),
        ("imagenet_r", "expected 9 test images, found 7 test"),
    ],
)
def test_without_lists_missing_images_are_counted(name: str, counts: str, tmp_path: Path) -> None:
    row, pictures = annotated(tmp_path, name)
    for picture in pictures[:2]:
        picture.unlink()

    assert counts in only(row, tmp_path)


@pytest.mark.parametrize("name", ["sun397", "ucf101"])
def test_with_annotations_a_missing_class_folder_is_named(name: str, tmp_path: Path) -> None:
    row, pictures = annotated(tmp_path, name)
    shutil.rmtree(pictures[0].parent)

    line = only(row, tmp_path)

    assert f"{pictures[0].parent.name}' is missing: expected 8 images, found 0" in line


def test_class_folders_that_are_unknown_are_named_together_with_the_missing_ones(
    tmp_path: Path,
) -> None:
    row, _ = annotated(tmp_path, "eurosat", classes=10)
    images = tmp_path / "eurosat" / "2750"
    shutil.rmtree(images / "Forest")
    (images / "Highway").rename(images / "highways")

    line = only(row, tmp_path)

    assert "class folder 'highways' in" in line
    assert "is unknown ('Forest', 'Highway' missing)" in line


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
