"""Splits of a data set: train, validation and test lists, few-shot samples, base and novel classes.

Paths are checked as text: links below the data root may lead anywhere, since the user made them
(archives may have no links). Random numbers are drawn in the order of the published code, so that a
seed gives the published few-shot sample.
"""

from __future__ import annotations

import posixpath
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.util import find_spec

from pd_core.core.errors import BadData, BadParams


class Protocol(StrEnum):
    """Evaluation protocol: classes with labels for the teacher, and the accuracies."""

    BASE_TO_NOVEL = "base_to_novel"  # labels of the first half of the classes only
    CROSS_DATASET = "cross_dataset"  # no labels: the teacher is that of a source data set
    DOMAIN_GENERALISATION = "domain_generalisation"  # the same, of which this is a variant
    ALL_CLASSES = "all_classes"  # labels of every class

    @property
    def has_source(self) -> bool:
        """True if the teacher is tuned on another data set."""
        return self in (Protocol.CROSS_DATASET, Protocol.DOMAIN_GENERALISATION)


@dataclass(frozen=True)
class Item:
    """A labelled image."""

    path: str  # below the image root, with forward slashes
    label: int  # from 0
    name: str  # class name in prompts


Items = tuple[Item, ...]


@dataclass(frozen=True)
class Splits:
    """The three lists of a data set."""

    train: Items
    val: Items
    test: Items

    @property
    def lists(self) -> dict[str, Items]:
        """The lists by their titles."""
        return {"train": self.train, "validation": self.val, "test": self.test}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by label; BadData if labels have a gap, or a label has two names."""
        names: dict[int, str] = {}
        for item in (*self.train, *self.val, *self.test):
            name = names.setdefault(item.label, item.name)
            if name != item.name:
                raise BadData(
                    f"label {item.label} has two names, '{name}' and '{item.name}' "
                    f"({item.path}): give every label one name"
                )
        if sorted(names) != list(range(len(names))):
            missing = min(set(range(len(names))) - set(names))
            raise BadData(f"no image has label {missing}: labels must run from 0 without a gap")
        return tuple(names[label] for label in range(len(names)))


def base_count(num_classes: int) -> int:
    """Return the number of base classes: half of the labels, rounded up."""
    return (num_classes + 1) // 2


def base_and_novel(items: Iterable[Item], num_classes: int) -> tuple[Items, Items]:
    """Split a list into images of base and of novel classes; labels do not change."""
    items = tuple(items)
    first_novel = base_count(num_classes)
    return (
        tuple(item for item in items if item.label < first_novel),
        tuple(item for item in items if item.label >= first_novel),
    )


def few_shot(items: Iterable[Item], shots: int, rng: random.Random) -> Items:
    """Draw ``shots`` images of each class; BadParams if it is below 1.

    Classes are drawn in order of first appearance. A class with fewer images is taken completely,
    without a random number.
    """
    if shots < 1:
        raise BadParams(f"shots = {shots}: give at least 1")
    drawn: list[Item] = []
    for members in _by_class(items).values():
        drawn += rng.sample(members, shots) if len(members) >= shots else members
    return tuple(drawn)


def few_shot_split(
    splits: Splits, *, shots: int, val_shots: int, protocol: Protocol, rng: random.Random
) -> tuple[Items, Items]:
    """Draw the teacher's few-shot training and validation lists.

    Images are drawn for all classes before novel ones are removed, so that a seed gives the same
    base images under every protocol.

    Args:
        splits: Of the data set.
        shots: Training images per class.
        val_shots: Validation images per class, at most ``shots``.
        protocol: ``BASE_TO_NOVEL`` keeps base classes only; both lists are empty with a source.
        rng: Random number generator.

    Raises:
        BadParams: No class has ``shots`` training images.
    """
    if protocol.has_source:
        return (), ()
    largest = max((len(members) for members in _by_class(splits.train).values()), default=0)
    if shots > largest:
        raise BadParams(
            f"shots = {shots}: the largest class has {largest} train images; "
            f"give a number from 1 to {largest}"
        )
    train = few_shot(splits.train, shots, rng)
    val = few_shot(splits.val, min(shots, val_shots), rng)
    if protocol is Protocol.ALL_CLASSES:
        return train, val
    num_classes = len(splits.class_names)
    return base_and_novel(train, num_classes)[0], base_and_novel(val, num_classes)[0]


def train_val(
    items: Iterable[Item], rng: random.Random, *, val_fraction: float = 0.2
) -> tuple[Items, Items]:
    """Split a list into train and validation by class; BadData if a class has too few images."""
    train: list[Item] = []
    val: list[Item] = []
    for members in _by_class(items).values():
        count = round(len(members) * val_fraction)
        if count == 0:
            raise BadData(
                f"class '{members[0].name}' has {len(members)} images, too few to keep "
                f"{val_fraction:.0%} for validation: add images of it"
            )
        rng.shuffle(members)
        val += members[:count]
        train += members[count:]
    return tuple(train), tuple(val)


def train_val_test(
    items: Iterable[Item],
    rng: random.Random,
    *,
    train_fraction: float = 0.5,
    val_fraction: float = 0.2,
) -> Splits:
    """Split a list into train, validation and test by class; BadData if a class is too small."""
    train: list[Item] = []
    val: list[Item] = []
    test: list[Item] = []
    for members in _by_class(items).values():
        first = round(len(members) * train_fraction)
        second = first + round(len(members) * val_fraction)
        if not 0 < first < second < len(members):
            raise BadData(
                f"class '{members[0].name}' has {len(members)} images, too few for "
                "train, validation and test: add images of it"
            )
        rng.shuffle(members)
        train += members[:first]
        val += members[first:second]
        test += members[second:]
    return Splits(tuple(train), tuple(val), tuple(test))


def _by_class(items: Iterable[Item]) -> dict[int, list[Item]]:
    """Group images by label, in order of first appearance."""
    classes: dict[int, list[Item]] = {}
    for item in items:
        classes.setdefault(item.label, []).append(item)
    return classes


def check_paths_disjoint(lists: Mapping[str, Iterable[Item]]) -> None:
    """Raise BadData if an image is in two of the named lists."""
    owner: dict[str, str] = {}
    for name, items in lists.items():
        for path in dict.fromkeys(item.path for item in items):
            if path in owner:
                raise BadData(f"'{path}' is in both {owner[path]} and {name}: keep it in one")
            owner[path] = name


# fmt: off
PICTURES = frozenset((
    ".apng", ".avif", ".avifs", ".bmp", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe",
    ".jpeg", ".jpf", ".jpg", ".jpx", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif",
    ".tiff", ".webp",
))
# fmt: on
"""Suffixes of the formats that are decoded, in lower case."""

HEIC = frozenset((".heic", ".heics", ".heif", ".heifs", ".hif"))
"""Suffixes of images that are decoded only where pillow-heif is installed."""

_SYSTEM = frozenset(
    ("$RECYCLE.BIN", "@eaDir", "System Volume Information", "Thumbs.db", "__MACOSX", "desktop.ini")
)

_PLAIN = re.compile(r"(?:\w[\w-]*/)*\w[\w.-]*")  # a fast check for most paths
# Backslashes and drives matter on Windows only, but lists must mean the same everywhere; zero bytes
# and surrogates are in no file's name.
_OUT = re.compile(r"^(?:/|.:)|(?:^|/)\.\.(?:/|$)|[\\\0\ud800-\udfff]", re.DOTALL)
_LOOSE = re.compile(r"(?:^|/)\.?(?:/|$)")  # a part of a path that is empty or a dot


def is_below(path: str) -> bool:
    """Return True if a path with forward slashes stays below its folder."""
    return bool(path) and not _OUT.search(path)


def clean_path(path: str) -> str | None:
    """Return a path without dots and doubled slashes, or None if it leaves its folder."""
    if _PLAIN.fullmatch(path):
        return path
    if not is_below(path):
        return None
    if _LOOSE.search(path):
        path = posixpath.normpath(path)
    return None if path == "." else path


def is_hidden(name: str) -> bool:
    """Return True for a file or folder that is hidden, or that an operating system left."""
    return name.startswith(".") or name in _SYSTEM


def is_picture(name: str) -> bool:
    """Return True for the name of an image file that is not hidden."""
    return not name.startswith(".") and name.lower().endswith(_suffixes())


@cache
def _suffixes() -> tuple[str, ...]:
    return tuple(PICTURES | HEIC if find_spec("pillow_heif") else PICTURES)
