"""Train, validation and test lists of a data set, from either of its label sources.

The community's split file takes precedence. Without it, the original annotations are read, and the
lists that they lack are drawn as the community drew them. The user's own data sets are lists or
class folders.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pd_core.core.errors import BadData, MissingFile
from pd_core.core.hooks import OnProgress
from pd_core.data.catalog.annotations import (
    ANNOTATION_FILES,
    class_folders,
    imagenet_names,
    labelled,
    listing,
    read_annotations,
)
from pd_core.data.catalog.catalogue import DatasetSpec, Layout, OwnImages, is_list
from pd_core.data.catalog.fingerprint import walk
from pd_core.data.catalog.label_files import read_json, read_lines, read_split_file, read_text
from pd_core.data.loading.splits import (
    Item,
    Items,
    Splits,
    check_paths_disjoint,
    clean_path,
    is_picture,
    train_val,
    train_val_test,
)

_IMAGENETS = (Layout.IMAGENET, Layout.IMAGENET_TEST, Layout.IMAGENET_NUMBERED)
_WNID_AND_NAME = re.compile(r"(n\d{8})\s+(.+)", re.ASCII)

CLASS_NAMES = "classnames.txt"
"""Class names beside the images of ImageNet and its variants; CLIP's are used without it."""


class LabelSource(StrEnum):
    """Source of a data set's lists."""

    EMBEDDED = "embedded"
    OWN = "own pictures"
    SPLIT_FILE = "split file"
    ANNOTATIONS = "original annotations"


def label_source(spec: DatasetSpec, root: Path) -> LabelSource:
    """Return the label source that `read_splits` uses, by the files that exist."""
    if spec.layout is Layout.EMBEDDED:
        return LabelSource.EMBEDDED
    if spec.own is not None:
        return LabelSource.OWN
    if spec.split_file is not None and (root / spec.folder / spec.split_file).is_file():
        return LabelSource.SPLIT_FILE
    return LabelSource.ANNOTATIONS


def image_root(spec: DatasetSpec, root: Path) -> Path:
    """Return the folder of all images, or the zip file of an embedded data set."""
    if spec.layout is Layout.EMBEDDED:
        from pd_core.data.catalog import embedded

        return root / embedded.ARCHIVE
    return root / spec.folder / spec.image_dir


def sources(spec: DatasetSpec, root: Path) -> tuple[Path, ...]:
    """Return the folders of images, then the label files, that a data set is read from."""
    folder, images = root / spec.folder, image_root(spec, root)
    folders = [images / part for part in spec.parts or (".",)]
    match label_source(spec, root):
        case LabelSource.EMBEDDED:
            return (images,)
        case LabelSource.OWN:
            return own_sources(spec.own, root) if spec.own else ()
        case LabelSource.SPLIT_FILE:
            return (*folders, folder / str(spec.split_file))
        case LabelSource.ANNOTATIONS:
            files = [folder / name for name in ANNOTATION_FILES.get(spec.layout, ())]
            if spec.layout in _IMAGENETS and (folder / CLASS_NAMES).is_file():
                files.append(folder / CLASS_NAMES)
            return (*folders, *files)


def read_splits(spec: DatasetSpec, root: Path, *, on_progress: OnProgress | None = None) -> Splits:
    """Read the lists of a data set and compare them with its row.

    Images are not read; where class folders are the labels, they are listed.

    Args:
        spec: The data set.
        root: Data root; for an embedded data set an existing folder that its images go to.
        on_progress: Called with images written and total images, for an embedded data set.

    Raises:
        MissingFile: A folder or a file is missing.
        BadData: The lists are corrupt, or do not have the classes and images of the row.
    """
    source = label_source(spec, root)
    match source:
        case LabelSource.EMBEDDED:
            from pd_core.data.catalog import embedded

            return embedded.build(spec.name, root, on_progress=on_progress)
        case LabelSource.OWN:
            return read_own(spec.own, root) if spec.own else Splits((), (), ())
        case LabelSource.SPLIT_FILE:
            _require_folders(spec, root)
            splits = read_split_file(root / spec.folder / str(spec.split_file))
        case LabelSource.ANNOTATIONS:
            _require_folders(spec, root)
            _require_files(spec, root)
            splits = _annotated(spec, root)
    check_paths_disjoint(splits.lists)
    problem = _repeated(splits) or _class_problem(spec, splits)
    problem = problem or count_problem(spec, splits, source)
    if problem:
        raise BadData(f"data set '{spec.name}': {problem}; download it again")
    return splits


