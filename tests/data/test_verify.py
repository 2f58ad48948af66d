"""Damaged data sets are refused, each with one line that names the damage."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pd_core.data.acquire.verify import Verdict, verify
from pd_core.data.catalog.catalogue import dataset_spec
from pd_core.data.catalog.readers import Road

CLASSES = ("banded", "dotted", "woven")
SIZES = {"train": 4, "val": 2, "test": 3}
# A row of three classes in place of dtd's 47.
SMALL = replace(dataset_spec("dtd"), num_classes=3, train=12, val=6, test=9)

Lists = dict[str, list[list[Any]]]


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
    """Write a picture anew; writing into it would change all hard links."""
    file.unlink()
    file.write_bytes(content)


def line(root: Path, **options: Any) -> str:
    """Return the one problem that is found."""
    verdict = verify(SMALL, root, **options)
    assert len(verdict.problems) == 1, verdict.problems
    assert not verdict.ok
    assert verdict.problems[0].isprintable()
    return verdict.problems[0]


@pytest.mark.parametrize("full", [False, True])
def test_an_intact_data_set_is_accepted(full: bool, root: Path) -> None:
    steps: list[tuple[int, int]] = []

    verdict = verify(
        SMALL, root, full=full, workers=2, on_progress=lambda *step: steps.append(step)
    )

    assert verdict.ok
    assert verdict == Verdict(
        "dtd", Road.SPLIT_FILE, {"classes": 3, "train": 12, "val": 6, "test": 9}, ()
    )
    assert steps[-1] == (27, 27)


def test_a_missing_picture_is_named(root: Path) -> None:
    (images(root) / "dotted" / "val_0.jpg").unlink()

    assert line(root) == (
        "picture 'dotted/val_0.jpg' of class folder 'dotted' is missing: "
        "expected 9 pictures, found 8"
    )


def test_missing_pictures_are_counted_by_folder_and_the_first_is_named(root: Path) -> None:
    for name in ("train_1.jpg", "val_0.jpg", "test_2.jpg"):
        (images(root) / "dotted" / name).unlink()
        (images(root) / "woven" / name).unlink()

    assert verify(SMALL, root).problems == (
        "3 pictures of class folder 'dotted' are missing, the first is 'dotted/train_1.jpg': "
        "expected 9 pictures, found 6",
        "3 pictures of class folder 'woven' are missing, the first is 'woven/train_1.jpg': "
        "expected 9 pictures, found 6",
    )


@pytest.mark.parametrize("name", ["Banded", "bandedx", "stripes"])
def test_a_renamed_class_folder_is_recognised(name: str, root: Path) -> None:
    (images(root) / "banded").rename(images(root) / name)

    assert line(root) == (
        f"class folder 'banded' is missing (is '{name}' it, renamed?): expected 9 pictures, found 0"
    )


def test_a_missing_class_folder_is_named(root: Path) -> None:
    shutil.rmtree(images(root) / "banded")
    (images(root) / "notes").mkdir()

    assert line(root) == "class folder 'banded' is missing: expected 9 pictures, found 0"


def test_an_empty_class_folder_is_named(root: Path) -> None:
    shutil.rmtree(images(root) / "banded")
    (images(root) / "banded").mkdir()

    assert line(root) == "class folder 'banded' is empty: expected 9 pictures, found 0"


def test_a_missing_folder_of_folders_is_one_problem(root: Path) -> None:
    write(root, {k: [[f"a/{p}", n, c] for p, n, c in rows] for k, rows in lists().items()})

    assert line(root) == "folder 'a' is missing: expected 27 pictures, found 0"


@pytest.mark.parametrize("path", ["../../secret.jpg", "banded/../../secret.jpg", "/etc/passwd"])
def test_an_entry_that_leads_out_of_the_root_is_refused(path: str, root: Path) -> None:
    content = lists()
    content["train"][1][0] = path
    write(root, content)

    found = line(root)

    assert path in found
    assert "list 'train', entry 1" in found


def test_a_picture_that_is_a_link_out_of_the_root_is_refused(root: Path, jpeg: Path) -> None:
    file = images(root) / "banded" / "train_0.jpg"
    file.unlink()
    file.symlink_to(jpeg)

    assert "'banded/train_0.jpg' is a link out of the image folder, to '" in line(root)


def test_linked_folders_are_followed(root: Path, tmp_path: Path) -> None:
    (images(root) / "banded").rename(tmp_path / "elsewhere")
    (images(root) / "banded").symlink_to(tmp_path / "elsewhere")
    images(root).rename(tmp_path / "pictures")
    images(root).symlink_to(tmp_path / "pictures")
    (tmp_path / "linked").symlink_to(root)

    assert verify(SMALL, tmp_path / "linked").ok


@pytest.mark.parametrize("folder", ["banded", "elsewhere"])
def test_a_link_to_a_picture_of_another_list_is_that_picture(folder: str, root: Path) -> None:
    if folder == "elsewhere":  # a linked folder is outside of the image folder
        (images(root) / "banded").rename(root / folder)
        (images(root) / "banded").symlink_to(root / folder)
    file = images(root) / "banded" / "test_0.jpg"
    file.unlink()
    file.symlink_to("train_0.jpg")

    assert line(root) == ("'banded/test_0.jpg' is in both train and test: keep it in one list")


def test_links_that_lead_nowhere_and_folders_are_no_pictures(root: Path) -> None:
    first, second = images(root) / "banded" / "train_0.jpg", images(root) / "woven" / "test_0.jpg"
    first.unlink()
    second.unlink()
    first.symlink_to("nothing.jpg")
    second.mkdir()

    assert verify(SMALL, root).problems == (
        "'banded/train_0.jpg' is a link that leads to no file: put the picture there",
        "'woven/test_0.jpg' is a folder or a device, not a picture: replace it",
    )


@pytest.mark.parametrize("label", ["0", 0.0, None, True, -1])
def test_a_label_of_the_wrong_type_is_refused(label: Any, root: Path) -> None:
    content = lists()
    content["val"][3][1] = label
    write(root, content)

    assert "list 'val', entry 3" in line(root)


@pytest.mark.parametrize(
    "spelling", ["banded/test_0.jpg", "./banded/test_0.jpg", "banded//test_0.jpg"]
)
def test_a_picture_in_train_and_test_is_refused_however_it_is_spelled(
    spelling: str, root: Path
) -> None:
    content = lists()
    content["train"][0][0] = spelling
    write(root, content)

    found = line(root)

    assert "banded/test_0.jpg' is in both train and test" in found


def test_a_picture_that_is_listed_twice_is_refused(root: Path) -> None:
    content = lists()
    content["train"][1] = ["./" + content["train"][0][0], *content["train"][0][1:]]
    write(root, content)

    assert "the train list has 'banded/train_0.jpg' 2 times" in line(root)


def test_other_counts_are_told_with_what_belongs_there(root: Path) -> None:
    content = lists()
    del content["train"][0], content["test"][0], content["test"][0]
    write(root, content)

    assert line(root) == (
        "the lists are not the published ones: expected 12 train, 9 test pictures, "
        "found 11 train, 7 test"
    )


def test_a_class_without_test_pictures_is_named(root: Path) -> None:
    content = lists()
    for row in content["test"]:
        if row[1] == 1:
            row[1:] = [0, "banded"]
    write(root, content)

    assert line(root) == "class 'dotted' has no test picture: complete the list"


def test_a_class_that_is_left_out_is_counted(root: Path) -> None:
    write(root, {k: [row for row in rows if row[1] < 2] for k, rows in lists().items()})

    found = line(root)

    assert "2 classes" in found
    assert "3" in found


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><title>404</title>", "an HTML page"),
        (b"\xef\xbb\xbf\r\n<!-- moved --><HTML lang=en>", "an HTML page"),
        (b"", "an empty file"),
        (b"PK\x03\x04rest", "a ZIP archive"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b'{"error": "quota exceeded"}', "a JSON file"),
        (b"some text", "no picture (it starts with b'some text')"),
    ],
)
@pytest.mark.parametrize("full", [False, True])
def test_something_else_in_place_of_a_picture_is_called_what_it_is(
    full: bool, content: bytes, what: str, root: Path
) -> None:
    put(images(root) / "woven" / "train_3.jpg", content)

    assert line(root, full=full, workers=1) == f"'woven/train_3.jpg' is {what}: replace it"


def test_many_pictures_of_one_kind_of_damage_are_one_line(root: Path) -> None:
    for number in range(3):
        put(images(root) / "woven" / f"train_{number}.jpg", b"text %d" % number)

    assert line(root) == (
        "each of 3 pictures, the first of which is 'woven/train_0.jpg', is no picture "
        "(it starts with b'text 0'): replace it"
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
@pytest.mark.parametrize("full", [False, True])
def test_a_picture_may_be_of_another_kind_than_its_name_says(
    full: bool, kind: str, root: Path
) -> None:
    file = images(root) / "woven" / "train_3.jpg"
    file.unlink()
    Image.new("RGB", (20, 10), "red").save(file, kind)

    assert verify(SMALL, root, full=full, workers=1).ok


def test_a_truncated_picture_is_found_in_full_only(root: Path, jpeg: Path) -> None:
    whole = jpeg.read_bytes()
    put(images(root) / "woven" / "train_3.jpg", whole[: len(whole) * 3 // 4])

    assert verify(SMALL, root).ok
    assert "'woven/train_3.jpg' is damaged (image file is truncated" in line(
        root, full=True, workers=1
    )


def test_all_bad_pictures_are_reported_in_full(root: Path, jpeg: Path) -> None:
    whole = jpeg.read_bytes()
    bad = [f"{name}/train_{number}.jpg" for name in CLASSES for number in range(4)]
    for path in bad:
        put(images(root) / path, whole[: len(whole) // 2])

    problems = verify(SMALL, root, full=True, workers=2).problems

    assert [problem.split("'")[1] for problem in problems] == bad


def test_a_decompression_bomb_is_reported(root: Path) -> None:
    bomb = b"P5 100000 100000 255\n"
    put(images(root) / "woven" / "train_3.jpg", bomb)

    assert "is a decompression bomb" in line(root, full=True, workers=1)


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


def test_a_name_with_a_line_feed_stays_on_one_line(root: Path) -> None:
    content = lists()
    content["train"][0][0] = "banded/a\n\x1b[31mb.jpg"
    write(root, content)

    assert "a\\n\\x1b[31mb.jpg" in line(root)


@pytest.mark.parametrize("missing", ["dtd", "dtd/images"])
def test_what_is_not_there_at_all_is_named(missing: str, root: Path) -> None:
    (root / missing).rename(root / "away")

    found = line(root)

    assert f"'{root / missing}'" in found
    assert "download DTD" in found
