"""Label sources of data sets: class folders, split files, the original annotation files.

Corrupt files raise BadData with a line that names the file and the remedy.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pd_core.core.errors import BadData
from pd_core.data.catalog.catalogue import DatasetSpec, Layout
from pd_core.data.catalog.label_files import read_json, read_lines, read_matlab
from pd_core.data.loading.splits import Item, Items, clean_path, is_picture


def class_folders(spec: DatasetSpec) -> tuple[str, ...]:
    """Return the class folders of a data set below the image root, in the order of labels.

    Empty if the layout has no class folders, or their names are not known.
    """
    match spec.layout:
        case Layout.CLASS_FOLDERS | Layout.SUN397:
            return tuple(sorted(_known_names().get(spec.name, ())))
        case Layout.UCF101:
            return tuple(in_words(action) for action in _known_names()["ucf101"])
        case Layout.IMAGENET:
            return tuple(f"{part}/{wnid}" for part in spec.parts for wnid in imagenet_names())
        case Layout.IMAGENET_TEST:
            return tuple(_known_names().get(spec.name, imagenet_names()))
        case Layout.IMAGENET_NUMBERED:
            return tuple(str(label) for label in range(len(imagenet_names())))
        case _:
            return ()


def imagenet_names() -> Mapping[str, str]:
    """Return CLIP's name of each ImageNet class by WordNet id, in the order of labels."""
    names: dict[str, str] = _known_names()["imagenet"]
    return names


def in_words(action: str) -> str:
    """Return the class folder of an action of UCF101: `Apply_Lipstick` for `ApplyLipstick`."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))


def listing(
    folder: Path, expected: Sequence[str], *, num_classes: int, ignored: Collection[str] = ()
) -> dict[str, list[str]]:
    """List the images of class folders: sorted file names by folder, in the order of labels.

    Hidden files, files without the suffix of an image, and unknown folders without images are left
    out.

    Args:
        folder: Folder that holds the class folders.
        expected: Possible class folders, in the order of labels; if empty, any, in sorted order.
        num_classes: Expected number of class folders.
        ignored: Folders that are no classes.

    Raises:
        BadData: A folder is unknown, missing or empty.
    """
    names = [name for name in _names(folder) if name[0] != "." and (folder / name).is_dir()]
    images = {
        name: sorted(filter(is_picture, _names(folder / name)))
        for name in names
        if name not in ignored
    }
    classes = [name for name in expected or sorted(images) if name in images]
    missing = [name for name in expected if name not in images]
    absent = f" ({_few(missing)} missing)" if missing else ""
    unknown = sorted(name for name in images if images[name] and name not in classes)
    if unknown:
        raise BadData(
            f"class folder {_few(unknown)} in '{folder}' is unknown{absent}: rename or remove it"
        )
    if len(classes) != num_classes:
        raise BadData(
            f"expected {num_classes} class folders in '{folder}', found {len(classes)}{absent}: "
            "restore the data set"
        )
    if empty := [name for name in classes if not images[name]]:
        raise BadData(f"no images in '{folder}' of class {_few(empty)}: restore them")
    return {name: images[name] for name in classes}


def labelled(
    images: Mapping[str, Sequence[str]], names: Mapping[str, str], prefix: str = ""
) -> Items:
    """Label the images of class folders by the position of their folder.

    Args:
        images: File names by class folder, from `listing`.
        names: Class names by folder.
        prefix: Start of the paths, before the class folder.

    Raises:
        BadData: A class has no name.
    """
    nameless = [folder for folder in images if folder not in names]
    if nameless:
        raise BadData(f"class folder {_few(nameless)} has no name: download the names again")
    return tuple(
        Item(f"{prefix}{folder}/{image}", label, names[folder])
        for label, folder in enumerate(images)
        for image in images[folder]
    )


def _few(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 objects of a million names take seconds
    except OSError as error:
        raise BadData(f"'{folder}' cannot be listed ({error.strerror}): restore it") from None


@cache
def _known_names() -> dict[str, Any]:
    """Return class folders by data set; for ImageNet, class names by folder."""
    file = Path(__file__).with_name("class_names.json")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


_VARIANTS = tuple(f"images_variant_{split}.txt" for split in ("train", "val", "test"))

ANNOTATION_FILES: Mapping[Layout, tuple[str, ...]] = {
    Layout.PETS: ("annotations/trainval.txt", "annotations/test.txt"),
    Layout.CARS: (
        "devkit/cars_train_annos.mat",
        "cars_test_annos_withlabels.mat",
        "devkit/cars_meta.mat",
    ),
    Layout.FLOWERS: ("imagelabels.mat", "cat_to_name.json"),
    Layout.AIRCRAFT: (*_VARIANTS, "variants.txt"),
    Layout.SUN397: ("Training_01.txt", "Testing_01.txt", "ClassName.txt"),
    Layout.UCF101: (
        "ucfTrainTestlist/trainlist01.txt",
        "ucfTrainTestlist/testlist01.txt",
        "ucfTrainTestlist/classInd.txt",
    ),
}
"""Label files below a data set's folder: lists of images, then class names."""


