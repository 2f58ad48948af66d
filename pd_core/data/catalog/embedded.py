"""The eleven embedded data sets and variants of one of them, rendered from installed fonts."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pd_core.core.errors import unknown
from pd_core.core.hooks import OnProgress
from pd_core.data.catalog.glyphs import (
    HELD_OUT_FONTS,
    MASTER_SIZE,
    character_name,
    characters,
    has_ink,
    render,
)
from pd_core.data.catalog.styles import (
    Pose,
    Style,
    blueprint,
    chalk,
    embossed,
    embroidery,
    faded_photo,
    halftone,
    neon,
    outline,
    pose_ink,
    road_sign,
    scratchboard,
)
from pd_core.data.loading.splits import Item, Splits

PREFIX = "embedded_"
MAX_CLASSES = 48
IMAGES_PER_CLASS = {"train": 24, "val": 8, "test": 24}
HANDWRITTEN_PER_CLASS = {"train": 90, "val": 20, "test": 60}
ARCHIVE = "images.zip"

# A fixed time stamp, the earliest that the zip format can hold: archives must not differ by age.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Domain:
    """Embedded data set: its characters, and their rendering."""

    title: str
    blocks: tuple[tuple[int, int], ...]  # inclusive ranges of code points
    style: Style
    pose: Pose = Pose()
    without: str = ""  # characters that differ from another of the domain in size alone
    source: str = ""  # domain that this one is a variant of: the same classes, another style

    @property
    def handwritten(self) -> bool:
        """True if the images are scikit-learn's digits rather than rendered characters."""
        return not self.blocks


DOMAINS: dict[str, Domain] = {
    "embedded_digits": Domain("Handwritten digits, chalk", (), chalk),
    "embedded_latin": Domain(
        "Latin letters, faded photo", ((0x41, 0x5A), (0x61, 0x7A)), faded_photo,
        without="coksvwxz",
    ),
    "embedded_greek": Domain(
        "Greek letters, neon", ((0x391, 0x3A9), (0x3B1, 0x3C9)), neon, without="\u03bf",
    ),
    "embedded_cyrillic": Domain(
        "Cyrillic letters, scratchboard", ((0x400, 0x42F),), scratchboard,
    ),
    "embedded_arrows": Domain(
        "Arrows, road sign", ((0x2190, 0x21FF),), road_sign, Pose(rotation=6),
    ),
    "embedded_operators": Domain(
        "Mathematical operators, newspaper", ((0x2200, 0x22FF),), halftone,
    ),
    "embedded_shapes": Domain(
        "Box and geometric shapes, scratchboard", ((0x2500, 0x25FF),), scratchboard,
        Pose(rotation=5, aspect=0.05),
    ),
    "embedded_games": Domain(
        "Cards, dominoes and chess, blueprint",
        ((0x1F030, 0x1F093), (0x1F0A0, 0x1F0DF), (0x2654, 0x265F)), blueprint,
        Pose(rotation=3, scale=(1.15, 1.3), aspect=0.05, shear=0.04, shift=0.03),
    ),
    "embedded_braille": Domain(
        "Braille, embossed", ((0x2801, 0x283F),), embossed,
        Pose(rotation=4, scale=(0.95, 1.1), shift=0.03),
    ),
    "embedded_scripts": Domain(
        "Armenian, Georgian and Hebrew letters, embroidery",
        ((0x531, 0x586), (0x5D0, 0x5EA), (0x10D0, 0x10F6)), embroidery, Pose(scale=(1.1, 1.3)),
    ),
    "embedded_symbols": Domain(
        "Miscellaneous symbols, outline drawing", ((0x2600, 0x26FF),), outline,
    ),
}  # fmt: skip


def _variant(look: str, style: Style) -> Domain:
    """Return a variant of the symbols, like ImageNet's variants."""
    symbols = DOMAINS["embedded_symbols"]
    return replace(
        symbols, title=f"Miscellaneous symbols, {look}", style=style, source="embedded_symbols"
    )


VARIANTS: dict[str, Domain] = {
    "embedded_symbols_chalk": _variant("chalk", chalk),
    "embedded_symbols_embroidery": _variant("embroidery", embroidery),
    "embedded_symbols_neon": _variant("neon", neon),
    "embedded_symbols_photo": _variant("faded photo", faded_photo),
}
"""Domains for domain generalisation; not among the eleven of the benchmark."""


def domain(name: str) -> Domain:
    """Return an embedded data set; UnknownName if there is none."""
    domains = {**DOMAINS, **VARIANTS}
    if name not in domains:
        raise unknown("embedded data set", name, domains)
    return domains[name]


