"""Read a data set's train, validation and test lists: one reader for each on-disk layout."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from pd_core.data.catalogue import DatasetSpec, Layout
from pd_core.data.splits import Item, Items, Splits, check_paths_disjoint
from pd_core.errors import BadData, MissingFile

_LISTS = ("train", "val", "test")


def image_root(spec: DatasetSpec, root: Path) -> Path:
    """Where the paths of ``read_splits`` start: a folder, or the zip of an embedded data set.

    Args:
        spec: The data set.
        root: What ``read_splits`` got.
    """
    match spec.layout:
        case Layout.EMBEDDED:
            from pd_core.data import embedded

            return root / embedded.ARCHIVE
        case _:
            return root / spec.folder / spec.image_dir


def read_splits(spec: DatasetSpec, root: Path) -> Splits:
    """Read a data set's lists and check them against its row.

    Args:
        spec: The data set.
        root: Folder that holds all data sets. For an embedded one: the folder, which must exist,
            where its pictures are written.

    Raises:
        MissingFile: A folder, a file or a picture is missing; the message says where it was
            looked for and what to do.
        BadData: The lists are damaged or do not have the classes and pictures of the row.
    """
    match spec.layout:
        case Layout.EMBEDDED:
            from pd_core.data import embedded

            return embedded.build(spec.name, root)
        case Layout.SPLIT_FILE:
            _require_folders(spec, root)
            splits = _read_split_file(spec, root)
        case Layout.IMAGENET | Layout.AIRCRAFT:
            _require_folders(spec, root)
            raise BadData(
                f"data set '{spec.name}' has the layout '{spec.layout}', which cannot be read yet: "
                f"choose a data set of layout '{Layout.SPLIT_FILE}' or '{Layout.EMBEDDED}'"
            )
    _check_counts(spec, splits)
    _check_pictures(spec, splits, image_root(spec, root))
    return splits


def _require_folders(spec: DatasetSpec, root: Path) -> None:
    for folder, what in (
        (root, "data root"),
        (root / spec.folder, "folder"),
        (image_root(spec, root), "image folder"),
    ):
        if not folder.is_dir():
            raise MissingFile(
                f"data set '{spec.name}': no {what} '{folder}'; download {spec.title} to "
                f"'{root / spec.folder}', or set PD_DATA_ROOT to the folder that holds it"
            )


def _read_split_file(spec: DatasetSpec, root: Path) -> Splits:
    """Read ``{"train": [[path, label, class name], ...], "val": ..., "test": ...}``."""
    file = root / spec.folder / str(spec.split_file)
    if not file.is_file():
        raise MissingFile(
            f"data set '{spec.name}': no split file '{file}'; download '{spec.split_file}' (the "
            f"community's split that goes with CoOp) to '{file.parent}'"
        )
    try:
        lists = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadData(f"split file '{file}' is not JSON ({error}): download it again") from None
    if not isinstance(lists, dict) or not set(_LISTS) <= set(lists):
        raise BadData(f"split file '{file}' lacks the lists train, val, test: download it again")
    train, val, test = (_items(lists[name], f"'{file}', list '{name}'") for name in _LISTS)
    splits = Splits(train, val, test)
    check_paths_disjoint(
        [("train", splits.train), ("validation", splits.val), ("test", splits.test)]
    )
    return splits


def _items(rows: Any, where: str) -> Items:
    if not isinstance(rows, list):
        raise BadData(f"{where} is no list: download the file again")
    return tuple(_item(row, f"{where}, entry {number}") for number, row in enumerate(rows))


def _item(row: Any, where: str) -> Item:
    match row:
        case [str(path), int(label), str(name)] if label >= 0 and _is_below(path):
            return Item(path, label, name)
        case _:
            raise BadData(
                f"{where} is {json.dumps(row)[:80]}, not [path below the image folder, label "
                "from 0, class name]: download the file again"
            )


def _is_below(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(path) and not pure.is_absolute() and ".." not in pure.parts


def _check_counts(spec: DatasetSpec, splits: Splits) -> None:
    found = {
        "classes": (len(splits.class_names), spec.num_classes),
        "train pictures": (len(splits.train), spec.train),
        "validation pictures": (len(splits.val), spec.val),
        "test pictures": (len(splits.test), spec.test),
    }
    for what, (count, expected) in found.items():
        if expected is not None and count != expected:
            raise BadData(
                f"data set '{spec.name}' has {count} {what} where {expected} belong: "
                "its lists are not the published ones; download them again"
            )


def _check_pictures(spec: DatasetSpec, splits: Splits, folder: Path) -> None:
    items = (*splits.train, *splits.val, *splits.test)
    absent = [item.path for item in items if not (folder / item.path).is_file()]
    if absent:
        raise MissingFile(
            f"data set '{spec.name}': {len(absent)} of {len(items)} pictures are not in "
            f"'{folder}', the first is '{absent[0]}'; unpack {spec.title} there completely"
        )
