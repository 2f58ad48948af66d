"""Read a data set's train, validation and test lists, by either road.

The community's split file decides wherever it is there. Where it is not, the original annotations
are read, and what they leave open is drawn as the community drew it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path

from pd_core.core.errors import BadData, MissingFile
from pd_core.data.catalog import custom
from pd_core.data.catalog.annotations import (
    ANNOTATION_FILES,
    class_folders,
    imagenet_names,
    labelled,
    listing,
    read_annotations,
)
from pd_core.data.catalog.catalogue import DatasetSpec, Layout
from pd_core.data.catalog.label_files import read_lines, read_split_file
from pd_core.data.loading.splits import (
    Items,
    Splits,
    check_paths_disjoint,
    train_val,
    train_val_test,
)

OnProgress = Callable[[int, int], None]

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
    """Where the paths of ``read_splits`` start: a folder, or the zip of an embedded data set.

    Args:
        spec: The data set.
        root: What ``read_splits`` got.
    """
    match spec.layout:
        case Layout.EMBEDDED:
            from pd_core.data.catalog import embedded

            return root / embedded.ARCHIVE
        case _:
            return root / spec.folder / spec.image_dir


def sources(spec: DatasetSpec, root: Path) -> tuple[Path, ...]:
    """Return what a data set is made of: folders of pictures, then the label files that are read.

    Args:
        spec: The data set.
        root: What ``read_splits`` got.
    """
    pictures = image_root(spec, root)
    folder = root / spec.folder
    found = [pictures / part for part in spec.parts or (".",)]
    match label_road(spec, root):
        case Road.EMBEDDED:
            return (pictures,)
        case Road.OWN:
            return custom.sources(spec.own, root) if spec.own else ()
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
            return custom.read_splits(spec.own, root) if spec.own else Splits((), (), ())
        case Road.SPLIT_FILE:
            _require_folders(spec, root)
            splits = read_split_file(root / spec.folder / str(spec.split_file))
        case Road.ANNOTATIONS:
            _require_folders(spec, root)
            _require_files(spec, root)
            splits = _annotated(spec, root)
    lists = [("train", splits.train), ("validation", splits.val), ("test", splits.test)]
    check_paths_disjoint(lists)
    problem = _repeated(lists) or _class_problem(spec, splits) or count_problem(spec, splits, road)
    if problem:
        raise BadData(f"data set '{spec.name}': {problem}; download it again")
    return splits


def count_problem(spec: DatasetSpec, splits: Splits, road: Road) -> str:
    """Compare the number of pictures with the row; nothing if it is right.

    Lists that were drawn are counted together: rounding class by class may give one of them a few
    more than the row has, which is no damage.

    Args:
        spec: The data set.
        splits: Its lists.
        road: What they come from.
    """
    row = {"train": spec.train, "validation": spec.val, "test": spec.test}
    lists = {"train": splits.train, "validation": splits.val, "test": splits.test}
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


def _repeated(lists: Iterable[tuple[str, Items]]) -> str:
    for name, items in lists:
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