def count_problem(spec: DatasetSpec, splits: Splits, source: LabelSource) -> str:
    """Compare the number of images with the row; return an empty text if they are equal.

    Drawn lists are counted together: rounding per class may move a few images between them.
    """
    row = {"train": spec.train, "validation": spec.val, "test": spec.test}
    differences: list[tuple[str, str]] = []
    for names in _counted_together(spec, source):
        sizes = [row[name] for name in names]
        expected = sum(size for size in sizes if size is not None)
        actual = sum(len(splits.lists[name]) for name in names)
        if None not in sizes and expected != actual:
            title = "" if len(names) == len(row) else f" {' and '.join(names)}"
            differences.append((f"{expected}{title}", f"{actual}{title}"))
    if not differences:
        return ""
    wanted, present = (", ".join(counts) for counts in zip(*differences, strict=True))
    return f"the lists are not the published ones: expected {wanted} images, found {present}"


def _counted_together(spec: DatasetSpec, source: LabelSource) -> tuple[tuple[str, ...], ...]:
    if source is LabelSource.ANNOTATIONS:
        match spec.layout:
            case Layout.CLASS_FOLDERS | Layout.FLOWERS:
                return (("train", "validation", "test"),)
            case Layout.PETS | Layout.CARS | Layout.SUN397 | Layout.UCF101:
                return (("train", "validation"), ("test",))
            case _:
                pass
    return (("train",), ("validation",), ("test",))


def _repeated(splits: Splits) -> str:
    for name, items in splits.lists.items():
        if len({item.path for item in items}) < len(items):
            path, count = Counter(item.path for item in items).most_common(1)[0]
            return f"the {name} list has '{path}' {count} times"
    return ""


def _class_problem(spec: DatasetSpec, splits: Splits) -> str:
    count = len(splits.class_names)
    if count == spec.num_classes:
        return ""
    return f"the lists have {count} classes, expected {spec.num_classes}"


def _require_folders(spec: DatasetSpec, root: Path) -> None:
    images = image_root(spec, root)
    for folder, title in (
        (root, "data root"),
        (root / spec.folder, "folder"),
        *((images / part, "image folder") for part in (".", *spec.parts)),
    ):
        if not folder.is_dir():
            raise MissingFile(
                f"data set '{spec.name}': no {title} '{folder}'; download {spec.title} to "
                f"'{root / spec.folder}', or set PD_DATA_ROOT to the folder that holds it"
            )


def _require_files(spec: DatasetSpec, root: Path) -> None:
    folder = root / spec.folder
    other = f", or the split file '{spec.split_file}'" if spec.split_file else ""
    for name in ANNOTATION_FILES.get(spec.layout, ()):
        if not (folder / name).is_file():
            raise MissingFile(
                f"data set '{spec.name}': no '{folder / name}'; download {spec.title}'s "
                f"annotations{other}, to '{folder}'"
            )


def _annotated(spec: DatasetSpec, root: Path) -> Splits:
    """Read the original annotations and draw the lists that they lack."""
    # Not the run's seed: with it, the test list would change from run to run.
    rng = random.Random(1)
    match spec.layout:
        case Layout.CLASS_FOLDERS:
            lists: tuple[Items, ...] = (_folders(spec, root),)
        case Layout.IMAGENET:
            train, test = (_folders(spec, root, f"{part}/") for part in spec.parts)
            return Splits(train, (), test)
        case Layout.IMAGENET_TEST | Layout.IMAGENET_NUMBERED:
            return Splits((), (), _folders(spec, root))
        case _:
            lists = read_annotations(spec.layout, root / spec.folder, spec.num_classes)
    match lists:
        case (everything,):
            return train_val_test(everything, rng)
        case (train, test):
            return Splits(*train_val(train, rng), test)
        case _:
            return Splits(*lists)


