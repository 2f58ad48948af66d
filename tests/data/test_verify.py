"""A check reports each problem of a data set in one line that names it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pd_core.data.acquire.verify import Report, verify
from pd_core.data.catalog.catalogue import dataset_spec
from pd_core.data.catalog.readers import LabelSource

CLASSES = ("banded", "dotted", "woven")
SIZES = {"train": 4, "val": 2, "test": 3}
SMALL = replace(dataset_spec("dtd"), num_classes=3, train=12, val=6, test=9)

Lists = dict[str, list[list[Any]]]
Damage = Callable[[Path], object]


def lists() -> Lists:
    return {
        split: [
            [f"{name}/{split}_{number}.jpg", label, name]
            for label, name in enumerate(CLASSES)
            for number in range(size)
        ]
        for split, size in SIZES.items()
    }


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "noise.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path, jpeg: Path) -> Path:
    for rows in lists().values():
        for path, _, _ in rows:
            file = tmp_path / "dtd" / "images" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.hardlink_to(jpeg)
    write(tmp_path, lists())
    return tmp_path


def write(root: Path, content: Any) -> None:
    (root / "dtd" / "split_zhou_DescribableTextures.json").write_text(json.dumps(content))


def images(root: Path) -> Path:
    return root / "dtd" / "images"


def put(file: Path, content: bytes) -> None:
    """Replace an image; writing into it would change all hard links."""
    file.unlink()
    file.write_bytes(content)


def problem(root: Path, **options: Any) -> str:
    """Return the only problem of the data set."""
    report = verify(SMALL, root, **options)
    assert len(report.problems) == 1, report.problems
    assert not report.ok
    assert report.problems[0].isprintable()
    return report.problems[0]


@pytest.mark.parametrize("full", [False, True])
def test_an_intact_data_set_has_no_problems(full: bool, root: Path) -> None:
    steps: list[tuple[int, int]] = []

    report = verify(SMALL, root, full=full, workers=2, on_progress=lambda *step: steps.append(step))

    counts = {"classes": 3, "train": 12, "val": 6, "test": 9}
    assert report == Report("dtd", LabelSource.SPLIT_FILE, counts, ())
    assert steps[-1] == (27, 27)


def removed(*names: str) -> Damage:
    def damage(root: Path) -> None:
        for name in names:
            (images(root) / "dotted" / name).unlink()

    return damage


def emptied(root: Path) -> None:
    shutil.rmtree(images(root) / "banded")
    (images(root) / "banded").mkdir()


def missing(root: Path) -> None:
    shutil.rmtree(images(root) / "banded")
    (images(root) / "notes").mkdir()


def all_below(root: Path) -> None:
    write(root, {split: [[f"a/{p}", n, c] for p, n, c in rows] for split, rows in lists().items()})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            removed("val_0.jpg"),
            "image 'dotted/val_0.jpg' of class folder 'dotted' is missing: "
            "expected 9 images, found 8",
        ),
        (
            removed("train_1.jpg", "val_0.jpg", "test_2.jpg"),
            "3 images of class folder 'dotted' are missing, the first is 'dotted/train_1.jpg': "
            "expected 9 images, found 6",
        ),
        (missing, "class folder 'banded' is missing: expected 9 images, found 0"),
        (emptied, "class folder 'banded' is empty: expected 9 images, found 0"),
        (all_below, "folder 'a' is missing: expected 27 images, found 0"),
    ],
)
def test_missing_images_and_folders_are_named(damage: Damage, message: str, root: Path) -> None:
    damage(root)

    assert problem(root) == message


def test_links_are_followed_below_the_image_folder(root: Path, tmp_path: Path, jpeg: Path) -> None:
    (images(root) / "banded").rename(tmp_path / "elsewhere")
    (images(root) / "banded").symlink_to(tmp_path / "elsewhere")
    images(root).rename(tmp_path / "pictures")
    images(root).symlink_to(tmp_path / "pictures")
    (tmp_path / "linked").symlink_to(root)
    assert verify(SMALL, tmp_path / "linked").ok

    file = images(root) / "banded" / "train_0.jpg"
    file.unlink()
    file.symlink_to(jpeg)
    assert "'banded/train_0.jpg' is a link out of the image folder, to '" in problem(root)


@pytest.mark.parametrize("folder", ["banded", "elsewhere"])
def test_a_link_to_an_image_of_another_list_is_reported(folder: str, root: Path) -> None:
    if folder == "elsewhere":  # a linked folder is outside of the image folder
        (images(root) / "banded").rename(root / folder)
        (images(root) / "banded").symlink_to(root / folder)
    file = images(root) / "banded" / "test_0.jpg"
    file.unlink()
    file.symlink_to("train_0.jpg")

    assert problem(root) == "'banded/test_0.jpg' is in both train and test: keep it in one list"


def test_broken_links_and_folders_are_no_images(root: Path) -> None:
    first, second = images(root) / "banded" / "train_0.jpg", images(root) / "woven" / "test_0.jpg"
    first.unlink()
    second.unlink()
    first.symlink_to("nothing.jpg")
    second.mkdir()

    link, folder = verify(SMALL, root).problems

    assert "'banded/train_0.jpg' is a link that leads to no file" in link
    assert "'woven/test_0.jpg' is a folder or a device" in folder


def edited(split: str, number: int, position: int, value: Any) -> Callable[[Lists], Lists]:
    def edit(content: Lists) -> Lists:
        content[split][number][position] = value
        return content

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited("train", 1, 0, "banded/../../secret.jpg"), "list 'train', entry 1"),
        (edited("val", 3, 1, "0"), "list 'val', entry 3"),
        (edited("train", 0, 0, "banded//test_0.jpg"), "test_0.jpg' is in both train and test"),
        (edited("train", 1, 0, "./banded/train_0.jpg"), "has 'banded/train_0.jpg' 2 times"),
        (edited("train", 0, 0, "banded/a\n\x1b[31mb.jpg"), "a\\n\\x1b[31mb.jpg"),
        (
            lambda lists: {**lists, "train": lists["train"][1:], "test": lists["test"][2:]},
            "expected 12 train, 9 test images, found 11 train, 7 test",
        ),
        (
            lambda lists: {
                **lists,
                "test": [[p, *((0, "banded") if n == 1 else (n, c))] for p, n, c in lists["test"]],
            },
            "class 'dotted' has no test image",
        ),
        (
            lambda lists: {split: [r for r in rows if r[1] < 2] for split, rows in lists.items()},
            "have 2 classes, expected 3",
        ),
    ],
)
def test_lists_are_compared_with_the_row(
    edit: Callable[[Lists], Lists], message: str, root: Path
) -> None:
    write(root, edit(lists()))

    assert message in problem(root)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><title>404</title>", "an HTML page"),
        (b"\xef\xbb\xbf\r\n<!-- moved --><HTML lang=en>", "an HTML page"),
        (b"", "an empty file"),
        (b"PK\x03\x04rest", "a ZIP archive"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b'{"error": "quota exceeded"}', "a JSON file"),
        (b"some text", "no image (it starts with b'some text')"),
    ],
)
def test_the_kind_of_a_file_that_is_no_image_is_named(
    content: bytes, kind: str, root: Path
) -> None:
    put(images(root) / "woven" / "train_3.jpg", content)

    for full in (False, True):
        assert problem(root, full=full, workers=1) == f"'woven/train_3.jpg' is {kind}: replace it"


def test_files_of_one_kind_share_a_line(root: Path) -> None:
    for number in range(3):
        put(images(root) / "woven" / f"train_{number}.jpg", b"text %d" % number)

    assert "each of 3 images, the first of which is 'woven/train_0.jpg'" in problem(root)


def test_an_image_may_have_the_suffix_of_another_format(root: Path) -> None:
    for number, kind in enumerate(("PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")):
        file = images(root) / CLASSES[number % 3] / f"train_{number // 3}.jpg"
        file.unlink()
        Image.new("RGB", (20, 10), "red").save(file, kind)

    for full in (False, True):
        assert verify(SMALL, root, full=full, workers=1).ok


def test_truncated_images_are_detected_by_decoding_only(root: Path, jpeg: Path) -> None:
    data = jpeg.read_bytes()
    truncated = [f"{name}/train_{number}.jpg" for name in CLASSES for number in range(4)]
    for path in truncated:
        put(images(root) / path, data[: len(data) // 2])

    assert verify(SMALL, root).ok
    problems = verify(SMALL, root, full=True, workers=2).problems
    assert [problem.split("'")[1] for problem in problems] == truncated
    assert all("is damaged (" in problem for problem in problems)


def test_a_decompression_bomb_is_reported(root: Path) -> None:
    put(images(root) / "woven" / "train_3.jpg", b"P5 100000 100000 255\n")

    assert "is a decompression bomb" in problem(root, full=True, workers=1)


def test_independent_problems_are_all_reported(root: Path) -> None:
    content = lists()
    del content["val"][0]
    write(root, content)
    shutil.rmtree(images(root) / "woven")
    (images(root) / "banded" / "train_1.jpg").unlink()
    put(images(root) / "dotted" / "train_2.jpg", b"")

    problems = verify(SMALL, root).problems

    assert len(problems) == 4
    for part in ("6 validation", "'woven' is missing", "banded/train_1.jpg", "an empty file"):
        assert sum(part in problem for problem in problems) == 1


@pytest.mark.parametrize("folder", ["dtd", "dtd/images"])
def test_a_missing_data_set_or_image_folder_is_named(folder: str, root: Path) -> None:
    (root / folder).rename(root / "away")

    assert f"'{root / folder}'; download DTD" in problem(root)
