"""Folders of the user's own images: class folders, and folders without labels."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pd_core.core.errors import BadData, MissingFile
from pd_core.core.names import listed, printable
from pd_core.data.catalog.catalogue import LISTS
from pd_core.data.catalog.fingerprint import walk
from pd_core.data.catalog.own_lists import CONVERT, Row, split_of
from pd_core.data.loading.splits import HEIC, clean_path, is_hidden, is_picture

_MAX_KINDS = 10  # suffixes in a message
_ARCHIVES = frozenset((".7z", ".gz", ".rar", ".tar", ".tgz", ".zip"))
_UNLABELLED = ("unlabelled", "unlabeled", "no label", "no_label")
_INVALID = (
    (re.compile("[\ud800-\udfff]"), "is not UTF-8"),
    (re.compile(r"\\"), r"has a backslash (\), the separator of Windows"),
    (re.compile("^.:"), "starts like a drive of Windows"),
    (re.compile(""), "leads out of the folder"),
)


def read_class_folders(path: str, root: Path, split: str) -> list[Row]:
    """Read the images of class folders; the name of a folder is the class of all images below it.

    Args:
        path: Folder of the class folders, below the data root.
        root: Data root.
        split: Split of all images.

    Raises:
        MissingFile: There is no such folder.
        BadData: A class has no readable image, a name is not portable, or the folders are on
            another level, such as those of an archive's splits.
    """
    classes = _class_folders(root / path)
    _check_splits(path, classes)
    images = {folder.name: _class_images(folder) for folder in classes}
    if len(classes) == 1:
        _check_single(path, classes[0], images[classes[0].name])
    _check_level(path, images)
    return [
        Row(f"{path}/{name}/{image}", name, split)
        for name, files in images.items()
        for image in files
    ]


def read_images(folder: Path, title: str = "folder") -> list[str]:
    """Return the sorted paths of the images below a folder, however deep.

    Args:
        folder: The folder.
        title: Title in errors.

    Raises:
        MissingFile: There is no such folder.
        BadData: It has no readable images, or a name that is not portable.
    """
    if not folder.is_dir():
        if folder.exists():
            raise BadData(f"'{folder}' is a file: give a folder of images")
        raise MissingFile(f"no folder '{folder}': put the images there")
    images = sorted(name for name, _ in walk(folder) if is_picture(name.rpartition("/")[2]))
    if not images:
        raise BadData(f"{title} '{folder}' {_content(folder)}, or remove the {title}")
    for image in images:
        _check_name(image, folder)
    return images


def nested_class(rows: Sequence[Row]) -> tuple[str, str] | None:
    """Return a class whose images are all in folders below its own, and the first, if any."""
    nested: dict[str, str] = {}
    direct = {name for path, name, _ in rows if path.rsplit("/", 2)[-2] == name}
    for path, name, _ in rows:
        if name not in direct:
            nested.setdefault(name, path.rsplit("/", 2)[-2])
    return next(iter(nested.items()), None)


def count_suffixes(folder: Path) -> Counter[str]:
    """Count the files below a folder that are no readable images, by suffix in lower case."""
    names = (entry.name for _, entry in walk(folder) if not is_picture(entry.name))
    return Counter(Path(name).suffix.lower() for name in names)


def describe(counts: Counter[str]) -> str:
    """Return counts by suffix in words, such as "28 .heic, 6 .txt"."""
    pairs = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [(count, printable(suffix) or "without suffix") for suffix, count in pairs[:_MAX_KINDS]]
    if rest := sum(count for _, count in pairs[_MAX_KINDS:]):
        shown.append((rest, "others"))
    return ", ".join(f"{count} {kind}" for count, kind in shown)


def remedy_for(counts: Counter[str]) -> str:
    """Return how to make files readable; empty if that is not known."""
    if HEIC & counts.keys():
        return CONVERT
    return "unpack archives" if _ARCHIVES & counts.keys() else ""


def _class_folders(folder: Path) -> list[Path]:
    """Return the class folders in a folder, sorted."""
    if not folder.is_dir():
        if folder.exists():
            raise BadData(
                f"'{folder}' is neither a folder nor a list: give a folder of class folders, or a "
                f"list ({', '.join(LISTS)})"
            )
        raise MissingFile(
            f"no folder '{folder}': put one folder of images for each class there, or set "
            "PD_DATA_ROOT to the folder that holds it"
        )
    classes = _subfolders(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stray = [file for file in files if is_picture(file.name)]
    if stray and not classes:
        raise BadData(
            f"'{folder}' has images and no class folders: give the folder above it, with one "
            "folder for each class"
        )
    if stray:
        raise BadData(
            f"'{printable(str(stray[0]))}' is in no class folder: an image's class is the name of "
            "its folder"
        )
    return classes


def _class_images(folder: Path) -> list[str]:
    _check_name(folder.name, folder.parent)
    if any(unicodedata.category(character) == "Cc" for character in folder.name):
        raise BadData(f"class folder '{printable(str(folder))}' has a control character: rename it")
    return read_images(folder, "class folder")


def _content(folder: Path) -> str:
    """Return what a folder without readable images has, and the remedy."""
    counts = count_suffixes(folder)
    if not counts:
        return "has no images: add some"
    remedy = remedy_for(counts) or "convert them, or add images"
    return f"has no image that can be read, but {describe(counts)}: {remedy}"


def _check_name(path: str, folder: Path) -> None:
    """Refuse names that stages, or other systems, read as other ones."""
    if clean_path(path) != path:
        reason = next(reason for pattern, reason in _INVALID if pattern.search(path))
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")  # \xe9, not \udce9
        raise BadData(
            f"the name '{printable(shown)}' in '{printable(str(folder))}' {reason}: rename it"
        )


def _folders(images: Sequence[str]) -> list[str]:
    """Return the folders directly below a class folder."""
    return list(dict.fromkeys(image.partition("/")[0] for image in images if "/" in image))


def _has_own(images: Sequence[str]) -> bool:
    """Return True if some images are directly in their class folder."""
    return any("/" not in image for image in images)


def _check_splits(path: str, classes: Sequence[Path]) -> None:
    """Refuse folders of splits, or of images without labels, in place of class folders."""
    splits = {split: folder for folder in classes if (split := split_of(folder.name))}
    names = [folder.name for folder in classes if split_of(folder.name)]
    if len(names) > 1:
        remedy = "a list with the columns path, label and split"
        if any(map(_subfolders, splits.values())):
            remedy = f"labelled: {path}/{splits['train'].name if 'train' in splits else names[0]}"
            remedy += f" and test: {path}/{splits['test'].name}" if "test" in splits else ""
        raise BadData(
            f"'{path}' has the folders {listed(names)}, which are splits and no classes: "
            f"give {remedy}"
        )
    if unlabelled := [folder.name for folder in classes if folder.name.lower() in _UNLABELLED]:
        raise BadData(
            f"'{path}/{unlabelled[0]}' is no class by its name: move it out of '{path}' and give "
            "it as unlabelled"
        )


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _check_level(path: str, images: Mapping[str, Sequence[str]]) -> None:
    """Refuse class folders that have splits, are in each other, or are deeper than others."""
    for name, files in images.items():
        folders = _folders(files)
        held_out = [folder for folder in folders if split_of(folder) in ("val", "test")]
        if held_out:
            raise BadData(
                f"class folder '{path}/{name}' has the split '{held_out[0]}': put the class "
                "folders of each split into a folder of their own, or give a list with the column "
                "split"
            )
        if others := [folder for folder in folders if folder in images and folder != name]:
            raise BadData(
                f"class folder '{path}/{name}' has a folder '{others[0]}', which is the name of "
                "another class: move it up, or rename it"
            )
        is_deeper = len(folders) == 1 and folders != [name] and not _has_own(files)
        if is_deeper and any(map(_has_own, images.values())):
            raise BadData(
                f"class folder '{path}/{name}' has no images but the folder '{folders[0]}': move "
                "the class folder up, or its images"
            )


def _check_single(path: str, folder: Path, images: Sequence[str]) -> None:
    """Refuse a single class folder that has no images but folders of them."""
    if not _has_own(images):
        below = f"{path}/{folder.name}"
        _check_splits(below, _subfolders(folder))
        raise BadData(
            f"'{path}' has one folder, '{folder.name}', with the folders "
            f"{listed(_folders(images)[:3])}: if those are classes, give '{below}'; if not, add a "
            "folder for another class"
        )