def read_annotations(layout: Layout, folder: Path, num_classes: int) -> tuple[Items, ...]:
    """Read the label files of a layout in `ANNOTATION_FILES`.

    Returns:
        The published lists: one; train and test; or train, validation and test.

    Raises:
        MissingFile: A file is missing.
        BadData: A file is corrupt, a list has no image of a class, or a path leads out of the
            image folder.
    """
    files = [folder / name for name in ANNOTATION_FILES[layout]]
    lists = _READERS[layout](files, num_classes)
    for file, items in zip(files, lists, strict=False):
        absent = set(range(num_classes)) - {item.label for item in items}
        if absent:
            raise BadData(f"'{file}' has no image of label {min(absent) + 1}: download it again")
    return lists


def _text_lists(
    files: Iterable[Path], form: re.Pattern[str], meaning: str, item: Callable[..., Item]
) -> tuple[Items, ...]:
    """Read lists of one image per line; `item` gets the line's place and its groups."""
    return tuple(
        tuple(item(where, *groups) for where, groups in read_lines(file, form, meaning))
        for file in files
    )


def _pets(files: Sequence[Path], num_classes: int) -> tuple[Items, ...]:
    def item(where: str, breed: str, number: str, label: str) -> Item:
        path = _path(f"{breed}_{number}.jpg", where)
        return Item(path, _label(int(label), num_classes, where), breed.lower())

    form = re.compile(r"(\S+)_(\d+) +(\d+) +\d+ +\d+", re.ASCII)
    return _text_lists(files, form, "'image label species breed'", item)


def _aircraft(files: Sequence[Path], num_classes: int) -> tuple[Items, ...]:
    *lists, variants = files
    names = [name for _, (name,) in read_lines(variants, re.compile("(.+)"), "a name")]
    labels = _labels(variants, names, num_classes)

    def item(where: str, number: str, name: str) -> Item:
        return Item(_path(f"{number}.jpg", where), _label_of(name, labels, where, variants), name)

    return _text_lists(lists, re.compile(r"(\S+) (.+)"), "'image variant'", item)


def _sun397(files: Sequence[Path], num_classes: int) -> tuple[Items, ...]:
    *lists, class_names = files
    folders = [name for _, (name,) in read_lines(class_names, re.compile("/(.+)"), "'/a/name'")]
    labels = _labels(class_names, folders, num_classes)

    def item(where: str, path: str, folder: str) -> Item:
        label = _label_of(folder, labels, where, class_names)
        # The attribute of a place comes last in the folder's name, but first in English.
        return Item(_path(path, where), label, " ".join(reversed(folder.split("/")[1:])))

    return _text_lists(lists, re.compile("/((.+)/[^/]+)"), "'/a/name/image'", item)


def _ucf101(files: Sequence[Path], num_classes: int) -> tuple[Items, ...]:
    *lists, index = files
    rows = list(read_lines(index, re.compile(r"(\d+) (\S+)", re.ASCII), "'label action'"))
    actions = [action for _, (_, action) in rows]
    if [int(label) for _, (label, _) in rows] != list(range(1, len(rows) + 1)):
        raise BadData(f"'{index}' does not count its labels from 1: download it again")
    # Lists spell some actions in another case than the index, such as HandStandPushups.
    labels = _labels(index, [action.lower() for action in actions], num_classes)

    def item(where: str, action: str, video: str, given: str) -> Item:
        label = _label_of(action.lower(), labels, where, index)
        if given and int(given) != label + 1:
            raise BadData(
                f"{where} has label {given} for '{action}', '{index}' has {label + 1}: "
                "download both again"
            )
        name = in_words(actions[label])
        return Item(_path(f"{name}/{video}.jpg", where), label, name)

    form = re.compile(r"([^/\s]+)/([^/\s]+)\.avi(?: +(\d+))?", re.ASCII)
    return _text_lists(lists, form, "'action/video.avi label'", item)


