"""Labels of unlabelled images that were added to a data set of the user's own."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from pd_core.core.artifacts import file_hash
from pd_core.core.errors import BadData, unknown
from pd_core.data.catalog.catalogue import OwnImages
from pd_core.data.catalog.class_names import normalized
from pd_core.data.catalog.copies import Copies
from pd_core.data.catalog.own_lists import Row, read_list
from pd_core.data.loading.splits import Item, Items, Splits


def added_rows(own: OwnImages, root: Path) -> list[Row]:
    """Read the labels that were added; none if there are none yet.

    Raises:
        MissingFile: The list, or a listed image, is missing.
        BadData: The list is not the one that was added.
    """
    if own.added is None:
        return []
    file, remedy = Path(own.added.path), "restore it, or run `promptkd data label` again"
    if file_hash(file, what="list of added labels", remedy=remedy) != own.added.sha256:
        raise BadData(f"'{file}' is not the list whose SHA-256 is in prepare.own.added; {remedy}")
    return read_list(file, "train", root / own.folder).rows


def added_items(
    rows: Iterable[Row], splits: Splits, unlabelled: Collection[str], copies: Copies
) -> Items:
    """Return the images of added labels, each once, without those that the splits have as well.

    Args:
        rows: Labels; paths are below the folder of the images.
        splits: The other labelled images.
        unlabelled: Paths of the unlabelled images.
        copies: Copies among all images.

    Raises:
        UnknownName: A class is none of the data set's.
        BadData: An image is for validation or test, or a copy of such a one, has two labels, or is
            none of the data set's.
    """
    names = splits.class_names
    held_out = {item.path for item in (*splits.val, *splits.test)}
    held_out |= copies.of(held_out)
    train = {item.path: item.name for item in splits.train}
    label_of = dict(train)
    for path, label, split in rows:
        name = normalized(label)
        if name not in names:
            raise unknown(f"class of '{path}':", name, names)
        if path in held_out or split != "train":
            raise BadData(
                f"'{path}' is an image for validation or test, or a copy of one: no model may be"
                " trained on its label; remove the row"
            )
        if path not in train and path not in unlabelled:
            raise BadData(
                f"'{path}' is no unlabelled image of the data set: correct the path, or remove the"
                " row"
            )
        if label_of.setdefault(path, name) != name:
            raise BadData(f"'{path}' is of class '{label_of[path]}' and of '{name}': give it one")
    added = {path: name for path, name in label_of.items() if path not in train}
    inside = {path: name for path, name in added.items() if path in copies.list_of}
    replace(copies, label_of={**copies.label_of, **inside}).check()
    return tuple(Item(path, names.index(name), name) for path, name in added.items())
