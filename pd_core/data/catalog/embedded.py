"""The eleven embedded data sets and variants of one of them, rendered from installed fonts.

A `Style` turns ink, float32 (N, S, S) from 0 (paper) to 1, into colour images, float32 (N, S, S, 3)
from 0 to 1. Images of a data set differ by what its random generator draws.
"""

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
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pd_core.core.errors import MissingFile, unknown
from pd_core.core.hooks import OnProgress
from pd_core.data.loading.splits import Item, Splits

MASTER_SIZE = 48
"""Side of a rendered master, in pixels."""

PRETRAINING_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic",
)  # fmt: skip
HELD_OUT_FONTS = (
    "DejaVuSans-BoldOblique", "DejaVuSansMono-BoldOblique", "DejaVuSerif-BoldItalic",
    "STIXGeneralBol", "STIXGeneralBolIta",
)  # fmt: skip

_FONT_SIZE = 34
_WIDEST = 44
# Marks, separators and control characters have no glyph of their own.
_UNDRAWABLE = ("M", "Z", "C")


def character_name(char: str) -> str:
    """Return the official Unicode name in lower case; empty if there is none."""
    return unicodedata.name(char, "").lower()


@cache
def font_file(font: str) -> Path:
    """Return the path of one of matplotlib's TrueType files; MissingFile if there is none."""
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
    """Return the named characters of a font that have a glyph of their own."""
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
    """Render a character, centred on a square master.

    All characters of a font have one size, so that capital and small letters differ; those too
    large for the master are scaled down.

    Returns:
        Ink from 0 (paper) to 255, shape (`MASTER_SIZE`, `MASTER_SIZE`).
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
    """True if a master has visible ink."""
    return bool(master.max() > 64)


Ink = NDArray[np.float32]
Images = NDArray[np.float32]
Rng = np.random.Generator
Style = Callable[[Ink, Rng], Images]

IMAGE_SIZE = 32
"""Side of an image, in pixels."""

_GRID = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
_CENTRED = _GRID / (IMAGE_SIZE - 1) * 2 - 1  # from -1 to 1


@dataclass(frozen=True)
class Pose:
    """Ranges of the random affine transform of a master."""

    rotation: float = 10.0  # degrees, either way
    scale: tuple[float, float] = (0.85, 1.15)
    aspect: float = 0.1  # relative, either way
    shear: float = 0.08
    shift: float = 0.06  # of the image side, either way


def pose_ink(masters: NDArray[np.uint8], pose: Pose, rng: Rng) -> Ink:
    """Apply random affine transforms to masters, uint8 (N, M, M); return ink (N, S, S)."""
    n: int = masters.shape[0]
    side: int = masters.shape[1]
    angle = np.deg2rad(rng.uniform(-pose.rotation, pose.rotation, n))
    zoom = side / IMAGE_SIZE / rng.uniform(*pose.scale, n)
    aspect: NDArray[np.float64] = 1 + rng.uniform(-pose.aspect, pose.aspect, n)
    shear = rng.uniform(-pose.shear, pose.shear, n)
    shift = rng.uniform(-pose.shift, pose.shift, (2, n)) * side
    cos: NDArray[np.float64] = np.cos(angle) * zoom
    sin: NDArray[np.float64] = np.sin(angle) * zoom
    rows, cols = _GRID - (IMAGE_SIZE - 1) / 2

    def column(values: NDArray[Any]) -> NDArray[np.float64]:
        return values[:, None, None]

    slanted = cols * column(aspect) + rows * column(shear)
    source_rows = column(cos) * rows + column(sin) * slanted + (side - 1) / 2 + column(shift[0])
    source_cols = column(cos) * slanted - column(sin) * rows + (side - 1) / 2 + column(shift[1])
    which = np.broadcast_to(np.arange(n)[:, None, None], source_rows.shape)
    coordinates = np.stack([which, source_rows, source_cols])
    values = masters.astype(np.float32) / 255
    ink: Ink = scipy.ndimage.map_coordinates(values, coordinates, order=1).astype(np.float32)
    return ink


def _blur(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Blur each image of (N, S, S) or (N, S, S, 3) separately."""
    sigmas = (0.0, sigma, sigma) + (0.0,) * (image.ndim - 3)
    blurred: NDArray[np.float32] = scipy.ndimage.gaussian_filter(image, sigmas)
    return blurred


def _per_picture(rng: Rng, n: int, low: float, high: float) -> NDArray[np.float32]:
    return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)


def _colour(rng: Rng, n: int, rgb: tuple[float, float, float], spread: float) -> Images:
    """Draw one colour per image around `rgb`: (N, 1, 1, 3)."""
    drawn = np.asarray(rgb) + rng.uniform(-spread, spread, (n, 1, 1, 3))
    return np.clip(drawn, 0, 1).astype(np.float32)


