"""Folders of own images as people have them: each is read, read with a note, or refused."""

from pathlib import Path

import pytest
from PIL import Image

from pd_core.core.errors import BadData
from pd_core.data.acquire.verify import verify
from pd_core.data.catalog.catalogue import OwnImages, own_spec
from pd_core.data.catalog.own import notes, own_unlabelled, read_own
from pd_core.data.loading.decode import ImageStore

OWN = OwnImages(labelled="own/labelled", unlabelled="own/unlabelled")
ALONE = OwnImages(labelled="own/labelled")


def write(root: Path, *paths: str) -> None:
    for path in paths:
        file = root / "own" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file, format="PNG")


@pytest.mark.parametrize(
    ("paths", "classes"),
    [
        (["box/a.png", "circle/a.png"], ("box", "circle")),
        (["box/monday/a.png", "box/b.png", "circle/a.png"], ("box", "circle")),
        (["box/box/a.png", "circle/a.png"], ("box", "circle")),
        (["train/a.png", "bus/a.png"], ("bus", "train")),
        (["valid/a.png", "invalid/a.png"], ("invalid", "valid")),
        (["box/train/a.png", "box/a.png", "circle/train/b.png", "circle/b.png"], ("box", "circle")),
        (["__MACOSX/box/._a.png", "box/a.png", "circle/a.png"], ("box", "circle")),
        (["@eaDir/a.png/thumb.png", "box/a.png", "circle/a.png"], ("box", "circle")),
        (["box/.thumbnails/a.png", "box/a.png", "circle/a.png"], ("box", "circle")),
        (["$RECYCLE.BIN/a.png", "box/a.png", "circle/a.png"], ("box", "circle")),
    ],
)
def test_class_folders_on_one_level_are_read(
    paths: list[str], classes: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path, *(f"labelled/{path}" for path in paths))

    assert read_own(ALONE, tmp_path).class_names == classes
    assert notes(ALONE, tmp_path) == ()


@pytest.mark.parametrize(
    "paths",
    [
        ["animals/cat/a.png", "animals/dog/a.png", "birds/owl/a.png", "birds/kite/b.png"],
        ["box/monday/a.png", "box/tuesday/a.png", "circle/a.png"],
        ["box/images/a.png", "circle/images/a.png"],
    ],
)
def test_folders_that_may_be_classes_are_named_in_a_note(paths: list[str], tmp_path: Path) -> None:
    write(tmp_path, *(f"labelled/{path}" for path in paths))

    assert len(read_own(ALONE, tmp_path).class_names) == 2
    (line,) = notes(ALONE, tmp_path)
    top, below, _ = paths[0].split("/")
    assert f"'own/labelled/{top}' has all its images in folders below it, such as '{below}'" in line


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["train/box/a.png", "train/circle/a.png", "test/box/a.png", "valid/box/a.png"],
         ["'test', 'train' and 'valid', which are splits and no classes",
          "labelled: own/labelled/train and test: own/labelled/test"]),
        (["Training/box/a.png", "Validation/box/a.png"], ["labelled: own/labelled/Training"]),
        (["train2017/box/a.png", "val2017/box/a.png"], ["labelled: own/labelled/train2017"]),
        (["train_set/box/a.png", "test_set/box/a.png"], ["and test: own/labelled/test_set"]),
        (["train/a.png", "test/a.png"], ["splits", "a list with the columns path, label and"]),
        (["box/train/a.png", "box/test/a.png", "circle/train/a.png"],
         ["'own/labelled/box' has the split 'test'", "put the class folders of each split"]),
        (["photos/box/a.png", "photos/circle/a.png"],
         ["has one folder, 'photos', with the folders 'box' and 'circle'",
          "give 'own/labelled/photos'"]),
        (["top/__MACOSX/a.png", "top/box/a.png", "top/circle/a.png", "__MACOSX/top/a.png"],
         ["has one folder, 'top'", "give 'own/labelled/top'"]),
        (["top/train/box/a.png", "top/test/box/a.png"],
         ["splits", "labelled: own/labelled/top/train and test: own/labelled/top/test"]),
        (["train/box/a.png", "test/readme.txt"], ["splits", "labelled: own/labelled/train"]),
        (["box/a.png", "circle/a.png", "new/triangle/a.png"],
         ["'own/labelled/new' has no images but the folder 'triangle'", "move the class folder"]),
        (["box/a.png", "circle/a.png", "circle/box/b.png"],
         ["'own/labelled/circle' has a folder 'box'", "another class", "move it up"]),
        (["box/a.png", "circle/a.png", "Unlabeled/a.png"],
         ["'own/labelled/Unlabeled' is no class by its name", "give it as unlabelled"]),
        (["a.png", "b.png"], ["has images and no class folders", "give the folder above"]),
        (["a.png", "box/a.png"], ["own/labelled/a.png' is in no class folder"]),
        (["A: box/a.png", "circle/a.png"], ["'A: box'", "like a drive of Windows", "rename it"]),
        (["photos\\box.png", "box/a.png"], ["no class folder"]),
        (["box/photos\\a.png", "circle/a.png"], [r"'photos\a.png'", r"has a backslash (\)"]),
        (["box\\large/a.png", "circle/a.png"], [r"'box\large'", "backslash", "rename it"]),
        (["round\nthing/a.png", "circle/a.png"], [r"round\nthing' has a control character"]),
        (["tab\there/a.png", "circle/a.png"], [r"tab\there' has a control character"]),
    ],
)  # fmt: skip
def test_folders_on_another_level_and_odd_names_are_refused(
    paths: list[str], words: list[str], tmp_path: Path
) -> None:
    write(tmp_path, *(f"labelled/{path}" for path in paths), "unlabelled/a.png")

    for own in (OWN, ALONE):
        with pytest.raises(BadData) as caught:
            read_own(own, tmp_path)
        assert not [word for word in words if word not in str(caught.value)]


