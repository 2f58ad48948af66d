"""Characters of installed fonts, rendered as masters: grey images of the ink."""

from __future__ import annotations

import importlib.util
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pd_core.core.errors import MissingFile

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
