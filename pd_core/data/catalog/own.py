"""The user's own data sets: labelled images in class folders or lists, and unlabelled ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from posixpath import normpath

from pd_core.core.errors import BadData
from pd_core.core.names import listed
from pd_core.data.catalog.catalogue import OwnImages, is_list
from pd_core.data.catalog.class_names import check_names, normalized
from pd_core.data.catalog.own_folders import (
    count_suffixes,
    describe,
    nested_class,
    read_class_folders,
    read_images,
    remedy_for,
)
from pd_core.data.catalog.own_lists import Row, read_list
from pd_core.data.loading.splits import Item, Items, Splits, check_paths_disjoint, clean_path

_SPLITS = ("train", "val", "test")


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
        rows += [row._replace(split="test") for row in _rows(own.test, root, "test")]
    rows = [row._replace(label=normalized(row.label)) for row in rows]
    names = sorted({label for _, label, split in rows if split == "train"})
    check_names(names)
    if len(names) < 2:
        raise BadData(f"'{root / own.labelled}' has {len(names)} classes: give images of two")
    labelled = set(names)
    for path, label, split in rows:
        if label not in labelled:
            raise BadData(
                f"{split} image '{path}' is of class '{label}', which no labelled image shows: "
                "add one, or correct the name"
            )
    lists = {split: _items(rows, split, names, _start(own)) for split in _SPLITS}
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
    prefix = f"{normpath(own.unlabelled)}/".removeprefix(_start(own))
    return tuple(f"{prefix}{path}" for path in read_images(root / own.unlabelled))


def own_sources(own: OwnImages, root: Path) -> tuple[Path, ...]:
    """Return the folders, lists and listed images that `read_own` reads; raises as it does."""
    _check_paths(own)
    files: list[Path] = []
    for path in own.given:
        files.append(root / path)
        if is_list(path):
            files += [root / row.path for row in _rows(path, root, "train")]
    return tuple(files)


def left_out(own: OwnImages, root: Path) -> Counter[str]:
    """Count the files in the given folders that are not read, by suffix in lower case.

    Hidden files, and those that operating systems leave, do not count.
    """
    _check_paths(own)
    folders = {root / path for path in own.given if (root / path).is_dir()}
    return sum(map(count_suffixes, _outermost(folders)), Counter())


def notes(own: OwnImages, root: Path) -> tuple[str, ...]:
    """Return lines about what is not read or may be unintended; raises as `read_own` does."""
    return tuple(filter(None, (_left_out_note(own, root), *_label_notes(own, root))))


def _left_out_note(own: OwnImages, root: Path) -> str:
    counts = left_out(own, root)
    remedy = remedy_for(counts)
    end = f"; {remedy}" if remedy else ""
    return f"files that are not read: {describe(counts)}{end}" if counts else ""


def _label_notes(own: OwnImages, root: Path) -> Iterator[str]:
    """Yield lines about columns, folders and class names."""
    for path in filter(None, (own.labelled, own.test)):
        rows = _rows(path, root, "train")
        if is_list(path):
            if unread := read_list(root / path, "train").unread:
                yield f"list '{path}': the columns {listed(unread)} are not read"
        elif nested := nested_class(rows):
            yield (
                f"class folder '{path}/{nested[0]}' has all its images in folders below it, such "
                f"as '{nested[1]}': they are of class '{nested[0]}'"
            )
        if numbers := {row.label for row in rows if row.label.isdigit()}:
            yield (
                f"'{path}' has numbers as class names, such as {listed(sorted(numbers)[:3])}: CLIP "
                "reads them as text, so that words are better"
            )


def _outermost(folders: Collection[Path]) -> list[Path]:
    """Leave out folders that are below others."""
    return [path for path in folders if not any(other in path.parents for other in folders)]


def _check_paths(own: OwnImages) -> None:
    for path in own.given:
        if clean_path(path) is None:
            raise BadData(f"'{path}' leads out of the data root: give a path below it")
        if not is_list(own.labelled) and Path(own.labelled) in Path(path).parents:
            raise BadData(
                f"'{path}' is in the folder of the class folders, '{own.labelled}': move the class "
                "folders to a folder of their own"
            )


def _rows(path: str, root: Path, split: str) -> list[Row]:
    """Read class folders or a list, with paths below the data root."""
    path = normpath(path)
    if not is_list(path):
        return read_class_folders(path, root, split)
    rows = read_list(root / path, split).rows
    parent = Path(path).parent.as_posix()
    return rows if parent == "." else [row._replace(path=f"{parent}/{row.path}") for row in rows]


def _items(rows: list[Row], split: str, names: list[str], start: str) -> Items:
    label_of = {name: label for label, name in enumerate(names)}
    classes: dict[str, str] = {}
    for path, name, where in rows:
        if where == split and classes.setdefault(path, name) != name:
            raise BadData(f"'{path}' is of class '{classes[path]}' and of '{name}': give it one")
    return tuple(
        Item(path.removeprefix(start), label_of[name], name) for path, name in classes.items()
    )


def _start(own: OwnImages) -> str:
    """Return the beginning of paths below the data root that those below `own.folder` lack."""
    folder = normpath(own.folder)
    return "" if folder == "." else f"{folder}/"
