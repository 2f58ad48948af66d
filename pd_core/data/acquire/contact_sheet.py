"""Contact sheet: one picture with a few images of each class beside its name."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from pd_core.core.atomic import write_bytes
from pd_core.core.errors import PdError
from pd_core.core.names import printable
from pd_core.data.acquire.overview import EXAMPLES, ClassOverview, Overview
from pd_core.data.loading.decode import ImageStore

MOST_CLASSES = 100
"""Classes on a sheet; with more it would be too long to open."""

_SIDE, _GAP, _LABEL = 96, 6, 220  # pixels: of an image, between two, of a label
_INK, _GREY = "#1a1a1a", "#767676"
_LETTERS = 14  # size
_MOST_LINES = 4  # of a name


class SheetRow(NamedTuple):
    """A row of a contact sheet: a label, and at most `EXAMPLES` images beside it."""

    number: str
    name: str  # of the class
    counts: str  # below it
    examples: Sequence[str]  # paths


def write_sheet(overview: Overview, images: Path, file: Path) -> list[str]:
    """Write a contact sheet as JPEG; return a line for each limitation of it.

    Images look as the models see them: a rotation in EXIF is not applied.

    Args:
        overview: Of the data set.
        images: Folder that its paths are below.
        file: The picture to write.
    """
    rows = [
        SheetRow(f"{number}", row.name, _counts(row), row.examples)
        for number, row in enumerate(overview.classes[:MOST_CLASSES], start=1)
    ]
    count = f"{overview.unlabelled} images"
    rows.append(SheetRow("", "unlabelled", count, overview.unlabelled_examples))
    write_rows(rows, images, file)
    return _limitations(overview)


def write_rows(rows: Sequence[SheetRow], images: Path, file: Path) -> None:
    """Write a contact sheet of at least one row as JPEG.

    Args:
        rows: From top to bottom.
        images: Folder or zip file that their paths are below.
        file: The picture to write.
    """
    store = ImageStore(images, keep_bytes=0)
    pictures = [_drawn(store, row) for row in rows]
    sheet = Image.new("RGB", (pictures[0].width, len(pictures) * pictures[0].height), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (0, number * picture.height))
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=90)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, content.getvalue())


def _limitations(overview: Overview) -> list[str]:
    lines = []
    if len(overview.classes) > MOST_CLASSES:
        lines.append(
            f"the contact sheet shows {MOST_CLASSES} of {len(overview.classes)} classes, the first"
        )
    names = [row.name for row in overview.classes[:MOST_CLASSES]]
    if lacking := [name for name in names if font_of(name) is None]:
        lines.append(
            f"no installed font has the letters of {len(lacking)} class names, the first is "
            f"'{printable(lacking[0])}': the contact sheet has their numbers only; install a font "
            "of that script, such as Noto's"
        )
    return lines


def _counts(row: ClassOverview) -> str:
    sizes = {"train": row.train, "val": row.val, "test": row.test}
    return ", ".join(f"{size} {name}" for name, size in sizes.items() if size)


def _drawn(store: ImageStore, row: SheetRow) -> Image.Image:
    """Draw a label and the images beside it."""
    picture = Image.new("RGB", (_LABEL + EXAMPLES * (_SIDE + _GAP), _SIDE + _GAP), "white")
    draw, plain = ImageDraw.Draw(picture), _font(_default_font())
    draw.text((_GAP, _GAP), row.number, _GREY, plain)
    if file := font_of(row.name):
        lines = _wrapped(printable(row.name), _font(file))
        draw.multiline_text((5 * _GAP, _GAP), "\n".join(lines), _INK, _font(file), spacing=2)
    draw.text((5 * _GAP, _SIDE - _LETTERS), row.counts, _GREY, plain)
    for position, path in enumerate(row.examples):
        picture.paste(_thumbnail(store, path), (_LABEL + position * (_SIDE + _GAP), _GAP // 2))
    return picture


def _thumbnail(store: ImageStore, path: str) -> Image.Image:
    """Return an image in a square; a grey one for an image that cannot be decoded."""
    square = Image.new("RGB", (_SIDE, _SIDE), "white")
    try:
        image = store.open(path).copy()
    except PdError:
        square.paste(_GREY, (0, 0, _SIDE, _SIDE))
        ImageDraw.Draw(square).text((_GAP, _GAP), "corrupt", "white", _font(_default_font()))
        return square
    image.thumbnail((_SIDE, _SIDE))
    square.paste(image, ((_SIDE - image.width) // 2, (_SIDE - image.height) // 2))
    return square


def _wrapped(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """Break a text into lines of the label's width, at blanks where there are some."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < _MOST_LINES:
        end = len(rest)
        while end > 1 and font.getlength(rest[:end]) > _LABEL - 7 * _GAP:
            end -= 1
        if end < len(rest) and " " in rest[1:end]:
            end = rest.rindex(" ", 1, end) + 1
        lines.append(rest[:end].strip())
        rest = rest[end:]
    if rest:
        lines[-1] = f"{lines[-1][:-1]}…"
    return lines


def font_of(text: str) -> str | None:
    """Return a font file with all letters of a text: matplotlib's, or one of the system's."""
    letters = {ord(letter) for letter in printable(text) if not letter.isspace()}
    if letters <= _letters(_default_font()):
        return _default_font()
    return next((file for file in _system_fonts() if letters <= _letters(file)), None)


@cache
def _system_fonts() -> tuple[str, ...]:
    """Return the fonts of the system, regular ones first."""
    from matplotlib.font_manager import findSystemFonts

    return tuple(sorted(findSystemFonts(), key=lambda file: ("Regular" not in file, file)))


@cache
def _letters(file: str) -> frozenset[int]:
    """Return the code points that a font has a glyph for; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _default_font() -> str:
    from matplotlib import get_data_path

    return f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"


@cache
def _font(file: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, _LETTERS)