@pytest.mark.parametrize("name", ["caf\udce9.png", "photos\\1.png", "c:1.png", "caf\udce9/1.png"])
def test_an_unlabelled_image_whose_name_is_not_portable_is_refused(
    name: str, tmp_path: Path
) -> None:
    write(tmp_path, "labelled/x/a.png", "labelled/y/a.png", "unlabelled/a.png")
    write(tmp_path, f"unlabelled/{name}")
    own = OwnImages(labelled="own/labelled", unlabelled="own/unlabelled")

    with pytest.raises(BadData, match=r"the name '.*' in '.*unlabelled' .*: rename it") as caught:
        own_unlabelled(own, tmp_path)

    str(caught.value).encode()  # a name that is not UTF-8 is escaped
    (line,) = verify(own_spec("mine", own), tmp_path).problems
    assert line.encode().endswith(b": rename it")


def test_a_class_folder_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "labelled/circle/a.png", "labelled/caf\udce9/a.png")

    with pytest.raises(BadData, match=r"the name 'caf\\xe9' .* is not UTF-8: rename it"):
        read_own(ALONE, tmp_path)


@pytest.mark.parametrize(
    "name",
    ["a b .png", "box ./a.png", "box /a.png", "a\nb.png", "ab:c.png", "dot..png", "~a.png", "é.png",
     "e\u0301.png", "100%.png", "#1.png", "a'b\".png", "-rf.png", "\U0001f600.png"],
)  # fmt: skip
def test_an_odd_name_that_is_portable_enough_is_read_and_decoded(name: str, tmp_path: Path) -> None:
    write(
        tmp_path, f"unlabelled/{name}", "labelled/x/a.png", "labelled/y/b.png", f"labelled/y/{name}"
    )

    (path,) = own_unlabelled(OWN, tmp_path)
    train = [item.path for item in read_own(OWN, tmp_path).train]

    assert path == f"unlabelled/{name}"
    assert f"labelled/y/{name}" in train
    for image in (path, *train):
        assert ImageStore(tmp_path / OWN.folder).open(image).size == (8, 8)


@pytest.mark.parametrize("given", [{"unlabelled": "own/rest"}, {"test": "own/held/out"}])
def test_further_images_among_the_class_folders_are_refused(
    given: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path, "x/a.png", "y/a.png", "rest/a.png", "held/out/x/b.png")
    (path,) = given.values()

    with pytest.raises(BadData, match=f"'{path}' is in the folder of the class folders, 'own'"):
        read_own(OwnImages.model_validate({"labelled": "own", **given}), tmp_path)


def test_a_list_of_unlabelled_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "labelled/x/a.png", "labelled/y/a.png")
    (tmp_path / "own" / "rest.csv").write_text("path\nlabelled/x/a.png\n")

    with pytest.raises(BadData, match=r"'.*rest.csv' is a file: give a folder of images"):
        own_unlabelled(OwnImages(labelled="own/labelled", unlabelled="own/rest.csv"), tmp_path)


def test_test_images_are_checked_as_labelled_ones(tmp_path: Path) -> None:
    write(tmp_path, "labelled/x/a.png", "labelled/y/a.png", "held/test/x/a.png", "held/val/x/a.png")
    own = OwnImages(labelled="own/labelled", test="own/held")

    with pytest.raises(BadData, match="'own/held' has the folders 'test' and 'val', which are spl"):
        read_own(own, tmp_path)
