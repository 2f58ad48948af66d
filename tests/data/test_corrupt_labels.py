"""Corrupt lists and class folders are refused in one line, from either label source."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures import WITH_SPLIT_FILE, as_lists, miniature, write

from pd_core.core.errors import BadData
from pd_core.data.catalog.readers import image_root, read_splits

Lists = dict[str, list[Any]]


def refusal(name: str, root: Path) -> str:
    """Return the one line that a miniature is refused with."""
    with pytest.raises(BadData) as caught:
        read_splits(miniature(name), root)
    message = str(caught.value)
    assert message.isprintable()
    return message


def entry(position: int, value: Any) -> Callable[[Lists], Any]:
    """Make the damage of a value in the list `val`: of a path, a label or a class name."""

    def damage(lists: Lists) -> Any:
        lists["val"][1][position] = value
        return lists

    return damage


def whole(split: str, value: Any) -> Callable[[Lists], Any]:
    return lambda lists: {**lists, split: value}


def copied(source: str, target: str) -> Callable[[Lists], Any]:
    return lambda lists: {**lists, target: [*lists[target], lists[source][0]]}


def labels(change: Callable[[int], int]) -> Callable[[Lists], Any]:
    return lambda lists: {
        split: [[path, change(label), name] for path, label, name in rows]
        for split, rows in lists.items()
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *[
            (entry(0, path), "list 'val', entry 1 is")
            for path in (
                "banded/../../a.jpg",
                "/etc/a.jpg",
                "..",
                ".",
                "",
                "banded\\a.jpg",
                "C:a.jpg",
                "a\0.jpg",
                "a\ud800.jpg",
                None,
                ["a.jpg"],
            )  # fmt: skip
        ],
        *[(entry(1, label), "list 'val', entry 1 is") for label in ("0", 0.0, None, True, -1)],
        *[(entry(2, name), "list 'val', entry 1 is") for name in (" ", None)],
        (whole("val", [["a.jpg", 0]]), "list 'val', entry 0 is"),
        (whole("val", ["a.jpg"]), "list 'val', entry 0 is"),
        (whole("val", {}), "list 'val' is no list"),
        (lambda lists: [lists], "lacks the lists train, val, test"),
        (lambda lists: {"train": lists["train"]}, "lacks the lists train, val, test"),
        (copied("train", "test"), "/image_0001.jpg' is in both train and test"),
        (copied("val", "test"), "is in both validation and test"),
        (copied("train", "train"), "the train list has 'banded/image_0001.jpg' 2 times"),
        (entry(2, "dotted"), "label 0 has two names, 'banded' and 'dotted'"),
        (labels(lambda label: label + (label == 2)), "no image has label 2"),
        (labels(lambda label: label + 1), "no image has label 0"),
        (whole("val", []), "expected 6 validation images, found 0 validation"),
        (
            lambda lists: {
                split: [row for row in rows if row[1] < 2] for split, rows in lists.items()
            },
            "has 2 classes, expected 3",
        ),
    ],
)
def test_a_damaged_split_file_is_refused(
    damage: Callable[[Lists], Any], message: str, tmp_path: Path
) -> None:
    lists = as_lists(write(miniature("dtd"), tmp_path, split_file=True))
    file = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    file.write_text(json.dumps(damage(lists)))

    assert message in refusal("dtd", tmp_path).replace("the lists have", "has")


@pytest.mark.parametrize(
    "content", [b"{", b"", b"<html>404</html>", b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5000]
)
@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_a_split_file_that_is_something_else_is_refused(
    name: str, content: bytes, tmp_path: Path
) -> None:
    spec = miniature(name)
    write(spec, tmp_path)
    (tmp_path / spec.folder / str(spec.split_file)).write_bytes(content)

    assert str(spec.split_file) in refusal(name, tmp_path)


def replaced(old: str, new: str) -> Callable[[str], str]:
    """Make the damage of one place in a text file."""

    def damage(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return damage


def added(line: str) -> Callable[[str], str]:
    return lambda text: f"{text}{line}\n"


def without(part: str) -> Callable[[str], str]:
    return lambda text: "\n".join(line for line in text.splitlines() if part not in line)


PETS = ("oxford_pets", "annotations/trainval.txt")
CARS = ("stanford_cars", "cars_test_annos_withlabels.mat")
TRAIN = ("ucf101", "ucfTrainTestlist/trainlist01.txt")
INDEX = ("ucf101", "ucfTrainTestlist/classInd.txt")


@pytest.mark.parametrize(
    ("place", "damage", "message"),
    [
        (PETS, replaced("Abyssinian_1 1", "Abyssinian_1 one"), "line 1 is"),
        (PETS, replaced("Abyssinian_1 1", "Abyssinian_1 0"), "has the label '0', not one from 1"),
        (PETS, replaced("Abyssinian_1 1", "Abyssinian_1 4"), "has the label '4', not one from 1"),
        (PETS, replaced("Abyssinian_1 1", "Abyssinian_1 2"), "has two names"),
        (PETS, replaced("Abyssinian_1", "../a_1"), "line 1 leads out of the image folder"),
        (PETS, replaced("Abyssinian_1", "C:\\a_1"), "line 1 leads out of the image folder"),
        (PETS, replaced("Abyssinian_1 ", "Abyssinian_2 "), "'Abyssinian_2.jpg' 2 times"),
        (PETS, replaced("Abyssinian_1 ", "Abyssinian_6 "), "is in both train and test"),
        (PETS, without("Maine_Coon"), "trainval.txt' has no image of label 3"),
        (PETS, lambda _: "\n\n", "is empty"),
        (PETS, lambda _: "<html>", "line 1 is"),
        (("fgvc_aircraft", "variants.txt"), without("BAE"), "names 2 classes"),
        (("fgvc_aircraft", "variants.txt"), replaced("BAE 146-200", "707-320"), "names 2 classes"),
        (
            ("fgvc_aircraft", "images_variant_val.txt"),
            replaced("BAE 146-200", "BAE 146"),
            "line 2 is of class 'BAE 146', which",
        ),
        (("fgvc_aircraft", "images_variant_val.txt"), added("0000001"), "line 4 is"),
        (("fgvc_aircraft", "images_variant_val.txt"), added("/a 707-320"), "leads out"),
        (("fgvc_aircraft", "images_variant_test.txt"), without("F-16A/B"), "no image of label 3"),
        (("sun397", "ClassName.txt"), replaced("/a/abbey", "a/abbey"), "line 1 is"),
        (("sun397", "Training_01.txt"), added("/a/abbeys/a.jpg"), "of class 'a/abbeys', which"),
        (("sun397", "Training_01.txt"), added("/a/abbey/../a.jpg"), "of class 'a/abbey/..'"),
        (("sun397", "Testing_01.txt"), lambda _: "", "Testing_01.txt' is empty"),
        (INDEX, replaced("2 Hand", "4 Hand"), "does not count its labels from 1"),
        (INDEX, added("4 Yoga"), "names 4 classes"),
        (TRAIN, replaced("ApplyEyeMakeup/", "ApplyMakeup/"), "of class 'applymakeup', which"),
        (TRAIN, replaced(".avi 1", ".avi 2"), "has label 2 for 'ApplyEyeMakeup'"),
        (TRAIN, replaced(".avi 1", " 1"), "line 1 is"),
        (TRAIN, replaced("/v_", "/..\\v_"), "line 1 leads out of the image folder"),
        (("oxford_flowers", "cat_to_name.json"), replaced('"3"', '"4"'), "the labels 1 to 3"),
        (("oxford_flowers", "cat_to_name.json"), replaced('"pink primrose"', "1"), "labels 1 to 3"),
        (("oxford_flowers", "cat_to_name.json"), lambda _: "[]", "the labels 1 to 3"),
        (("oxford_flowers", "imagelabels.mat"), lambda _: "<html>", "is no MATLAB file"),
        (("stanford_cars", "devkit/cars_meta.mat"), lambda _: "x" * 500, "is no MATLAB file"),
    ],
)
def test_a_damaged_label_file_is_refused(
    place: tuple[str, str], damage: Callable[[str], str], message: str, tmp_path: Path
) -> None:
    name, file = place
    spec = miniature(name)
    write(spec, tmp_path)
    path = tmp_path / spec.folder / file
    path.write_text(damage(path.read_text(encoding="latin-1")))

    assert message in refusal(name, tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": np.array([[1] * 29 + [4]])}, "image 30 has the label '4', not one from 1"),
        ({"labels": np.array([[1.5] + [1] * 29])}, "image 1 has the label '1.5', not"),
        ({"labels": np.array([["1"] * 30], dtype=object)}, "image 1 has the label '1', not"),
        ({"labels": np.array([[1] * 15 + [2] * 15])}, "has no image of label 3"),
        ({"labels": "text"}, "image 1 has the label 'text', not"),
        ({"label": np.array([[1] * 30])}, "has no variable 'labels'"),
        ({"labels": np.array([[1, 1, 2, 2, 3, 3] * 5])[:, :29]}, "expected 30 images, found 29"),
    ],
)
def test_damaged_labels_of_flowers_are_refused(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from scipy.io import savemat

    write(miniature("oxford_flowers"), tmp_path)
    savemat(tmp_path / "oxford_flowers" / "imagelabels.mat", values)

    assert message in refusal("oxford_flowers", tmp_path)


def test_labels_in_matlabs_own_kind_of_number_are_read(tmp_path: Path) -> None:
    from scipy.io import savemat

    write(miniature("oxford_flowers"), tmp_path)
    expected = read_splits(miniature("oxford_flowers"), tmp_path)
    values = {"labels": np.repeat([1.0, 2.0, 3.0], 10)}
    savemat(tmp_path / "oxford_flowers" / "imagelabels.mat", values)

    assert read_splits(miniature("oxford_flowers"), tmp_path) == expected


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("class", 4, "annotation 1 has the label '4', not one from 1 to 3"),
        ("class", "1", "annotation 1 has the label '1', not one from 1 to 3"),
        ("fname", "../../a.jpg", "annotation 1 leads out of the image folder"),
        ("fname", "00002.jpg", "the test list has 'cars_test/00002.jpg' 2 times"),
    ],
)
def test_damaged_annotations_of_cars_are_refused(
    field: str, value: Any, message: str, tmp_path: Path
) -> None:
    from scipy.io import loadmat, savemat

    write(miniature("stanford_cars"), tmp_path)
    file = tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat"
    table = loadmat(file)["annotations"]
    table[field][0, 0] = value
    savemat(file, {"annotations": table})

    assert message in refusal("stanford_cars", tmp_path)


def test_annotations_of_cars_without_labels_are_refused(tmp_path: Path) -> None:
    from scipy.io import loadmat, savemat

    write(miniature("stanford_cars"), tmp_path)
    file = tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat"
    names = loadmat(file)["annotations"]["fname"]
    savemat(file, {"annotations": names.astype([("fname", object)])})
    assert "has no annotations with 'fname' and 'class'" in refusal("stanford_cars", tmp_path)
    for values in (3, "text", [1, 2]):
        savemat(file, {"annotations": values})
        assert "has no annotations with 'fname' and 'class'" in refusal("stanford_cars", tmp_path)


@pytest.mark.parametrize("names", [3, ["a 2000", "b 2000"], ["a 2000", "", "c 2000"]])
def test_damaged_class_names_of_cars_are_refused(names: Any, tmp_path: Path) -> None:
    from scipy.io import savemat

    write(miniature("stanford_cars"), tmp_path)
    file = tmp_path / "stanford_cars" / "devkit" / "cars_meta.mat"
    savemat(file, {"class_names": np.array([names], dtype=object)})

    assert "cars_meta.mat' names" in refusal("stanford_cars", tmp_path)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("dtd", "banded"),
        ("caltech101", "Faces"),
        ("imagenet", "train/n01443537"),
        ("imagenet", "val/n01443537"),
        ("imagenetv2", "1"),
        ("imagenet_a", "n01498041"),
    ],
)
def test_renamed_missing_and_empty_class_folders_are_named(
    name: str, folder: str, tmp_path: Path
) -> None:
    spec = miniature(name)
    write(spec, tmp_path)
    path = image_root(spec, tmp_path) / folder

    path.rename(path.with_name(f"{path.name}_x"))
    message = refusal(name, tmp_path)
    assert f"class folder '{path.name}_x' in '{path.parent}' is unknown" in message
    assert f"'{path.name}'" in message

    path.mkdir()
    shutil.rmtree(path.with_name(f"{path.name}_x"))
    assert f"no images in '{path.parent}' of class '{path.name}'" in refusal(name, tmp_path)

    path.rmdir()
    message = refusal(name, tmp_path)
    assert f"expected 3 class folders in '{path.parent}', found 2" in message
    assert f"('{path.name}'" in message or "more missing)" in message
