"""Which listed pictures are where their list says: folders missing, renamed, empty; links."""

from __future__ import annotations

import difflib
import os
import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pd_core.data.loading.splits import is_picture

_MOST_LINES = 10  # of one kind; more are one line


@dataclass
class Presence:
    """What was found of a list of pictures.

    Attributes:
        files: Paths that are regular files, in the order listed.
        real: Of pictures that are links: the path that they lead to, below the image folder.
        problems: One line each.
    """

    files: list[str] = field(default_factory=list)
    real: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def find(root: Path, class_of: Mapping[str, str]) -> Presence:
    """Look for pictures, folder by folder: a million are too many to ask for one by one.

    The data root, the image folder and folders below may be links; a picture may be a link to a
    file of its own folder or of the image folder.

    Args:
        root: The image folder.
        class_of: Class name of every picture, by its path (forward slashes, normalised).
    """
    wanted: dict[str, list[str]] = defaultdict(list)
    for path in class_of:
        folder, _, name = path.rpartition("/")
        wanted[folder].append(name)
    found = Presence()
    absent: dict[str, list[str]] = {}
    for folder, names in wanted.items():
        entries = _entries(root / folder)
        if entries is None:
            absent[folder] = names
            continue
        there = [name for name in names if name in entries]
        if len(there) < len(names):
            gone = [name for name in names if name not in entries]
            what = _title(folder, {class_of[_join(folder, name)] for name in names})
            found.problems.append(_missing(what, folder, gone, len(names), empty=not entries))
        for name in there:
            _look_at(root, _join(folder, name), entries[name], found)
    found.problems += _absent_folders(root, absent, class_of)
    return found


def compare_folders(
    root: Path, part: str, known: Sequence[str], *, num_classes: int, ignored: Collection[str] = ()
) -> list[str]:
    """Compare the class folders that are there with those that belong there.

    Args:
        root: The image folder.
        part: What holds the class folders, below it; empty if it does so itself.
        known: Names of class folders that may be there.
        num_classes: How many of them have to be there.
        ignored: Folders that are no classes.

    Returns:
        One line for each that is missing, renamed, empty or unknown.
    """
    folder = root / part
    entries = (_entries(folder) or {}).values()
    there = {
        entry.name: _has_pictures(Path(entry.path))
        for entry in entries
        if not entry.name.startswith(".") and entry.name not in ignored and entry.is_dir()
    }
    missing = [name for name in known if name not in there]
    found = sum(full for name, full in there.items() if name in known)
    counts = f"expected {num_classes} class folders with pictures, found {found}"
    problems = []
    for name in sorted(name for name, full in there.items() if full and name not in known):
        close = difflib.get_close_matches(name, missing, n=1)
        was = close[0] if close else missing[0] if len(missing) == 1 else ""
        if was:
            missing.remove(was)
            problems.append(f"{_renamed(_join(part, was), _join(part, name))}: {counts}")
        else:
            problems.append(f"class folder '{_join(part, name)}' is unknown: rename or remove it")
    for name in known:
        if not there.get(name, True):
            problems.append(f"class folder '{_join(part, name)}' has no pictures: {counts}")
    if len(known) == num_classes:
        problems += _summed(
            [f"class folder '{_join(part, name)}' is missing" for name in missing], counts
        )
    return problems


def _summed(lines: list[str], counts: str) -> list[str]:
    """Put counts after every line, or all lines into one if they are many."""
    if len(lines) > _MOST_LINES:
        lines = [f"{lines[0]}, and so are {len(lines) - 1} more"]
    return [f"{line}: {counts}" for line in lines]


def _has_pictures(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_picture(entry.name) for entry in entries)


def _renamed(was: str, now: str) -> str:
    return f"class folder '{was}' is missing (is '{now}' it, renamed?)"


def _entries(folder: Path) -> dict[str, os.DirEntry[str]] | None:
    """Return what a folder holds, by name; None if it is none."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return None


def _look_at(root: Path, path: str, entry: os.DirEntry[str], found: Presence) -> None:
    if entry.is_symlink():
        target = Path(entry.path).resolve()
        homes = (root.resolve(), Path(entry.path).parent.resolve())
        home = next((home for home in homes if target.is_relative_to(home)), None)
        if home is None:
            found.problems.append(
                f"'{path}' is a link out of the image folder, to '{target}': put the picture there"
            )
            return
        start = "" if home == homes[0] else path.rpartition("/")[0]
        found.real[path] = _join(start, target.relative_to(home).as_posix())
    if entry.is_file():
        found.files.append(path)
    elif entry.is_symlink():
        found.problems.append(f"'{path}' is a link that leads to no file: put the picture there")
    else:
        found.problems.append(f"'{path}' is a folder or a device, not a picture: replace it")


def _missing(what: str, folder: str, gone: list[str], expected: int, *, empty: bool) -> str:
    counts = f"expected {expected} pictures, found {expected - len(gone)}"
    if empty:
        return f"{what} is empty: {counts}"
    first = _join(folder, gone[0])
    if len(gone) == 1:
        return f"picture '{first}' of {what} is missing: {counts}"
    return f"{len(gone)} pictures of {what} are missing, the first is '{first}': {counts}"


def _absent_folders(
    root: Path, absent: Mapping[str, list[str]], class_of: Mapping[str, str]
) -> list[str]:
    """Say which folders are missing; those in a missing folder count with it."""
    pictures: dict[str, list[str]] = defaultdict(list)
    for folder, names in absent.items():
        pictures[_topmost_missing(root, folder)] += [_join(folder, name) for name in names]
    known = _with_parents(path.rpartition("/")[0] for path in class_of)
    problems = []
    tops = list(pictures)
    for top in tops[:_MOST_LINES]:
        what = _title(top, {class_of[path] for path in pictures[top]})
        guess = _guess(root, top, known)
        counts = f"expected {len(pictures[top])} pictures, found 0"
        problems.append(f"{what} is missing{guess}: {counts}")
    if len(tops) > _MOST_LINES:
        lost = sum(len(pictures[top]) for top in tops[_MOST_LINES:])
        problems.append(
            f"{len(tops) - _MOST_LINES} more folders are missing, the first is "
            f"'{tops[_MOST_LINES]}': expected {lost} pictures, found 0"
        )
    return problems


def _topmost_missing(root: Path, folder: str) -> str:
    parent = folder.rpartition("/")[0]
    while parent and not (root / parent).is_dir():
        folder, parent = parent, parent.rpartition("/")[0]
    return folder


def _guess(root: Path, folder: str, known: set[str]) -> str:
    """Name the folder that a missing one may have become: alike, or the only other of pictures."""
    parent, _, name = folder.rpartition("/")
    entries = _entries(root / parent) or {}
    strangers = sorted(
        entry.name
        for entry in entries.values()
        if not entry.name.startswith(".")
        and _join(parent, entry.name) not in known
        and entry.is_dir()
    )
    close = difflib.get_close_matches(name, strangers, n=1)
    if not close and len(strangers) == 1:
        close = [name for name in strangers if _has_pictures(root / parent / name)]
    return f" (is '{_join(parent, close[0])}' it, renamed?)" if close else ""


def _with_parents(folders: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for folder in folders:
        while folder and folder not in found:
            found.add(folder)
            folder = posixpath.dirname(folder)
    return found


def _title(folder: str, classes: set[str]) -> str:
    if not folder:
        return "the image folder"
    return f"class folder '{folder}'" if len(classes) == 1 else f"folder '{folder}'"


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
