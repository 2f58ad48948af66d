"""Read a data set's train, validation and test lists, by either road.

The community's split file decides wherever it is there. Where it is not, the original annotations
are read, and what they leave open is drawn as the community drew it.
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
    read_json,
    read_lines,
    read_split_file,
    read_text,
)
from pd_core.data.catalog.catalogue import DatasetSpec, Layout, OwnImages, is_list
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
"""Class names beside the pictures of ImageNet and its variants; CLIP's are used without it."""


class Road(StrEnum):
    """What a data set's lists are read from."""

    EMBEDDED = "embedded"
    OWN = "own pictures"
    SPLIT_FILE = "split file"
    ANNOTATIONS = "original annotations"


def label_road(spec: DatasetSpec, root: Path) -> Road:
    """Say what `read_splits` reads, from the files that are there."""
    if spec.layout is Layout.EMBEDDED:
        return Road.EMBEDDED
    if spec.own is not None:
        return Road.OWN
    if spec.split_file is not None and (root / spec.folder / spec.split_file).is_file():
        return Road.SPLIT_FILE
    return Road.ANNOTATIONS


def image_root(spec: DatasetSpec, root: Path) -> Path:
    """Where the paths of ``read_splits`` start: a folder, or the zip of an embedded data set."""
    match spec.layout:
        case Layout.EMBEDDED:
            from pd_core.data.catalog import embedded

            return root / embedded.ARCHIVE
        case _:
            return root / spec.folder / spec.image_dir


def sources(spec: DatasetSpec, root: Path) -> tuple[Path, ...]:
    """Return what a data set is made of: folders of images, then the label files that are read."""
    pictures = image_root(spec, root)
    folder = root / spec.folder
    found = [pictures / part for part in spec.parts or (".",)]
    match label_road(spec, root):
        case Road.EMBEDDED:
            return (pictures,)
        case Road.OWN:
            return own_sources(spec.own, root) if spec.own else ()
        case Road.SPLIT_FILE:
            return (*found, folder / str(spec.split_file))
        case Road.ANNOTATIONS:
            files = [folder / name for name in ANNOTATION_FILES.get(spec.layout, ())]
            if spec.layout in _IMAGENETS and (folder / CLASS_NAMES).is_file():
                files.append(folder / CLASS_NAMES)
            return (*found, *files)


def read_splits(spec: DatasetSpec, root: Path, *, on_progress: OnProgress | None = None) -> Splits:
    """Read a data set's lists and check them against its row.

    Pictures are not looked at; where class folders are the labels, they are listed.

    Args:
        spec: The data set.
        root: Folder that holds all data sets. For an embedded one: the folder, which must exist,
            where its pictures are written.
        on_progress: Called with pictures written and pictures in all, for an embedded one.

    Raises:
        MissingFile: A folder or a file is missing; the message says where it was looked for and
            what to do.
        BadData: The lists are damaged or do not have the classes and pictures of the row.
    """
    road = label_road(spec, root)
    match road:
        case Road.EMBEDDED:
            from pd_core.data.catalog import embedded

            return embedded.build(spec.name, root, on_progress=on_progress)
        case Road.OWN:
            return read_own(spec.own, root) if spec.own else Splits((), (), ())
        case Road.SPLIT_FILE:
            _require_folders(spec, root)
            splits = read_split_file(root / spec.folder / str(spec.split_file))
        case Road.ANNOTATIONS:
            _require_folders(spec, root)
            _require_files(spec, root)
            splits = _annotated(spec, root)
    check_paths_disjoint(splits.lists)
    problem = _repeated(splits) or _class_problem(spec, splits) or count_problem(spec, splits, road)
    if problem:
        raise BadData(f"data set '{spec.name}': {problem}; download it again")
    return splits


def count_problem(spec: DatasetSpec, splits: Splits, road: Road) -> str:
    """Compare the number of images with the row; nothing if it is right.

    Lists that were drawn are counted together: rounding class by class may give one of them a few
    more than the row has, which is no damage.
    """
    row = {"train": spec.train, "validation": spec.val, "test": spec.test}
    lists = splits.lists
    expected: list[str] = []
    found: list[str] = []
    for names in _counted_together(spec, road):
        sizes = [row[name] for name in names]
        there = sum(len(lists[name]) for name in names)
        known = [size for size in sizes if size is not None]
        if len(known) == len(sizes) and sum(known) != there:
            what = "" if len(names) == len(row) else f" {' and '.join(names)}"
            expected.append(f"{sum(known)}{what}")
            found.append(f"{there}{what}")
    if not expected:
        return ""
    return (
        "the lists are not the published ones: "
        f"expected {', '.join(expected)} pictures, found {', '.join(found)}"
    )


def _counted_together(spec: DatasetSpec, road: Road) -> tuple[tuple[str, ...], ...]:
    if road is Road.ANNOTATIONS:
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
    found = len(splits.class_names)
    if found == spec.num_classes:
        return ""
    return f"the lists have {found} classes, expected {spec.num_classes}"