def _noise(rng: Rng, ink: Ink, sigma: float, amount: float) -> Ink:
    """Draw zero-mean texture of strength `amount`; `sigma` is its grain in pixels."""
    grain = rng.standard_normal(ink.shape).astype(np.float32)
    if sigma:
        grain = _blur(grain, sigma)
        grain /= grain.std() + 1e-6
    return grain * np.float32(amount)


def _mix(background: Images, foreground: Images, ink: Ink) -> Images:
    alpha = ink[..., None]
    return background * (1 - alpha) + foreground * alpha


def _edges(ink: Ink, width: int = 3) -> Ink:
    """Return the contour of the ink."""
    size = (1, width, width)
    grown = scipy.ndimage.maximum_filter(ink, size)
    shrunk = scipy.ndimage.minimum_filter(ink, size)
    contour: Ink = grown - shrunk
    return contour


def _ramp(rng: Rng, n: int) -> Ink:
    """Draw a linear light gradient from -1 to 1 in a random direction: (N, S, S)."""
    angle = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    rows, cols = _CENTRED
    light: Ink = (np.cos(angle) * rows + np.sin(angle) * cols).astype(np.float32)
    return light / np.float32(np.sqrt(2))


def _finish(image: Images) -> Images:
    clipped: Images = np.clip(image, 0, 1).astype(np.float32)
    return clipped


def faded_photo(ink: Ink, rng: Rng) -> Images:
    """A low-contrast snapshot: soft focus, colour cast, vignette."""
    n = len(ink)
    wall = _colour(rng, n, (0.72, 0.66, 0.58), 0.12)
    paint = wall - _per_picture(rng, n, 0.16, 0.34)[..., None]
    soft = _blur(ink, 1.0)
    rows, cols = _CENTRED
    vignette = (1 - 0.22 * (rows**2 + cols**2))[None, ..., None]
    image = (_mix(wall, paint, soft) + 0.12 * _ramp(rng, n)[..., None]) * vignette
    return _finish(image + _noise(rng, ink, 0, 0.05)[..., None])


def chalk(ink: Ink, rng: Rng) -> Images:
    """The side of a chalk drawn over a smeared board, whose grain shows through."""
    n = len(ink)
    board = _colour(rng, n, (0.13, 0.24, 0.19), 0.04)
    smear = np.clip(_noise(rng, ink, 3.0, 0.06), -0.1, 0.2)[..., None]
    rows, cols = _GRID
    phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    grain = (np.sin((rows + cols) * 2 * np.pi / 4.2 + phase) > -0.1).astype(np.float32)
    crumbs = np.clip(0.75 + _noise(rng, ink, 0.6, 0.3), 0, 1)
    powder = _colour(rng, n, (0.9, 0.9, 0.84), 0.06)
    return _finish(_mix(board + smear, powder, ink * grain * crumbs))


def halftone(ink: Ink, rng: Rng) -> Images:
    """Contours in newspaper print: tone becomes dots of a coarse screen."""
    n = len(ink)
    phase = rng.uniform(0, 2 * np.pi, (2, n, 1, 1))
    rows, cols = _GRID
    pitch = 2 * np.pi / _per_picture(rng, n, 3.0, 3.8)
    screen = np.cos((rows + cols) * pitch * 0.7071 + phase[0])
    screen = screen * np.cos((rows - cols) * pitch * 0.7071 + phase[1])
    tone = 0.22 + 0.5 * _blur(_edges(ink), 0.6)
    dots = 1 / (1 + np.exp(-9 * (tone * 2 - 1 + screen * 0.75)))
    paper = _colour(rng, n, (0.86, 0.84, 0.78), 0.04)
    printed = _colour(rng, n, (0.18, 0.17, 0.18), 0.05)
    return _finish(_mix(paper, printed, dots.astype(np.float32)))


def neon(ink: Ink, rng: Rng) -> Images:
    """Glowing tubes along the contour, at night."""
    n = len(ink)
    wall = _colour(rng, n, (0.1, 0.08, 0.12), 0.05) + _noise(rng, ink, 1.5, 0.03)[..., None]
    tube = _edges(ink)
    gas = _colour(rng, n, (0.6, 0.3, 0.6), 0.4)
    glow = gas * (0.8 * _blur(tube, 1.6) + 0.5 * tube)[..., None] + 0.3 * tube[..., None] ** 2
    return _finish(wall + glow + _noise(rng, ink, 0, 0.04)[..., None])