def _folders(spec: DatasetSpec, root: Path, part: str = "") -> Items:
    """List the class folders below the image root, or below a part of it (with a slash)."""
    folders = class_folders(spec)
    images = listing(
        image_root(spec, root) / part,
        [folder.removeprefix(part) for folder in folders if folder.startswith(part)],
        num_classes=spec.num_classes,
        ignored=spec.ignored,
    )
    return labelled(images, _names(spec, root, images), part)


def _names(spec: DatasetSpec, root: Path, folders: Iterable[str]) -> Mapping[str, str]:
    """Return class names by class folder."""
    match spec.layout:
        case Layout.CLASS_FOLDERS:
            return {folder: spec.renames.get(folder, folder) for folder in folders}
        case Layout.IMAGENET_NUMBERED:
            names = _names_by_wnid(root / spec.folder / CLASS_NAMES)
            wnids = enumerate(imagenet_names())
            return {str(label): names[wnid] for label, wnid in wnids if wnid in names}
        case _:
            return _names_by_wnid(root / spec.folder / CLASS_NAMES)


def _names_by_wnid(file: Path) -> Mapping[str, str]:
    """Return ImageNet's class names by WordNet id, from the file if it exists, or else CLIP's."""
    if not file.is_file():
        return imagenet_names()
    names: dict[str, str] = {}
    for where, (wnid, name) in read_lines(file, _WNID_AND_NAME, "'wnid name'"):
        if wnid in names:
            raise BadData(f"{where} names '{wnid}' again: download it again")
        names[wnid] = name
    return names


_SPLITS = ("train", "val", "test")

_Row = tuple[str, str, str]  # path below the data root, class name, split


def read_own(own: OwnImages, root: Path) -> Splits:
    """Read the user's labelled images, paths below `own.folder`; class names are sorted.

    Raises:
        MissingFile: A folder, a list or a listed image is missing.
        BadData: A list is malformed, a class has no training image, or an image is in two lists.
    """
    _check_paths(own)
    rows = _rows(own.labelled, root, "train")
    if own.test is not None:
        rows += [(path, label, "test") for path, label, _ in _rows(own.test, root, "test")]
    names = sorted({label for _, label, split in rows if split == "train"})
    if len(names) < 2:
        raise BadData(f"'{root / own.labelled}' has {len(names)} classes: give images of two")
    for path, label, split in rows:
        if label not in names:
            raise BadData(
                f"{split} image '{path}' is of class '{label}', which no labelled image shows: "
                "add one, or correct the name"
            )
    lists = {split: _items(rows, split, names, own.folder) for split in _SPLITS}
    check_paths_disjoint(lists)
    return Splits(**lists)


def own_unlabelled(own: OwnImages, root: Path) -> tuple[str, ...]:
    """List the images of the unlabelled folder, if any: sorted paths below `own.folder`.

    Raises:
        MissingFile: The folder is missing.
        BadData: The folder has no images, or leads out of the data root.
    """
    _check_paths(own)
    if own.unlabelled is None:
        return ()
    images = sorted(_images(root / own.unlabelled))
    if not images:
        raise BadData(f"'{root / own.unlabelled}' has no images: put some there")
    return tuple(_below(f"{own.unlabelled}/{path}", own.folder) for path in images)


def own_sources(own: OwnImages, root: Path) -> tuple[Path, ...]:
    """Return the folders, lists and listed images that `read_own` reads; raises as it does."""
    _check_paths(own)
    files: list[Path] = []
    for path in own.given:
        files.append(root / path)
        if is_list(path):
            files += [root / name for name, _, _ in _listed(path, root, "train")]
    return tuple(files)