def _cars(files: Sequence[Path], num_classes: int) -> tuple[Items, ...]:
    *lists, meta = files
    names = _column(read_matlab(meta, "class_names"))
    if not all(isinstance(name, str) and name.split() for name in names):
        raise BadData(f"'{meta}' names a class by no text: download it again")
    labels = _labels(meta, names, num_classes)
    # The year of a car is the last word of its name there, but the first of the class name.
    titles = [" ".join(name.split()[-1:] + name.split()[:-1]) for name in labels]

    def items(file: Path, folder: str) -> Iterable[Item]:
        table = read_matlab(file, "annotations")
        fields = getattr(table, "dtype", None)
        if fields is None or not {"fname", "class"} <= set(fields.names or ()):
            raise BadData(
                f"'{file}' has no annotations with 'fname' and 'class': download it again"
            )
        rows = zip(_column(table["fname"]), _column(table["class"]), strict=True)
        for number, (name, value) in enumerate(rows, start=1):
            where = f"'{file}', annotation {number}"
            label = _label(value, num_classes, where)
            yield Item(_path(f"{folder}/{name}", where), label, titles[label])

    folders = ("cars_train", "cars_test")
    return tuple(tuple(items(file, part)) for file, part in zip(lists, folders, strict=True))


def _flowers(files: Sequence[Path], num_classes: int) -> tuple[Items, ...]:
    labels, by_label = files
    names = read_json(by_label)
    expected = [str(label) for label in range(1, num_classes + 1)]
    if not isinstance(names, dict) or not all(isinstance(names.get(key), str) for key in expected):
        raise BadData(
            f"'{by_label}' does not name the labels 1 to {num_classes}: download it again"
        )
    items = []
    for number, value in enumerate(_column(read_matlab(labels, "labels")), start=1):
        label = _label(value, num_classes, f"'{labels}', image {number}")
        items.append(Item(f"image_{number:05}.jpg", label, names[str(label + 1)]))
    return (tuple(items),)


_READERS: Mapping[Layout, Callable[[Sequence[Path], int], tuple[Items, ...]]] = {
    Layout.PETS: _pets,
    Layout.CARS: _cars,
    Layout.FLOWERS: _flowers,
    Layout.AIRCRAFT: _aircraft,
    Layout.SUN397: _sun397,
    Layout.UCF101: _ucf101,
}


def _column(values: Any) -> list[Any]:
    """Return a MATLAB array of one dimension, or a single value, as a list."""
    import numpy as np

    return list(np.atleast_1d(values).ravel().tolist())


def _label(value: Any, num_classes: int, where: str) -> int:
    """Convert a label from 1 to one from 0."""
    # MATLAB's numbers are floats unless someone took care.
    if type(value) not in (int, float) or value not in range(1, num_classes + 1):
        raise BadData(
            f"{where} has the label {str(value)[:20]!r}, not one from 1 to {num_classes}: "
            "download it again"
        )
    return int(value) - 1


def _path(path: str, where: str) -> str:
    clean = clean_path(path)
    if clean is None:
        raise BadData(f"{where} leads out of the image folder, to {path!r}: download it again")
    return clean


def _labels(file: Path, names: Sequence[str], num_classes: int) -> dict[str, int]:
    distinct = len(set(names))
    if distinct != num_classes or len(names) != num_classes:
        raise BadData(
            f"'{file}' names {distinct} classes in {len(names)} entries, expected {num_classes}: "
            "download it again"
        )
    return {name: label for label, name in enumerate(names)}


def _label_of(name: str, labels: Mapping[str, int], where: str, file: Path) -> int:
    if name not in labels:
        raise BadData(f"{where} is of class {name!r}, which '{file}' lacks: download both again")
    return labels[name]
