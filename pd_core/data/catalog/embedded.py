"""The eleven embedded data sets and variants of one of them, drawn from installed fonts."""

from __future__ import annotations

import importlib.util
import io
import random
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pd_core.core.errors import MissingFile, unknown
from pd_core.data.catalog import styles
from pd_core.data.catalog.styles import Camera, Pose
from pd_core.data.loading.splits import Item, Splits

MASTER_SIZE = 48
"""Side of a rendered master, in pixels."""

PRETRAINING_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralItalic",
)

HELD_OUT_FONTS = (
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif-BoldItalic",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
)

_FONT_SIZE = 34
_WIDEST = 44
# Marks, separators and control characters have no picture of their own.
_UNDRAWABLE = ("M", "Z", "C")


def character_name(char: str) -> str:
    """Return the official Unicode name in lower case, or ``""`` where there is none."""
    return unicodedata.name(char, "").lower()


@cache
def font_file(font: str) -> Path:
    """Return the path of one of matplotlib's TrueType files.

    Raises:
        MissingFile: matplotlib is not installed, or has no such font.
    """
    package = importlib.util.find_spec("matplotlib")
    roots = list(package.submodule_search_locations or ()) if package else []
    for root in roots:
        path = Path(root) / "mpl-data" / "fonts" / "ttf" / f"{font}.ttf"
        if path.is_file():
            return path
    raise MissingFile(
        f"font {font!r} not found among matplotlib's fonts; "
        "install the version of matplotlib that constraints.txt names"
    )


@cache
def characters(font: str) -> frozenset[str]:
    """Return the named characters that ``font`` can draw with ink of their own."""
    from fontTools.ttLib import TTFont

    with TTFont(font_file(font), lazy=True) as file:
        code_points = file.getBestCmap()
    chars = (chr(code) for code in code_points)
    return frozenset(
        char
        for char in chars
        if character_name(char) and not unicodedata.category(char).startswith(_UNDRAWABLE)
    )


@cache
def _truetype(font: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_file(font)), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def render(char: str, font: str) -> NDArray[np.uint8]:
    """Draw ``char`` centred on a square master.

    All characters of a font share one size, so that capital and small letters differ; those too
    large for the master are drawn smaller.

    Returns:
        Ink from 0 (paper) to 255, shape (``MASTER_SIZE``, ``MASTER_SIZE``).
    """
    left, top, right, bottom = _truetype(font, _FONT_SIZE).getbbox(char)
    extent = max(right - left, bottom - top, 1)
    size = min(_FONT_SIZE, int(_FONT_SIZE * _WIDEST / extent))
    face = _truetype(font, size)
    left, top, right, bottom = face.getbbox(char)
    canvas = Image.new("L", (MASTER_SIZE, MASTER_SIZE), 0)
    corner = (
        round((MASTER_SIZE - (right - left)) / 2 - left),
        round((MASTER_SIZE - (bottom - top)) / 2 - top),
    )
    ImageDraw.Draw(canvas).text(corner, char, font=face, fill=255)
    return np.asarray(canvas, dtype=np.uint8)


def has_ink(master: NDArray[np.uint8]) -> bool:
    """Tell whether a master shows anything."""
    return bool(master.max() > 64)


OnProgress = Callable[[int, int], None]

PREFIX = "embedded_"
MAX_CLASSES = 48
IMAGES_PER_CLASS = {"train": 24, "val": 8, "test": 24}
HANDWRITTEN_PER_CLASS = {"train": 90, "val": 20, "test": 60}
ARCHIVE = "images.zip"

# A fixed time stamp, the earliest that the zip format can hold: archives must not differ by age.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Domain:
    """One embedded data set: which characters, seen how."""

    title: str
    blocks: tuple[tuple[int, int], ...]  # inclusive ranges of code points
    camera: Camera
    pose: Pose = Pose()
    without: str = ""  # characters that differ from another of the domain in size alone
    source: str = ""  # the domain that this one is a variant of: the same classes, another camera

    @property
    def handwritten(self) -> bool:
        """Whether pictures are scikit-learn's digits rather than rendered characters."""
        return not self.blocks


