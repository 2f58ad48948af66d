"""Image files that are named by paths, folders, patterns and lists."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pd_core.core.errors import missing
from pd_core.data.loading.splits import is_hidden, is_picture

STDIN = "-"


class ImageFiles:
    """Paths of image files; folders and lists are read while the paths are iterated.

    A folder stands for the images below it, in sorted order, a pattern such as `photos/**/*.jpg`
    for the paths that match. A path that does not exist is yielded as it is, so that it is
    reported where it is opened.

    Attributes:
        left_out: number of files below folders without an image's suffix, by suffix.
    """

    def __init__(self, given: Iterable[str], lists: Iterable[str] = ()) -> None:
        """Name the files.

        Args:
            given: files, folders and patterns; `-` for the lines of standard input.
            lists: files with one of these in each line.

        Raises:
            MissingFile: a list does not exist.
        """
        self._given = tuple(given)
        self._lists = tuple(lists)
        self.left_out: Counter[str] = Counter()
        for name in self._lists:
            if name != STDIN and not Path(name).is_file():
                raise missing("list of images", name, "check the path")

    def __iter__(self) -> Iterator[str]:
        """Yield the paths."""
        for path in self._given:
            for line in _lines(path) if path == STDIN else [path]:
                yield from self._files(line)
        for name in self._lists:
            for line in _lines(name):
                yield from self._files(line)

    def _files(self, path: str) -> Iterator[str]:
        """Yield the files that a path stands for; a name with brackets may be a file's own."""
        matches = [] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True))  # noqa: PTH207
        for match in matches or [path]:
            if os.path.isdir(match):  # noqa: PTH112  Path's methods raise for a name too long
                yield from self._below(match)
            else:
                yield match

    def _below(self, top: str) -> Iterator[str]:
        """Yield the images below a folder, and the folders that cannot be read."""
        unreadable: list[str] = []
        visited = set()  # links may lead to a folder above
        for folder, folders, names in os.walk(
            top, followlinks=True, onerror=lambda error: unreadable.append(error.filename)
        ):
            info = Path(folder).stat()
            if (info.st_dev, info.st_ino) in visited:
                folders.clear()
                continue
            visited.add((info.st_dev, info.st_ino))
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            for name in sorted(name for name in names if not is_hidden(name)):
                if is_picture(name):
                    yield os.path.join(folder, name)  # noqa: PTH118  paths stay as they were given
                else:
                    self.left_out[Path(name).suffix.lower() or "no suffix"] += 1
        yield from unreadable


def _lines(name: str) -> Iterator[str]:
    """Yield the lines of a list that are not empty; bytes that are not UTF-8 are kept."""
    descriptor = sys.stdin.fileno() if name == STDIN else name
    with open(  # noqa: PTH123  a descriptor is no path
        descriptor, encoding="utf-8-sig", errors="surrogateescape", closefd=name != STDIN
    ) as lines:
        for line in lines:
            if path := line.rstrip("\r\n"):
                yield path