@cache
def class_characters(name: str) -> tuple[str, ...]:
    """Return a domain's characters in label order.

    The order is shuffled, with the name as the seed, so that base and novel halves are alike. A
    variant has the order of its source.
    """
    row = domain(name)
    if row.source:
        return class_characters(row.source)
    rng = random.Random(name)
    if row.handwritten:
        digits = list("0123456789")
        rng.shuffle(digits)
        return tuple(digits)
    drawable = frozenset().union(*(characters(font) for font in HELD_OUT_FONTS))
    chars = [chr(code) for low, high in row.blocks for code in range(low, high + 1)]
    chars = [char for char in chars if char in drawable and char not in row.without]
    rng.shuffle(chars)
    return tuple(_distinct(chars)[:MAX_CLASSES])


def class_names(name: str) -> tuple[str, ...]:
    """Return a domain's class names by label."""
    return tuple(character_name(char) for char in class_characters(name))


def _fonts(char: str) -> tuple[str, ...]:
    return tuple(font for font in HELD_OUT_FONTS if char in characters(font))


def _distinct(chars: list[str]) -> list[str]:
    """Drop characters without ink, and those with the glyph of an earlier one."""
    seen: set[bytes] = set()
    kept = []
    for char in chars:
        masters = [render(char, font) for font in _fonts(char)]
        looks = {master.tobytes() for master in masters}
        if all(has_ink(master) for master in masters) and not looks & seen:
            seen |= looks
            kept.append(char)
    return kept


def build(name: str, folder: Path, *, on_progress: OnProgress | None = None) -> Splits:
    """Write the images of a data set to `folder / ARCHIVE` and return its lists.

    The archive is deterministic: the same name gives the same bytes.

    Args:
        name: Key of `DOMAINS` or `VARIANTS`.
        folder: Existing folder.
        on_progress: Called with images written and total images.

    Raises:
        UnknownName: There is no such embedded data set.
    """
    items: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    names = class_names(name)
    per_class = HANDWRITTEN_PER_CLASS if domain(name).handwritten else IMAGES_PER_CLASS
    total = len(names) * sum(per_class.values())
    with zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_STORED) as archive:
        for done, (split, label, number, image) in enumerate(_pictures(name)):
            if on_progress is not None:
                on_progress(done, total)
            path = f"{split}/{label:03d}/{number:03d}.png"
            archive.writestr(zipfile.ZipInfo(path, _EPOCH), _png(image))
            items[split].append(Item(path, label, names[label]))
    return Splits(*(tuple(items[split]) for split in ("train", "val", "test")))


def _pictures(name: str) -> Iterator[tuple[str, int, int, NDArray[np.uint8]]]:
    """Yield (split, label, number, image (S, S, 3)) of a data set."""
    row = domain(name)
    masters = _handwriting(name) if row.handwritten else _drawings(name)
    for (split, label), stack in masters:
        rng = np.random.default_rng([ord(c) for c in f"{name}/{split}/{label}"])
        ink = pose_ink(stack, row.pose, rng)
        images = (row.style(ink, rng) * 255).round().astype(np.uint8)
        for number, image in enumerate(images):
            yield split, label, number, image


def _drawings(name: str) -> Iterator[tuple[tuple[str, int], NDArray[np.uint8]]]:
    """Yield masters (N, M, M) of each (split, label), from the fonts of the character in turn."""
    for split, count in IMAGES_PER_CLASS.items():
        for label, char in enumerate(class_characters(name)):
            fonts = _fonts(char)
            stack = [render(char, fonts[k % len(fonts)]) for k in range(count)]
            yield (split, label), np.stack(stack)


def _handwriting(name: str) -> Iterator[tuple[tuple[str, int], NDArray[np.uint8]]]:
    """Yield scikit-learn's digits of each (split, label), enlarged to the size of a master."""
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    for label, char in enumerate(class_characters(name)):
        digits = images[targets == int(char)].reshape(-1, 8, 8)
        start = 0
        for split, count in HANDWRITTEN_PER_CLASS.items():
            chosen = digits[start : start + count]
            start += count
            yield (split, label), np.stack([_enlarge(image) for image in chosen])


def _enlarge(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Scale an 8x8 image of 0..16 to a master with a margin."""
    side = MASTER_SIZE * 3 // 4
    grey = Image.fromarray((image * 255 / 16).round().astype(np.uint8))
    large = np.asarray(grey.resize((side, side), Image.Resampling.BICUBIC))
    margin = (MASTER_SIZE - side) // 2
    return np.pad(large, margin)


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
