"""The user's own images are a data set: class folders or a list, and unlabelled images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pd_core.core.errors import BadData, MissingFile, PdError
from pd_core.data.catalog.catalogue import OwnImages
from pd_core.data.catalog.own import own_sources, own_unlabelled, read_own

FOLDERS = OwnImages(labelled="parts/labelled", unlabelled="parts/unlabelled")
CSV = OwnImages(labelled="parts/list.csv", unlabelled="parts/unlabelled")
JSON = OwnImages(labelled="parts/list.json")


def picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with two pictures each, three without a label, in a folder and in lists."""
    parts = tmp_path / "parts"
    for name in ("screw", "hex nut"):
        for number in (1, 2):
            picture(parts / "labelled" / name / f"{number}.png")
    for name in ("a.png", "b.JPG", "deep/c.png"):
        picture(parts / "unlabelled" / name)
    rows = [(f"labelled/{name}/{k}.png", name) for name in ("screw", "hex nut") for k in (1, 2)]
    write_csv(tmp_path, "path,label", *(f"{path},{label}" for path, label in rows))
    write_json(tmp_path, [{"path": path, "label": label} for path, label in rows])
    return tmp_path


def write_csv(root: Path, *lines: str) -> None:
    (root / "parts" / "list.csv").write_text("\n".join(lines) + "\n")


def write_json(root: Path, content: Any) -> None:
    (root / "parts" / "list.json").write_text(json.dumps(content))


@pytest.mark.parametrize("images", [FOLDERS, CSV, JSON])
def test_class_folders_and_lists_are_equivalent(images: OwnImages, root: Path) -> None:
    splits = read_own(images, root)

    assert splits.class_names == ("hex nut", "screw")
    assert (splits.val, splits.test) == ((), ())
    assert {(root / images.folder / item.path, item.name) for item in splits.train} == {
        (root / "parts" / "labelled" / name / f"{number}.png", name)
        for name in ("screw", "hex nut")
        for number in (1, 2)
    }


def test_unlabelled_images_may_be_in_nested_folders(root: Path) -> None:
    (root / "parts" / "unlabelled" / "notes.txt").write_text("no picture")
    (root / "parts" / "unlabelled" / ".hidden.png").write_text("no picture")
    picture(root / "parts" / "unlabelled" / ".thumbnails" / "a.png")

    assert own_unlabelled(FOLDERS, root) == (
        "unlabelled/a.png",
        "unlabelled/b.JPG",
        "unlabelled/deep/c.png",
    )
    assert own_unlabelled(JSON, root) == ()


def test_a_list_may_have_validation_and_test_images(root: Path) -> None:
    write_csv(
        root,
        "path,label,split",
        "labelled/screw/1.png,screw,train",
        "labelled/hex nut/1.png,hex nut,",
        "labelled/screw/2.png,screw,val",
        "labelled/hex nut/2.png,hex nut,test",
    )

    splits = read_own(CSV, root)

    assert [item.path for item in splits.train] == [
        "labelled/screw/1.png",
        "labelled/hex nut/1.png",
    ]
    assert [item.path for item in splits.val] == ["labelled/screw/2.png"]
    assert [(item.path, item.label) for item in splits.test] == [("labelled/hex nut/2.png", 0)]


def test_test_images_may_have_a_folder_of_their_own(root: Path) -> None:
    picture(root / "parts" / "test" / "screw" / "9.png")
    images = OwnImages(labelled="parts/labelled", test="parts/test")

    splits = read_own(images, root)

    assert images.folder == "parts"
    assert [(item.path, item.label) for item in splits.test] == [("test/screw/9.png", 1)]


def test_a_slash_at_the_end_of_a_folder_changes_nothing(root: Path) -> None:
    slashed = OwnImages(labelled="parts/labelled/", unlabelled="parts/unlabelled/")

    assert read_own(slashed, root) == read_own(FOLDERS, root)
    assert own_unlabelled(slashed, root) == own_unlabelled(FOLDERS, root)


def test_the_folder_that_holds_everything_may_be_the_data_root(root: Path) -> None:
    picture(root / "elsewhere" / "a.png")
    images = OwnImages(labelled="parts/labelled", unlabelled="elsewhere")

    splits = read_own(images, root)

    for path in (*own_unlabelled(images, root), *(item.path for item in splits.train)):
        assert (root / images.folder / path).is_file()


