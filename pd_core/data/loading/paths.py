"""Lists of paths in one buffer.

A tuple of strings takes about 100 bytes of objects a path. A process that reads them writes their
reference counts, so that every worker that decodes images would end with a copy of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import overload

import numpy as np


class PathList(Sequence[str]):
    """An immutable list of paths without a Python object for each; its slices are tuples."""

    def __init__(self, paths: Sequence[str]) -> None:
        """Copy paths."""
        text = "".join(paths)
        self._data = _encoded(text)
        self._bounds = np.zeros(len(paths) + 1, np.int64)  # of the paths in the data
        lengths = map(len, paths if text.isascii() else map(_encoded, paths))
        np.cumsum(np.fromiter(lengths, np.int64, len(paths)), out=self._bounds[1:])

    @classmethod
    def of(cls, paths: Iterable[str]) -> PathList:
        """Return a list of the paths; the same one if it is one already."""
        return paths if isinstance(paths, PathList) else cls(tuple(paths))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the paths and their order, in hexadecimal."""
        return hashlib.sha256(self._bounds.tobytes() + self._data).hexdigest()

    def __len__(self) -> int:
        """Return the number of paths."""
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        """Return a path, or a tuple of some."""
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return tuple(map(self.__getitem__, chosen))
        return _decoded(self._data[self._bounds[chosen] : self._bounds[chosen + 1]])

    def __iter__(self) -> Iterator[str]:
        """Yield the paths in order."""
        return (_decoded(self._data[start:end]) for start, end in pairwise(self._bounds))

    def __eq__(self, other: object) -> bool:
        """Return True for a list of the same paths in the same order."""
        return isinstance(other, PathList) and self.digest == other.digest

    def __hash__(self) -> int:
        """Hash the paths."""
        return hash(self.digest)


# Lists may hold anything that JSON can, such as half a character, which no file is named by.
def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