def _require_folders(spec: DatasetSpec, root: Path) -> None:
    pictures = image_root(spec, root)
    for folder, what in (
        (root, "data root"),
        (root / spec.folder, "folder"),
        *((pictures / part, "image folder") for part in (".", *spec.parts)),
    ):
        if not folder.is_dir():
            raise MissingFile(
                f"data set '{spec.name}': no {what} '{folder}'; download {spec.title} to "
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
    """Read the original annotations and draw what they leave open."""
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
    """List the class folders below the image root or, with its slash, below a part of it."""
    known = class_folders(spec)
    pictures = listing(
        image_root(spec, root) / part,
        [folder.removeprefix(part) for folder in known if folder.startswith(part)],
        num_classes=spec.num_classes,
        ignored=spec.ignored,
    )
    return labelled(pictures, _names(spec, root, pictures), part)


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
    """Return ImageNet's class names: those beside the pictures, or else CLIP's."""
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
        MissingFile: A folder, a list or a listed image is not there.
        BadData: A list is malformed, a class has no image to learn from, or an image is in
            two lists.
    """
    _check_paths(own)
    rows = list(_read(own.labelled, root, "train"))
    if own.test is not None:
        rows += [(path, label, "test") for path, label, _ in _read(own.test, root, "test")]
    names = sorted({label for _, label, split in rows if split == "train"})
    if len(names) < 2:
        raise BadData(f"'{root / own.labelled}' has {len(names)} classes: give pictures of two")
    for path, label, split in rows:
        if label not in names:
            raise BadData(
                f"{split} picture '{path}' is of class '{label}', which no labelled picture shows: "
                "add one, or correct the name"
            )
    lists = {split: _items(rows, split, names, own.folder) for split in _SPLITS}
    check_paths_disjoint(lists)
    return Splits(**lists)


def own_unlabelled(own: OwnImages, root: Path) -> tuple[str, ...]:
    """List the images of the folder without labels, if any: sorted paths below `own.folder`.

    Raises:
        MissingFile: The folder is not there.
        BadData: The folder has no images, or leads out of the data root.
    """
    _check_paths(own)
    if own.unlabelled is None:
        return ()
    found = sorted(_pictures(root / own.unlabelled))
    if not found:
        raise BadData(f"'{root / own.unlabelled}' has no pictures: put some there")
    return tuple(_below(f"{own.unlabelled}/{path}", own.folder) for path in found)


def own_sources(own: OwnImages, root: Path) -> tuple[Path, ...]:
    """Return what `read_own` reads, and raise as it does: folders, lists and listed images."""
    _check_paths(own)
    found: list[Path] = []
    for path in own.given:
        found.append(root / path)
        if is_list(path):
            found += [root / name for name, _, _ in _read(path, root, "train")]
    return tuple(found)


def _check_paths(own: OwnImages) -> None:
    for path in own.given:
        if clean_path(path) is None:
            raise BadData(f"'{path}' leads out of the data root: give a path below it")


def _read(path: str, root: Path, split: str) -> Iterator[_Row]:
    """Read class folders or a list; rows of a list may name another split."""
    if not is_list(path):
        return _class_folders(path, root, split)
    return _listed(path, root, split)


def _class_folders(path: str, root: Path, split: str) -> Iterator[_Row]:
    folder = root / path
    if not folder.is_dir():
        raise MissingFile(
            f"no folder '{folder}': put one folder of pictures for each class there, or set "
            "PD_DATA_ROOT to the folder that holds it"
        )
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            if is_picture(entry.name):
                raise BadData(
                    f"'{folder / entry.name}' is in no class folder: a picture's class is the name "
                    "of its folder"
                )
            continue
        pictures = sorted(_pictures(Path(entry.path)))
        if not pictures:
            raise BadData(f"class folder '{entry.path}' has no pictures: add some, or remove it")
        yield from ((f"{path}/{entry.name}/{name}", entry.name, split) for name in pictures)


def _pictures(folder: Path, inside: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield paths of pictures below a folder, however deep, hidden ones left out."""
    if not folder.is_dir():
        raise MissingFile(f"no folder '{folder}': put the pictures there")
    place = os.path.realpath(folder)
    if place in inside:
        raise BadData(f"'{folder}' is a link to a folder that it lies in: remove it")
    with os.scandir(folder) as scanned:
        entries = [entry for entry in scanned if not entry.name.startswith(".")]
    for entry in entries:
        if entry.is_dir():
            deeper = _pictures(Path(entry.path), (*inside, place))
            yield from (f"{entry.name}/{path}" for path in deeper)
        elif is_picture(entry.name):
            yield entry.name


def _listed(path: str, root: Path, split: str) -> Iterator[_Row]:
    file = root / path
    if not file.is_file():
        raise MissingFile(f"no list '{file}': put it there, or correct prepare.own")
    parent = Path(path).parent.as_posix()
    rows = [
        _row(content, f"'{file}', entry {number}", split)
        for number, content in enumerate(_entries(file), start=1)
    ]
    if not rows:
        raise BadData(f"'{file}' lists no pictures: add some")
    # Of a name that is too long, pathlib's own would raise what the system says.
    absent = [name for name, _, _ in rows if not os.path.isfile(file.parent / name)]  # noqa: PTH113
    if absent:
        raise MissingFile(
            f"{len(absent)} of the {len(rows)} pictures of '{file}' are not there, the first is "
            f"'{absent[0][:80]}': paths start at the list's folder"
        )
    yield from ((_joined(parent, name), label, where) for name, label, where in rows)


def _entries(file: Path) -> list[Any]:
    """Read a list's entries: mappings with path, label and perhaps split."""
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
    seen: dict[str, str] = {}
    for path, name, where in rows:
        if where == split and seen.setdefault(path, name) != name:
            raise BadData(f"'{path}' is of class '{seen[path]}' and of '{name}': give it one")
    return tuple(Item(_below(path, folder), label_of[name], name) for path, name in seen.items())


def _joined(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def _below(path: str, folder: str) -> str:
    return Path(path).relative_to(folder).as_posix()