DOMAINS: dict[str, Domain] = {
    "embedded_digits": Domain("Handwritten digits, chalk", (), styles.chalk),
    "embedded_latin": Domain(
        "Latin letters, faded photo",
        ((0x41, 0x5A), (0x61, 0x7A)),
        styles.faded_photo,
        without="coksvwxz",
    ),
    "embedded_greek": Domain(
        "Greek letters, neon",
        ((0x391, 0x3A9), (0x3B1, 0x3C9)),
        styles.neon,
        without="\u03bf",
    ),
    "embedded_cyrillic": Domain(
        "Cyrillic letters, scratchboard", ((0x400, 0x42F),), styles.scratchboard
    ),
    "embedded_arrows": Domain(
        "Arrows, road sign", ((0x2190, 0x21FF),), styles.road_sign, Pose(rotation=6)
    ),
    "embedded_operators": Domain(
        "Mathematical operators, newspaper", ((0x2200, 0x22FF),), styles.halftone
    ),
    "embedded_shapes": Domain(
        "Box and geometric shapes, scratchboard",
        ((0x2500, 0x25FF),),
        styles.scratchboard,
        Pose(rotation=5, aspect=0.05),
    ),
    "embedded_games": Domain(
        "Cards, dominoes and chess, blueprint",
        ((0x1F030, 0x1F093), (0x1F0A0, 0x1F0DF), (0x2654, 0x265F)),
        styles.blueprint,
        Pose(rotation=3, scale=(1.15, 1.3), aspect=0.05, shear=0.04, shift=0.03),
    ),
    "embedded_braille": Domain(
        "Braille, embossed",
        ((0x2801, 0x283F),),
        styles.embossed,
        Pose(rotation=4, scale=(0.95, 1.1), shift=0.03),
    ),
    "embedded_scripts": Domain(
        "Armenian, Georgian and Hebrew letters, embroidery",
        ((0x531, 0x586), (0x5D0, 0x5EA), (0x10D0, 0x10F6)),
        styles.embroidery,
        Pose(scale=(1.1, 1.3)),
    ),
    "embedded_symbols": Domain(
        "Miscellaneous symbols, outline drawing", ((0x2600, 0x26FF),), styles.outline
    ),
}


def _variant(look: str, camera: Camera) -> Domain:
    """Make a variant of the symbols, as ImageNet has variants."""
    symbols = DOMAINS["embedded_symbols"]
    return replace(
        symbols, title=f"Miscellaneous symbols, {look}", camera=camera, source="embedded_symbols"
    )


VARIANTS: dict[str, Domain] = {
    "embedded_symbols_chalk": _variant("chalk", styles.chalk),
    "embedded_symbols_embroidery": _variant("embroidery", styles.embroidery),
    "embedded_symbols_neon": _variant("neon", styles.neon),
    "embedded_symbols_photo": _variant("faded photo", styles.faded_photo),
}
"""Domains to generalise to; no part of the benchmark of eleven."""


def domain(name: str) -> Domain:
    """Return the row called ``name``.

    Raises:
        UnknownName: there is no such embedded data set.
    """
    known = {**DOMAINS, **VARIANTS}
    if name not in known:
        raise unknown("embedded data set", name, known)
    return known[name]


@cache
def class_characters(name: str) -> tuple[str, ...]:
    """Return a domain's characters in label order.

    The order is shuffled once and for all, so that base and novel halves are alike. A variant has
    that of its source.
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
    """Drop characters without ink, and those that look exactly like an earlier one."""
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
    """Write a data set's pictures to ``folder / ARCHIVE`` and return its lists.

    The same bytes come out at every call: nothing but the name decides.

    Args:
        name: a key of ``DOMAINS`` or ``VARIANTS``.
        folder: where the archive goes; must exist.
        on_progress: called with pictures written and pictures in all.

    Returns:
        Train, validation and test items; paths are names inside the archive.

    Raises:
        UnknownName: there is no such embedded data set.
    """
    items: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    names = class_names(name)
    per_class = HANDWRITTEN_PER_CLASS if domain(name).handwritten else IMAGES_PER_CLASS
    total = len(names) * sum(per_class.values())
    with zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_STORED) as archive:
        for done, (split, label, number, picture) in enumerate(_pictures(name)):
            if on_progress is not None:
                on_progress(done, total)
            path = f"{split}/{label:03d}/{number:03d}.png"
            archive.writestr(zipfile.ZipInfo(path, _EPOCH), _png(picture))
            items[split].append(Item(path, label, names[label]))
    return Splits(*(tuple(items[split]) for split in ("train", "val", "test")))


def _pictures(name: str) -> Iterator[tuple[str, int, int, NDArray[np.uint8]]]:
    """Yield (split, label, number, picture (S, S, 3)) of a whole data set."""
    row = domain(name)
    masters = _handwriting(name) if row.handwritten else _drawings(name)
    for (split, label), stack in masters:
        rng = np.random.default_rng([ord(c) for c in f"{name}/{split}/{label}"])
        ink = styles.pose_ink(stack, row.pose, rng)
        pictures = (row.camera(ink, rng) * 255).round().astype(np.uint8)
        for number, picture in enumerate(pictures):
            yield split, label, number, picture


def _drawings(name: str) -> Iterator[tuple[tuple[str, int], NDArray[np.uint8]]]:
    """Yield masters (N, M, M) of each (split, label): the fonts that have the character in turn."""
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
        mine = images[targets == int(char)].reshape(-1, 8, 8)
        start = 0
        for split, count in HANDWRITTEN_PER_CLASS.items():
            chosen = mine[start : start + count]
            start += count
            yield (split, label), np.stack([_enlarge(image) for image in chosen])


def _enlarge(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Scale an 8x8 picture of 0..16 to a master with a margin."""
    side = MASTER_SIZE * 3 // 4
    grey = Image.fromarray((image * 255 / 16).round().astype(np.uint8))
    large = np.asarray(grey.resize((side, side), Image.Resampling.BICUBIC))
    margin = (MASTER_SIZE - side) // 2
    return np.pad(large, margin)


def _png(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