def _check_paths(own: OwnImages) -> None:
    for path in own.given:
        if clean_path(path) is None:
            raise BadData(f"'{path}' leads out of the data root: give a path below it")


def _rows(path: str, root: Path, split: str) -> list[_Row]:
    """Read class folders or a list; rows of a list may name another split."""
    return _listed(path, root, split) if is_list(path) else _in_folders(path, root, split)


def _in_folders(path: str, root: Path, split: str) -> list[_Row]:
    folder = root / path
    if not folder.is_dir():
        raise MissingFile(
            f"no folder '{folder}': put one folder of images for each class there, or set "
            "PD_DATA_ROOT to the folder that holds it"
        )
    rows = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            names = sorted(_images(entry))
            if not names:
                raise BadData(f"class folder '{entry}' has no images: add some, or remove it")
            rows += [(f"{path}/{entry.name}/{name}", entry.name, split) for name in names]
        elif is_picture(entry.name):
            raise BadData(
                f"'{entry}' is in no class folder: an image's class is the name of its folder"
            )
    return rows


def _images(folder: Path) -> Iterator[str]:
    """Yield the paths of images below a folder, however deep."""
    if not folder.is_dir():
        raise MissingFile(f"no folder '{folder}': put the images there")
    return (name for name, _ in walk(folder) if is_picture(name.rpartition("/")[2]))


def _listed(path: str, root: Path, split: str) -> list[_Row]:
    file = root / path
    if not file.is_file():
        raise MissingFile(f"no list '{file}': put it there, or correct prepare.own")
    rows = [
        _row(content, f"'{file}', entry {number}", split)
        for number, content in enumerate(_entries(file), start=1)
    ]
    if not rows:
        raise BadData(f"'{file}' lists no images: add some")
    # Unlike pathlib's, it does not raise an error for a name that is too long.
    absent = [name for name, _, _ in rows if not os.path.isfile(file.parent / name)]  # noqa: PTH113
    if absent:
        raise MissingFile(
            f"{len(absent)} of the {len(rows)} images of '{file}' are not there, the first is "
            f"'{absent[0][:80]}': paths start at the list's folder"
        )
    parent = Path(path).parent.as_posix()
    start = "" if parent == "." else f"{parent}/"
    return [(f"{start}{name}", label, where) for name, label, where in rows]


def _entries(file: Path) -> list[Any]:
    """Read the entries of a list: mappings with path, label and perhaps split."""
    if file.suffix.lower() == ".csv":
        try:
            return list(csv.DictReader(read_text(file).splitlines(), strict=True))
        except csv.Error as error:
            raise BadData(f"list '{file}' is no CSV ({error}): correct it") from None
    content = read_json(file)
    if not isinstance(content, list):
        raise BadData(f"list '{file}' is no JSON list: give [{{path, label, split}}, ...]")
    return content


def _row(content: Any, where: str, split: str) -> _Row:
    match content:
        case {"path": str(given), "label": str(label), **rest} if (
            (path := clean_path(given)) and label.strip() and set(rest) <= {"split"}
        ):
            named = rest.get("split") or split
            if named not in _SPLITS:
                raise BadData(f"{where} has split '{named}': give train, val or test")
            return path, label.strip(), named
        case _:
            raise BadData(
                f"{where} is {json.dumps(content)[:80]}: give path (below the list's folder), "
                "label (the class name, as text) and, if you like, split; nothing else"
            )


def _items(rows: list[_Row], split: str, names: list[str], folder: str) -> Items:
    label_of = {name: label for label, name in enumerate(names)}
    classes: dict[str, str] = {}
    for path, name, where in rows:
        if where == split and classes.setdefault(path, name) != name:
            raise BadData(f"'{path}' is of class '{classes[path]}' and of '{name}': give it one")
    return tuple(Item(_below(path, folder), label_of[name], name) for path, name in classes.items())


def _below(path: str, folder: str) -> str:
    return Path(path).relative_to(folder).as_posix()
