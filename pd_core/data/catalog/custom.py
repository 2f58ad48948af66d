"""The user's own pictures as a data set: class folders or a list, and a folder without labels."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pd_core.core.errors import BadData, MissingFile
from pd_core.data.catalog.label_files import read_json, read_text
from pd_core.data.loading.paths import clean_path, is_picture
from pd_core.data.loading.splits import Item, Items, Splits, check_paths_disjoint

_SPLITS = ("train", "val", "test")
_LISTS = (".csv", ".json")

_Row = tuple[str, str, str]  # path below the data root, class name, split


@dataclass(frozen=True)
class OwnImages:
    """Where the user's own pictures are; every path is below the data root.

    Attributes:
        labelled: Folder of class folders, or a list (`.csv`, `.json`) of path, label and, if some
            are for validation or test, split.
        unlabelled: Folder of pictures without labels; None if there are none.
        test: Folder of class folders, or a list, to measure accuracy on; None if there is none.
    """

    labelled: str
    unlabelled: str | None = None
    test: str | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """The paths that are given."""
        return tuple(path for path in (self.labelled, self.unlabelled, self.test) if path)

    @property
    def folder(self) -> str:
        """The folder below the data root that holds everything."""
        parents = [str(Path(path).parent) if _is_list(path) else path for path in self.given]
        return os.path.commonpath(parents) if len(parents) > 1 else parents[0]


def read_splits(own: OwnImages, root: Path) -> Splits:
    """Read the labelled pictures.

    Labels count the class names in sorted order.

    Args:
        own: Where the pictures are.
        root: The data root.

    Returns:
        Lists with paths below `own.folder`.

    Raises:
        MissingFile: A folder, a list or a listed picture is not there.
        BadData: A list is malformed, a class has no picture to learn from, or a picture is in
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
    check_paths_disjoint(list(lists.items()))
    return Splits(**lists)


def unlabelled(own: OwnImages, root: Path) -> tuple[str, ...]:
    """List the pictures of the folder without labels, if there is one.

    Returns:
        Sorted paths below `own.folder`.

    Raises:
        MissingFile: The folder is not there.
        BadData: The folder has no pictures, or leads out of the data root.
    """
    _check_paths(own)
    if own.unlabelled is None:
        return ()
    found = sorted(_pictures(root / own.unlabelled))
    if not found:
        raise BadData(f"'{root / own.unlabelled}' has no pictures: put some there")
    return tuple(_below(f"{own.unlabelled}/{path}", own.folder) for path in found)


def sources(own: OwnImages, root: Path) -> tuple[Path, ...]:
    """Return what is read: folders and lists, and the pictures that lists name.

    Raises:
        MissingFile: A list, or a picture that it names, is not there.
        BadData: A path leads out of the data root, or a list is malformed.
    """
    _check_paths(own)
    found: list[Path] = []
    for path in own.given:
        found.append(root / path)
        if _is_list(path):
            found += [root / name for name, _, _ in _read(path, root, "train")]
    return tuple(found)


def _check_paths(own: OwnImages) -> None:
    for path in own.given:
        if clean_path(path) is None:
            raise BadData(f"'{path}' leads out of the data root: give a path below it")


def _read(path: str, root: Path, split: str) -> Iterator[_Row]:
    """Read class folders or a list; rows of a list may name another split."""
    if not _is_list(path):
        return _class_folders(path, root, split)
    return _listed(path, root, split)


def _is_list(path: str) -> bool:
    return path.lower().endswith(_LISTS)


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
