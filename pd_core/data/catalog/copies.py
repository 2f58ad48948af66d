"""Copies among the user's own images: files with the same content, whatever their paths."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path

from pd_core.core.errors import BadData
from pd_core.data.loading.splits import Splits

_THREADS = 8  # hashing and reading release the lock
_CHUNK = 64  # files a thread takes at a time

_NOT_NEW = "the accuracy on them is not that on new images, remove them from one of the lists"
_LEFT_OUT = "they are left out of the unlabelled list"
_TWICE = "each counts several times"
_CONSEQUENCES = {
    ("train", "validation"): _NOT_NEW,
    ("train", "test"): _NOT_NEW,
    ("validation", "test"): _NOT_NEW,
    ("validation", "unlabelled"): _LEFT_OUT,
    ("test", "unlabelled"): _LEFT_OUT,
    ("train", "unlabelled"): _TWICE,
    ("train", "train"): _TWICE,
    ("validation", "validation"): _TWICE,
    ("test", "test"): _TWICE,
    ("unlabelled", "unlabelled"): _TWICE,
}
"""Consequences of copies of images of the first list in the second, or of its own."""


@dataclass(frozen=True)
class Copies:
    """Images with the same content.

    Attributes:
        groups: Sorted paths of each content that more than one file has.
        list_of: Title of the list of each image in a group, by path.
        label_of: Class name of each labelled image in a group, by path.
    """

    groups: tuple[tuple[str, ...], ...] = ()
    list_of: Mapping[str, str] = field(default_factory=dict)
    label_of: Mapping[str, str] = field(default_factory=dict)

    def conflicts(self) -> list[str]:
        """Return a line for each image with two labels."""
        lines = []
        for group in self.groups:
            first: dict[str, str] = {}
            for path in group:
                if path in self.label_of:
                    first.setdefault(self.label_of[path], path)
            if len(first) > 1:
                places = " and ".join(f"'{path}' of class '{name}'" for name, path in first.items())
                lines.append(f"{places} are the same image: keep the one with the right label")
        return lines

    def check(self) -> None:
        """Raise BadData if an image has two labels."""
        if lines := self.conflicts():
            more = f" ({len(lines)} images have two labels)" if len(lines) > 1 else ""
            raise BadData(lines[0] + more)

    def notes(self) -> list[str]:
        """Return a line for each pair of lists, or list, with several copies of an image."""
        pairs: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
        for group in self.groups:
            members = defaultdict(list)
            for path in group:
                members[self.list_of[path]].append(path)
            for first, second in _CONSEQUENCES:
                originals, copies = members[first], members[second]
                if first == second:
                    copies = copies[1:]
                pairs[first, second] += [(path, originals[0]) for path in copies if originals]
        return [
            f"copies of {first} images among the {second} images: {len(paths)}, the first is "
            f"'{paths[0][0]}' of '{paths[0][1]}'; {_CONSEQUENCES[first, second]}"
            for (first, second), paths in pairs.items()
            if paths
        ]

    def of(self, paths: Collection[str]) -> set[str]:
        """Return the images with the content of one of the given images."""
        return set(chain(*(group for group in self.groups if not set(group).isdisjoint(paths))))


def find_copies(splits: Splits, unlabelled: Iterable[str], root: Path) -> Copies:
    """Find the copies in the lists of a data set; paths are below the folder `root`."""
    labelled = {
        item.path: (title, item.name) for title, items in splits.lists.items() for item in items
    }
    paths = dict.fromkeys((*labelled, *unlabelled))
    groups = same_content(paths, root)
    inside = list(chain(*groups))
    return Copies(
        groups,
        {path: labelled[path][0] if path in labelled else "unlabelled" for path in inside},
        {path: labelled[path][1] for path in inside if path in labelled},
    )


def same_content(paths: Iterable[str], root: Path) -> tuple[tuple[str, ...], ...]:
    """Group files by content; files with a content of their own are left out.

    Only files with the size of another are read. Empty and unreadable files are left out: they are
    no images.
    """
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in sorted(paths):
        by_size[_size(root / path)].append(path)
    read = [path for size, group in by_size.items() if size and len(group) > 1 for path in group]
    by_content: dict[bytes, list[str]] = defaultdict(list)
    with ThreadPool(_THREADS) as pool:
        digests = pool.imap(_digest, [root / path for path in read], chunksize=_CHUNK)
        for path, digest in zip(read, digests, strict=True):
            by_content[digest].append(path)
    by_content.pop(b"", None)
    return tuple(tuple(group) for group in by_content.values() if len(group) > 1)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _digest(file: Path) -> bytes:
    """Return the SHA-256 of a file's content; empty if it cannot be read."""
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").digest()
    except OSError:
        return b""
