"""The user's own data sets: labelled images in class folders or lists, and unlabelled ones."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pd_core.core.errors import BadData, MissingFile
from pd_core.data.catalog.catalogue import OwnImages, is_list
from pd_core.data.catalog.class_names import check_names, normalized
from pd_core.data.catalog.fingerprint import walk
from pd_core.data.catalog.label_files import read_json, read_text
from pd_core.data.loading.splits import (
    HEIC,
    Item,
    Items,
    Splits,
    check_paths_disjoint,
    clean_path,
    is_hidden,
    is_picture,
)

_SPLITS = ("train", "val", "test")

_CONVERT = "install promptkd[heic] or convert them"

_Row = tuple[str, str, str]  # path below the data root, class name, split


def read_own(own: OwnImages, root: Path) -> Splits:
    """Read the user's labelled images, paths below `own.folder`; class names are sorted.

    Raises:
        MissingFile: A folder, a list or a listed image is missing.
        BadData: A list is malformed, a class has no training image, an image is in two lists, or
            different class names have one text.
    """
    _check_paths(own)
    rows = _rows(own.labelled, root, "train")
    if own.test is not None:
        rows += [(path, label, "test") for path, label, _ in _rows(own.test, root, "test")]
    rows = [(path, normalized(label), split) for path, label, split in rows]
    names = sorted({label for _, label, split in rows if split == "train"})
    check_names(names)
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
        folder = root / own.unlabelled
        raise BadData(f"'{folder}' {_without_images(folder)}")
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


def left_out(own: OwnImages, root: Path) -> Counter[str]:
    """Count the files in the given folders that are not read, by suffix in lower case.

    Hidden files, and those that operating systems leave, do not count.
    """
    _check_paths(own)
    folders = [root / path for path in own.given if (root / path).is_dir()]
    files = {
        os.path.normpath(entry.path)
        for folder in folders
        for _, entry in walk(folder)
        if not is_picture(entry.name)
    }
    return Counter(Path(file).suffix.lower() for file in files)


def describe_left_out(counts: Counter[str]) -> str:
    """Return a line about the files that are not read, such as "2 files are not read: 2 .txt"."""
    remedy = f"; {_CONVERT}" if HEIC & counts.keys() else ""
    return f"{counts.total()} files are not read: {_kinds(counts)}{remedy}"


def notes(own: OwnImages, root: Path) -> tuple[str, ...]:
    """Return lines about what is left out or unusual, for `prepare` and `verify` to print."""
    counts = left_out(own, root)
    return (describe_left_out(counts),) if counts else ()


def _kinds(counts: Counter[str]) -> str:
    pairs = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    if len(pairs) == 1:
        return pairs[0][0] or "without suffix"
    return ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in pairs)


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
        if entry.is_dir() and not is_hidden(entry.name):
            names = sorted(_images(entry))
            if not names:
                raise BadData(f"class folder '{entry}' {_without_images(entry)}, or remove it")
            rows += [(f"{path}/{entry.name}/{name}", entry.name, split) for name in names]
        elif is_picture(entry.name):
            raise BadData(
                f"'{entry}' is in no class folder: an image's class is the name of its folder"
            )
    return rows


def _without_images(folder: Path) -> str:
    """Return what a folder without readable images holds, and what to do."""
    suffixes = Counter(Path(name).suffix.lower() for name, _ in walk(folder))
    if not suffixes:
        return "has no images: add some"
    remedy = _CONVERT if HEIC & suffixes.keys() else "convert them, or add images"
    return f"has {suffixes.total()} files that cannot be read ({_kinds(suffixes)}): {remedy}"


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
