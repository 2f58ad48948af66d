"""Pictures of any kind as RGB, as the paper's code has it.

Its rule is PIL's ``convert("RGB")``: transparency is dropped, of an animation the first frame is
taken, and a rotation noted in EXIF is *not* applied. Only values beyond 8 bits are treated
otherwise, since PIL would clip them to white.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

MOST_PIXELS = 100_000_000
"""Pixels that a picture may have: 300 MB decoded, and twice what the best cameras take."""

# Formats that are only pictures. PIL knows others as well, such as PostScript, which is a program:
# PIL would give it to Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# What PIL and zipfile raise for a file that is not the picture it claims to be.
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

_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # PIL's modes beyond 8 bits, all greyscale
_WHITE = 65535  # of 16 bits; the modes of 32 bits do not say what their white is


class BadPicture(ValueError):
    """What was given is no readable picture."""


def read(picture: Picture, *, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Turn any kind of picture into an RGB image.

    Text is a path if there is such a file, and base64 (also as a data URL) otherwise.

    Args:
        picture: see `Picture`.
        most_pixels: a larger one is refused before it is decoded.

    Raises:
        BadPicture: it is not a readable picture.
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
        raise BadPicture(
            f"{name} cannot be read ({reason(error)}); give a path, the bytes of a picture file, "
            f"base64 text, or an array of (H, W, 3) uint8"
        ) from None


def open_picture(source: Path | IO[bytes]) -> Image.Image:
    """Open a picture without decoding it; its pixels are not counted yet.

    Raises:
        Exception: One of ``UNREADABLE``, if it is no picture or a damaged one.
    """
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        return Image.open(source, formats=FORMATS)


def to_rgb(image: Image.Image, *, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Convert any picture to RGB, in 8 bits per channel.

    Args:
        image: Of any mode; left as it is.
        most_pixels: What it may have.

    Returns:
        What PIL makes of it. Greyscale with values above 255 is taken to be of 16 bits: 65535 is
        white, and so is whatever lies beyond.

    Raises:
        Exception: One of ``UNREADABLE``, if it is damaged, or too large.
    """
    if image.width * image.height > most_pixels:  # before there is memory taken for them
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


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` pixels (bicubic) and cut out the square in the middle.

    Torchvision's `Resize` and `CenterCrop` round in the same way.
    """
    short, long = sorted(image.size)
    longer = int(size * long / short)
    width, height = (size, longer) if image.width <= image.height else (longer, size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def reason(error: Exception) -> str:
    """Say why a picture is unreadable, in the words of one of ``UNREADABLE``."""
    return str(error).partition("<")[0].strip() or type(error).__name__


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
    except (OSError, ValueError):  # longer than a path can be, or with a zero byte
        return False


def _kind(picture: object) -> str:
    return f"{len(picture)} bytes" if isinstance(picture, bytes) else type(picture).__name__


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64))  # (H, W)
    if values.max() <= 255:
        return image
    return Image.fromarray((values.clip(0, _WHITE) * (255 / _WHITE)).round().astype(np.uint8))
