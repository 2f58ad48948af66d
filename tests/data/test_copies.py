"""Copies among the user's own images are found by content: noted, left out, or refused."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import own_pictures
import pytest
from own_pictures import CONFIG
from PIL import Image

from pd_core.core.artifacts import read_json
from pd_core.core.errors import BadData
from pd_core.data.catalog import prepare
from pd_core.data.catalog.catalogue import OwnImages, PrepareConfig
from pd_core.data.catalog.copies import same_content
from pd_core.data.loading.prepared import read_split, read_unlabelled

Link = Callable[[Path, Path], object]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return own_pictures.write(tmp_path)


def prepared(own: Path, config: PrepareConfig = CONFIG) -> tuple[set[str], list[str]]:
    """Return the unlabelled list of the stage `prepare`, and its notes."""
    notes: list[str] = []
    out = own.parent / "prepared"
    prepare.run("mine", out, config, data_root=own.parent, seed=1, on_note=notes.append)
    return set(read_unlabelled(out)), notes


def test_images_of_their_own_are_all_used_without_a_note(own: Path) -> None:
    paths, notes = prepared(own)

    assert len(paths) == 6 + 4
    assert notes == []


def test_a_train_image_among_the_test_images_is_noted_and_not_distilled_on(own: Path) -> None:
    for number in range(2):
        shutil.copy(own / f"labelled/circle/{number}.png", own / f"test/circle/copy{number}.png")

    paths, notes = prepared(own)

    assert notes == [
        "mine: copies of train images among the test images: 2, the first is "
        "'test/circle/copy0.png' of 'labelled/circle/0.png'; the accuracy on them is not that on "
        "new images, remove them from one of the lists"
    ]
    assert not {"labelled/circle/0.png", "labelled/circle/1.png"} & paths
    assert "labelled/circle/2.png" in paths


@pytest.mark.parametrize("copy", [shutil.copy, os.link, lambda a, b: Path(b).symlink_to(a)])
@pytest.mark.parametrize("name", ["t.png", "deep/IMG_0001 (1).JPG"])
def test_a_copy_of_a_test_image_leaves_the_unlabelled_list(
    copy: Link, name: str, own: Path
) -> None:
    target = own / "unlabelled" / name
    target.parent.mkdir(exist_ok=True)
    copy(own / "test/box/0.png", target)

    paths, notes = prepared(own)

    assert f"unlabelled/{name}" not in paths
    assert len(paths) == 6 + 4
    assert notes == [
        f"mine: copies of test images among the unlabelled images: 1, the first is "
        f"'unlabelled/{name}' of 'test/box/0.png'; they are left out of the unlabelled list"
    ]


@pytest.mark.parametrize("place", ["labelled/circle/x.png", "test/circle/x.jpeg"])
def test_an_image_with_two_labels_is_refused_with_both_paths_and_labels(
    place: str, own: Path
) -> None:
    shutil.copy(own / "labelled/box/1.png", own / place)

    with pytest.raises(BadData, match="are the same image") as refused:
        prepared(own)
    assert "'labelled/box/1.png' of class 'box'" in str(refused.value)
    assert f"'{place}' of class 'circle'" in str(refused.value)
    assert not (own.parent / "prepared").exists()


def test_several_images_with_two_labels_are_counted(own: Path) -> None:
    for number in range(2):
        shutil.copy(own / f"labelled/box/{number}.png", own / f"labelled/circle/x{number}.png")

    with pytest.raises(BadData, match="2 images have two labels"):
        prepared(own)


def test_copies_within_a_class_and_of_train_images_are_counted_and_used(own: Path) -> None:
    shutil.copy(own / "labelled/box/1.png", own / "labelled/box/1 (copy).png")
    shutil.copy(own / "labelled/box/2.png", own / "unlabelled/2-of-box.png")
    shutil.copy(own / "unlabelled/0.png", own / "unlabelled/z.png")

    paths, notes = prepared(own)

    assert len(paths) == 7 + 6
    assert [note.partition(", the first")[0].removeprefix("mine: ") for note in notes] == [
        "copies of train images among the unlabelled images: 1",
        "copies of train images among the train images: 1",
        "copies of unlabelled images among the unlabelled images: 1",
    ]


def test_an_image_for_validation_and_test_is_noted(own: Path) -> None:
    shutil.copy(own / "test/box/0.png", own / "labelled/box/v.png")
    rows = [f"labelled/{name}/{n}.png,{name}," for name in ("box", "circle") for n in range(3)]
    lines = ["path,label,split", *rows, "labelled/box/v.png,box,val"]
    (own / "list.csv").write_text("\n".join(lines))
    places = OwnImages(labelled="own/list.csv", test="own/test")

    _, (note,) = prepared(own, CONFIG.model_copy(update={"own": places}))

    assert note.startswith(
        "mine: copies of validation images among the test images: 1, the first is "
    )


def test_an_image_that_was_saved_again_is_another_one(own: Path) -> None:
    with Image.open(own / "test/box/0.png") as image:
        image.save(own / "unlabelled/again.jpg", quality=90)

    assert prepared(own)[1] == []


def test_only_files_of_one_size_are_compared_and_empty_ones_are_no_copies(tmp_path: Path) -> None:
    contents = {"a": b"one", "b": b"two", "c": b"one", "d": b"ones", "e": b"", "f": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    assert same_content([*contents, "missing"], tmp_path) == (("a", "c"),)


def test_the_lists_of_a_data_set_without_copies_are_as_before(own: Path) -> None:
    prepared(own)

    split = read_split(own.parent / "prepared")
    assert split["images"] == "own"
    assert read_json(own.parent / "prepared" / "unlabelled.json") == sorted(
        [f"labelled/{name}/{n}.png" for name in ("box", "circle") for n in range(3)]
        + [f"unlabelled/{n}.png" for n in range(4)]
    )
