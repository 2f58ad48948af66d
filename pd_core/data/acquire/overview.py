"""Overview of the user's own images, to look at before any training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rich.cells import cell_len

from pd_core.core.names import printable
from pd_core.data.catalog.catalogue import OwnImages
from pd_core.data.catalog.own import left_out, own_unlabelled, read_own
from pd_core.data.loading.splits import Splits

EXAMPLES = 6
"""Images of a class on the contact sheet."""


@dataclass(frozen=True)
class ClassOverview:
    """A class: its name, number of images in each list, and paths of a few of them."""

    name: str
    train: int
    val: int
    test: int
    examples: tuple[str, ...]

    def line(self, number: int, width: int) -> str:
        """Return a line of the table, whose names have a width in a terminal's cells."""
        name = printable(self.name)
        name += " " * (width - cell_len(name))
        counts = f"{self.train:5}  {self.val:5}  {self.test:5}"
        return f"  {number:4}  {name}  {counts}  {printable(self.examples[0])}"


@dataclass(frozen=True)
class Overview:
    """Classes and lists of a data set.

    Attributes:
        classes: By label.
        unlabelled: Number of unlabelled images.
        unlabelled_examples: Paths of a few of them.
        left_out: Number of files that are not read, by suffix.
    """

    classes: tuple[ClassOverview, ...]
    unlabelled: int
    unlabelled_examples: tuple[str, ...]
    left_out: Mapping[str, int]

    @classmethod
    def read(cls, own: OwnImages, root: Path) -> Self:
        """Read the lists below the data root; raises as `read_own` and `own_unlabelled`."""
        return cls.of(read_own(own, root), own_unlabelled(own, root), left_out(own, root))

    @classmethod
    def of(cls, splits: Splits, unlabelled: Sequence[str], left_out: Mapping[str, int]) -> Self:
        """Summarise lists that were read."""
        paths: list[list[str]] = [[] for _ in splits.class_names]
        for item in (*splits.train, *splits.val, *splits.test):
            paths[item.label].append(item.path)
        train, val, test = (
            Counter(item.label for item in items)
            for items in (splits.train, splits.val, splits.test)
        )
        classes = (
            ClassOverview(name, train[label], val[label], test[label], _spread(paths[label]))
            for label, name in enumerate(splits.class_names)
        )
        return cls(tuple(classes), len(unlabelled), _spread(unlabelled), dict(left_out))

    def lines(self) -> list[str]:
        """Return a table of the classes, and a line about the unlabelled images."""
        width = max(5, *(cell_len(printable(row.name)) for row in self.classes))
        lines = [f"  {'':4}  {'class':{width}}  train    val   test  example"]
        lines += [row.line(number, width) for number, row in enumerate(self.classes, start=1)]
        example = f", such as {printable(self.unlabelled_examples[0])}" if self.unlabelled else ""
        return [*lines, f"  {self.unlabelled} unlabelled images{example}"]


def _spread(paths: Sequence[str]) -> tuple[str, ...]:
    """Return a few paths from all over a list: neighbours are often photos of the same thing."""
    count = min(EXAMPLES, len(paths))
    return tuple(paths[number * len(paths) // count] for number in range(count))