def scratchboard(ink: Ink, rng: Rng) -> Images:
    """Contours scratched white into black, on hatched ground."""
    n = len(ink)
    rows, cols = _GRID
    phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    pitch = _per_picture(rng, n, 4.8, 6.2)
    hatch = np.clip(np.sin((rows - cols) * 2 * np.pi / pitch + phase), 0, 1) ** 2 * (1 - ink)
    scratches = np.maximum(_edges(ink) * _per_picture(rng, n, 0.7, 1.0), 0.5 * hatch)
    ground = _colour(rng, n, (0.1, 0.1, 0.11), 0.04)
    image = _mix(ground, _colour(rng, n, (0.88, 0.85, 0.75), 0.08), scratches)
    return _finish((image + _noise(rng, ink, 0, 0.04)[..., None]).astype(np.float32))


def road_sign(ink: Ink, rng: Rng) -> Images:
    """Light contours on a coloured plate before a landscape, with glare."""
    n = len(ink)
    plates = np.array([(0.1, 0.3, 0.65), (0.72, 0.12, 0.14), (0.1, 0.45, 0.25), (0.85, 0.65, 0.1)])
    plate = plates[rng.integers(0, len(plates), n)][:, None, None, :].astype(np.float32)
    rows, cols = _CENTRED
    roundness = rng.choice([2.0, 4.0, 8.0], (n, 1, 1))
    radius = (np.abs(rows) ** roundness + np.abs(cols) ** roundness) ** (1 / roundness)
    inside = (1 / (1 + np.exp(18 * (radius - 0.97)))).astype(np.float32)
    scenery = _colour(rng, n, (0.45, 0.5, 0.42), 0.2) + _noise(rng, ink, 2.0, 0.12)[..., None]
    sign = _mix(plate, _colour(rng, n, (0.93, 0.93, 0.9), 0.06), _edges(ink))
    glare = np.clip(_ramp(rng, n), 0, 1) * _per_picture(rng, n, 0.0, 0.55)
    image = _mix(scenery, sign + glare[..., None], inside)
    return _finish(_blur(image, 0.5))


def blueprint(ink: Ink, rng: Rng) -> Images:
    """White contours on a blue sheet with a grid."""
    n = len(ink)
    sheet = _colour(rng, n, (0.1, 0.25, 0.55), 0.05)
    pitch, start = rng.integers(5, 8, (n, 1, 1)), rng.integers(0, 6, (2, n, 1, 1))
    rows, cols = _GRID
    grid = (((rows + start[0]) % pitch == 0) | ((cols + start[1]) % pitch == 0)) * 0.3
    lines = np.maximum(_edges(ink) * _per_picture(rng, n, 0.75, 1.0), grid.astype(np.float32))
    image = _mix(sheet, _colour(rng, n, (0.88, 0.93, 1.0), 0.04), lines)
    return _finish(image + _noise(rng, ink, 0, 0.03)[..., None])


def embossed(ink: Ink, rng: Rng) -> Images:
    """Relief in thick paper, seen by its shading only."""
    n = len(ink)
    height = _blur(ink, 0.9)
    slope_rows, slope_cols = np.gradient(height, axis=(1, 2))
    angle = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    shade = np.cos(angle) * slope_rows + np.sin(angle) * slope_cols
    paper = _colour(rng, n, (0.7, 0.66, 0.6), 0.08)
    light = (_per_picture(rng, n, 1.0, 1.7) * shade).astype(np.float32)
    return _finish(paper + light[..., None] + _noise(rng, ink, 0.5, 0.04)[..., None])


def embroidery(ink: Ink, rng: Rng) -> Images:
    """Contours cross-stitched in coloured thread on woven cloth."""
    n, stitch = len(ink), 2
    cells = IMAGE_SIZE // stitch
    coverage = _edges(ink).reshape(n, cells, stitch, cells, stitch).mean(axis=(2, 4))
    stitched = (coverage > 0.5).astype(np.float32)
    thread = _colour(rng, n, (0.6, 0.15, 0.2), 0.25)
    cloth = _colour(rng, n, (0.82, 0.78, 0.66), 0.08)
    shade = rng.uniform(0.65, 1.1, (n, cells, cells)).astype(np.float32)
    weave = np.tile(np.array([[1.0, 0.82], [0.82, 1.0]], np.float32), (cells, cells))[None]
    full = stitched.repeat(stitch, 1).repeat(stitch, 2)
    thread_shade = shade.repeat(stitch, 1).repeat(stitch, 2)
    return _finish(_mix(cloth * weave[..., None], thread * thread_shade[..., None], full))


def outline(ink: Ink, rng: Rng) -> Images:
    """Thin, broken contour drawn with a pen on textured paper."""
    n = len(ink)
    contour = _edges(ink) * np.clip(0.8 + _noise(rng, ink, 1.2, 0.3), 0, 1)
    paper = _colour(rng, n, (0.9, 0.87, 0.8), 0.06) + _noise(rng, ink, 1.0, 0.05)[..., None]
    pen = _colour(rng, n, (0.2, 0.2, 0.35), 0.15)
    return _finish(_mix(paper, pen, np.clip(contour, 0, 1)))


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
