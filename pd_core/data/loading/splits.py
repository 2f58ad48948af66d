"""Splits of a data set: train, validation and test lists, few-shot samples, base and novel classes.

Images are listed by path. A path is judged as text: a link below the data root may lead anywhere,
since whoever can put one there owns the data, and data sets are often linked to where there is
room. Archives, which come from elsewhere, may have no links at all.

Every draw takes a generator, and takes its random numbers in the order of the published code, so
that one seed gives the published few-shot sample.
"""

from __future__ import annotations

import posixpath
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pd_core.core.errors import BadData, BadParams


class Protocol(StrEnum):
    """Which classes the teacher sees labels of, and how accuracy is counted."""

    BASE_TO_NOVEL = "base_to_novel"  # labels of the first half of the classes only
    CROSS_DATASET = "cross_dataset"  # no labels: the teacher is that of a source data set
    DOMAIN_GENERALISATION = "domain_generalisation"  # the same, of which this is a variant
    ALL_CLASSES = "all_classes"  # labels of every class

    @property
    def has_source(self) -> bool:
        """Whether the teacher is tuned on another data set."""
        return self in (Protocol.CROSS_DATASET, Protocol.DOMAIN_GENERALISATION)


@dataclass(frozen=True)
class Item:
    """One labelled image."""

    path: str  # below the image root, with forward slashes
    label: int  # from 0
    name: str  # class name as it goes into a prompt


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
        """Names by label: ``class_names[label]``.

        Raises:
            BadData: Labels have a gap, or one label has two names.
        """
        names: dict[int, str] = {}
        for item in (*self.train, *self.val, *self.test):
            known = names.setdefault(item.label, item.name)
            if known != item.name:
                raise BadData(
                    f"label {item.label} has two names, '{known}' and '{item.name}' "
                    f"({item.path}): give every label one name"
                )
        if sorted(names) != list(range(len(names))):
            missing = min(set(range(len(names))) - set(names))
            raise BadData(f"no image has label {missing}: labels must run from 0 without a gap")
        return tuple(names[label] for label in range(len(names)))


def base_count(num_classes: int) -> int:
    """Number of base classes: the first half of the labels, rounded up."""
    return (num_classes + 1) // 2


def base_and_novel(items: Iterable[Item], num_classes: int) -> tuple[Items, Items]:
    """Split a list into the images of base classes and those of novel ones.

    Labels stay as they are: novel ones start at ``base_count(num_classes)``, where all classes of
    the data set count.
    """
    items = tuple(items)
    first_novel = base_count(num_classes)
    return (
        tuple(item for item in items if item.label < first_novel),
        tuple(item for item in items if item.label >= first_novel),
    )


def few_shot(items: Iterable[Item], shots: int, rng: random.Random) -> Items:
    """Draw ``shots`` images of every class.

    Classes are visited in the order in which they first appear. A class with fewer images than
    ``shots`` is kept whole and takes no random number.

    Raises:
        BadParams: ``shots`` is below 1.
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

    All classes are drawn, train before validation, and only then are novel classes left out:
    a seed picks the same base images under every protocol.

    Args:
        splits: The whole data set.
        shots: Training images per class.
        val_shots: Validation images per class, at most ``shots``.
        protocol: ``BASE_TO_NOVEL`` keeps base classes only; with a source there are no labels.
        rng: Source of the draws.

    Raises:
        BadParams: No class of the train list has ``shots`` images.
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
    """Cut a validation list off a train list, class by class.

    Raises:
        BadData: A class has too few images to give one to validation.
    """
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
    """Cut one list into train, validation and test (the rest), class by class.

    Raises:
        BadData: A class has too few images to give one to each list.
    """
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
    """Images by label, labels in order of first appearance."""
    classes: dict[int, list[Item]] = {}
    for item in items:
        classes.setdefault(item.label, []).append(item)
    return classes


def check_paths_disjoint(lists: Mapping[str, Iterable[Item]]) -> None:
    """Check that no image is in two of the named lists; BadData names it and both."""
    owner: dict[str, str] = {}
    for name, items in lists.items():
        for path in dict.fromkeys(item.path for item in items):
            if path in owner:
                raise BadData(f"'{path}' is in both {owner[path]} and {name}: keep it in one")
            owner[path] = name


PICTURES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""Suffixes of pictures, in lower case."""
_SUFFIXES = tuple(PICTURES)

_PLAIN = re.compile(r"(?:\w[\w-]*/)*\w[\w.-]*")  # most paths; a hundred thousand are to be quick
# A backslash and a drive lead out on Windows only, but a list has to mean the same everywhere; a
# zero byte or half a character can be in no file's name.
_OUT = re.compile(r"^(?:/|.:)|(?:^|/)\.\.(?:/|$)|[\\\0\ud800-\udfff]", re.DOTALL)
_LOOSE = re.compile(r"(?:^|/)\.?(?:/|$)")  # a part of a path that is empty or a dot


def is_below(path: str) -> bool:
    """Whether a path with forward slashes stays in the folder that it starts from."""
    return bool(path) and not _OUT.search(path)


def clean_path(path: str) -> str | None:
    """Return a listed path without dots and doubled slashes; None if it is not below its start."""
    if _PLAIN.fullmatch(path):
        return path
    if not is_below(path):
        return None
    if _LOOSE.search(path):
        path = posixpath.normpath(path)
    return None if path == "." else path


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture; hidden files are none."""
    return not name.startswith(".") and name.lower().endswith(_SUFFIXES)
