"""Decode images to RGB like the paper's code, by PIL's ``convert("RGB")``.

Transparency is dropped, the first frame of an animation is used, and a rotation in EXIF is *not*
applied. Unlike PIL, which clips them to white, values beyond 8 bits are scaled.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

MOST_PIXELS = 100_000_000
"""Limit of an image's pixels: 300 MB decoded, twice the size of the best cameras'."""

# PIL's other formats include programs: it runs PostScript by Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")

# Errors of PIL and zipfile for a corrupt file.
UNREADABLE = (
    EOFError,
    Image.DecompressionBombError,
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)

Picture = Any
"""A path, encoded bytes, base64 text, an array (H, W, 3) or (H, W) of uint8, or a PIL image."""

_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # PIL's greyscale modes beyond 8 bits
_WHITE = 65535  # of 16 bits; in modes of 32 bits white is not defined


class BadPicture(ValueError):
    """An image that cannot be read."""


def read(picture: Picture, *, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Decode an image, see `Picture`, to RGB.

    A string is a path if that file exists, otherwise base64 or a data URL. Images of more than
    `most_pixels` are refused before they are decoded.

    Raises:
        BadPicture: the image cannot be read.
    """
    name = f"'{picture}'" if isinstance(picture, Path) else f"the picture ({_kind(picture)})"
    try:
        if isinstance(picture, Image.Image):
            return to_rgb(picture, most_pixels=most_pixels)
        if isinstance(picture, str | Path | bytes | bytearray | memoryview):
            with open_picture(_source(picture)) as image:
                return to_rgb(image, most_pixels=most_pixels)
        array = np.asarray(picture)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise ValueError(f"{array.dtype} of shape {array.shape}")
        return to_rgb(Image.fromarray(array), most_pixels=most_pixels)
    except (*UNREADABLE, TypeError) as error:
        raise BadPicture(f"{name} cannot be read ({reason(error)}); {_remedy(picture)}") from None


def _remedy(picture: Picture) -> str:
    if isinstance(picture, bytes | Path):
        return f"give an image file of {', '.join(_formats())}"
    return "give a path, the bytes of an image file, base64 text, or an array of (H, W, 3) uint8"


def open_picture(source: Path | IO[bytes]) -> Image.Image:
    """Open an image without decoding it; raises one of ``UNREADABLE`` if it is corrupt."""
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        return Image.open(source, formats=_formats())


def to_rgb(image: Image.Image, *, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Convert an image of any mode to RGB; raises one of ``UNREADABLE``.

    Greyscale with values above 255 is taken for 16 bits: values from 65535 are white.
    """
    if image.width * image.height > most_pixels:  # before memory is allocated
        raise Image.DecompressionBombError(
            f"{image.width} x {image.height} pixels, more than {most_pixels}"
        )
    image.load()
    if image.mode in _DEEP:
        image = _eight_bits(image)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]  # PIL ignores it, but with a warning
    return image.convert("RGB")


def reason(error: Exception) -> str:
    """Return the message of one of ``UNREADABLE``."""
    return str(error).partition("<")[0].strip() or type(error).__name__


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that are decoded; HEIC is one where pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return FORMATS
    register_heif_opener()
    return (*FORMATS, "HEIF")


def _source(picture: str | Path | bytes | bytearray | memoryview) -> Path | io.BytesIO:
    if isinstance(picture, Path):
        return picture
    if not isinstance(picture, str):
        return io.BytesIO(picture)
    if _is_file(picture):
        return Path(picture)
    text = picture.partition(",")[2] if picture.startswith("data:") else picture
    try:
        return io.BytesIO(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError(f"'{text[:60]}' is neither a file nor base64") from None


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        return False


def _kind(picture: object) -> str:
    return f"{len(picture)} bytes" if isinstance(picture, bytes) else type(picture).__name__


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64))  # (H, W)
    if values.max() <= 255:
        return image
    return Image.fromarray((values.clip(0, _WHITE) * (255 / _WHITE)).round().astype(np.uint8))
