"""Data sets in class folders: which folders belong there, and which pictures they hold."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pd_core.data.catalogue import DatasetSpec, Layout
from pd_core.data.paths import is_picture
from pd_core.data.splits import Item, Items
from pd_core.errors import BadData


def class_folders(spec: DatasetSpec) -> tuple[str, ...]:
    """Return the class folders of the whole data set, in the order of labels.

    Returns:
        Paths below the image root; none if pictures lie otherwise or the folders are not known.
    """
    match spec.layout:
        case Layout.CLASS_FOLDERS | Layout.SUN397:
            return tuple(sorted(_known().get(spec.name, ())))
        case Layout.UCF101:
            return tuple(in_words(action) for action in _known()["ucf101"])
        case Layout.IMAGENET:
            return tuple(f"{part}/{wnid}" for part in spec.parts for wnid in imagenet_names())
        case Layout.IMAGENET_TEST:
            return tuple(_known().get(spec.name, imagenet_names()))
        case Layout.IMAGENET_NUMBERED:
            return tuple(str(label) for label in range(len(imagenet_names())))
        case _:
            return ()


def imagenet_names() -> Mapping[str, str]:
    """Return CLIP's name of each ImageNet class by WordNet id, in the order of labels."""
    names: dict[str, str] = _known()["imagenet"]
    return names


def in_words(action: str) -> str:
    """Return the class folder of one of UCF101's actions: `ApplyLipstick` is `Apply_Lipstick`."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))


def listing(
    folder: Path, known: Sequence[str], *, num_classes: int, ignored: Collection[str] = ()
) -> dict[str, list[str]]:
    """List a folder of class folders; pictures are not looked at.

    Hidden files, and those that are no pictures by their suffix, are left out, as are unknown
    folders without pictures.

    Args:
        folder: What holds the class folders.
        known: Folders that may be there, in the order of labels; none for any, in sorted order.
        num_classes: How many have to be there.
        ignored: Folders that are no classes.

    Returns:
        The sorted names of the pictures by class folder, in the order of labels.

    Raises:
        BadData: A folder is unknown, missing or empty; the message says which.
    """
    found = {name: _pictures(folder / name) for name in _folders(folder) if name not in ignored}
    if known:
        _refuse_unknown(folder, [name for name in found if found[name]], known)
    classes = [name for name in known or sorted(found) if name in found]
    if len(classes) != num_classes:
        missing = [name for name in known if name not in found]
        raise BadData(
            f"expected {num_classes} class folders in '{folder}', found {len(classes)}"
            f"{f', without {_few(missing)}' if missing else ''}: restore the data set"
        )
    empty = [name for name in classes if not found[name]]
    if empty:
        raise BadData(f"no pictures in '{folder}' of class {_few(empty)}: restore them")
    return {name: found[name] for name in classes}


def labelled(
    pictures: Mapping[str, Sequence[str]], names: Mapping[str, str], prefix: str = ""
) -> Items:
    """Label pictures by the number of their class folder.

    Args:
        pictures: What `listing` returned.
        names: Class names by folder.
        prefix: What paths start with, before the class folder.

    Raises:
        BadData: A class has no name.
    """
    nameless = [folder for folder in pictures if folder not in names]
    if nameless:
        raise BadData(f"class folder {_few(nameless)} has no name: download the names again")
    return tuple(
        Item(f"{prefix}{folder}/{picture}", label, names[folder])
        for label, folder in enumerate(pictures)
        for picture in pictures[folder]
    )


def _refuse_unknown(folder: Path, found: Collection[str], known: Collection[str]) -> None:
    unknown = sorted(set(found) - set(known))
    if not unknown:
        return
    missing = [name for name in known if name not in found]
    nearest = difflib.get_close_matches(unknown[0], missing, n=1, cutoff=0)
    remedy = f"'{nearest[0]}' is missing, rename it" if nearest else "remove it"
    others = f", one of {len(unknown)}," if len(unknown) > 1 else ""
    raise BadData(f"class folder '{unknown[0]}' in '{folder}'{others} is unknown: {remedy}")


def _few(names: Sequence[str]) -> str:
    """Name the first of them, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.name[0] != "." and entry.is_dir()]
    except OSError as error:
        raise BadData(f"'{folder}' cannot be listed ({error.strerror}): restore it") from None


def _pictures(folder: Path) -> list[str]:
    """Return the names of a folder's pictures, sorted; a million of them, so by suffix alone."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 objects of a million names take seconds
    except OSError as error:
        raise BadData(f"'{folder}' cannot be listed ({error.strerror}): restore it") from None
    return sorted(filter(is_picture, names))


@cache
def _known() -> dict[str, Any]:
    """Return class folders by data set; of ImageNet, names by folder."""
    file = Path(__file__).with_name("class_names.json")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