def test_a_list_in_the_data_root_is_read(root: Path) -> None:
    (root / "all.csv").write_text(
        "path,label\nparts/labelled/screw/1.png,a\nparts/unlabelled/a.png,b\n"
    )

    splits = read_own(OwnImages(labelled="all.csv"), root)

    assert [item.path for item in splits.train] == [
        "parts/labelled/screw/1.png",
        "parts/unlabelled/a.png",
    ]


@pytest.mark.parametrize("images", [FOLDERS, CSV])
def test_the_fingerprint_covers_all_that_is_read(images: OwnImages, root: Path) -> None:
    covered = own_sources(images, root)

    read = [root / images.folder / item.path for item in read_own(images, root).train]
    read += [root / images.folder / path for path in own_unlabelled(images, root)]
    assert all(any(file.is_relative_to(source) for source in covered) for file in read)


def _remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / "parts" / name).unlink()


def _empty_class(root: Path) -> None:
    (root / "parts" / "labelled" / "washer").mkdir()


def _one_class(root: Path) -> None:
    for number in (1, 2):
        (root / "parts" / "labelled" / "screw" / f"{number}.png").unlink()
    (root / "parts" / "labelled" / "screw").rmdir()


def _stray_picture(root: Path) -> None:
    picture(root / "parts" / "labelled" / "stray.png")


@pytest.mark.parametrize(
    ("images", "damage", "message"),
    [
        (FOLDERS, _empty_class, "class folder '.*washer' has no images"),
        (FOLDERS, _one_class, "has 1 classes: give images of two"),
        (FOLDERS, _stray_picture, "'.*stray.png' is in no class folder"),
        (CSV, _remove("labelled/screw/2.png"), "1 of the 4 images of .* 'labelled/screw/2.png'"),
        (CSV, _remove("list.csv"), "no list '.*list.csv'"),
        (OwnImages(labelled="part/labelled"), lambda _: None, "no folder '.*part/labelled'"),
        (OwnImages(labelled="../parts"), lambda _: None, "'../parts' leads out of the data root"),
    ],
)
def test_a_folder_that_cannot_be_is_refused_in_one_line(
    images: OwnImages, damage: Callable[[Path], None], message: str, root: Path
) -> None:
    damage(root)

    with pytest.raises(PdError, match=message) as caught:
        read_own(images, root)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../secret.png,screw", "line 3 has the path .*secret.*below the list's folder"),
        ("/etc/secret.png,screw", "line 3 has the path .*secret"),
        ("labelled/screw/2.png,", "line 3 has no label"),
        ("labelled/screw/2.png,screw,test", "line 3 has more than the 2 values"),
        ("labelled/screw/2.png", "line 3 has no label"),
        ("./labelled//screw/1.png,hex nut", "'parts/labelled/screw/1.png' is of class 'screw' and"),
    ],
)
def test_a_line_of_a_list_that_cannot_be_is_named(line: str, message: str, root: Path) -> None:
    write_csv(root, "path,label", "labelled/screw/1.png,screw", line)

    with pytest.raises(BadData, match=message):
        read_own(CSV, root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"path": "a"}, "is no JSON list"),
        ([["a.png", "screw"]], "entry 1 is"),
        ([{"path": "labelled/screw/1.png", "label": [3]}], "entry 1 has the label .3.*as text"),
        ([{"path": "labelled/screw/1.png", "label": "s", "split": "tset"}], "split 'tset'"),
        ([], "lists no images"),
    ],
)
def test_a_json_list_that_cannot_be_is_refused(content: Any, message: str, root: Path) -> None:
    write_json(root, content)

    with pytest.raises(BadData, match=message):
        read_own(JSON, root)


def test_a_picture_for_training_and_test_is_refused(root: Path) -> None:
    images = OwnImages(labelled="parts/labelled", test="parts/labelled")

    with pytest.raises(BadData, match="'hex nut/1.png' is in both train and test"):
        read_own(images, root)


def test_a_class_without_labelled_images_is_refused(root: Path) -> None:
    picture(root / "parts" / "test" / "bolt" / "1.png")

    with pytest.raises(BadData, match="'parts/test/bolt/1.png' is of class 'bolt', which no"):
        read_own(OwnImages(labelled="parts/labelled", test="parts/test"), root)


def test_an_empty_folder_of_unlabelled_pictures_is_refused(root: Path) -> None:
    (root / "empty").mkdir()

    with pytest.raises(BadData, match="'.*empty' has no images"):
        own_unlabelled(OwnImages(labelled="parts/labelled", unlabelled="empty"), root)
    with pytest.raises(MissingFile, match="no folder '.*nowhere'"):
        own_unlabelled(OwnImages(labelled="parts/labelled", unlabelled="nowhere"), root)
