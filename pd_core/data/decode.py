"""Pictures, stored in a folder or a zip and opened as RGB, as the paper's code has it.

Its rule is PIL's ``convert("RGB")``: transparency is dropped, of an animation the first frame is
taken, and a rotation noted in EXIF is *not* applied. Only values beyond 8 bits are treated
otherwise, since PIL would clip them to white.
"""

import io
import os
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from pd_core.data.paths import clean_path
from pd_core.errors import BadData, MissingFile

MOST_PIXELS = 100_000_000
"""Pixels that a picture may have: 300 MB decoded, and twice what the best cameras take."""

MOST_BYTES = 2**30
"""Size that a picture's file may have; a picture of `MOST_PIXELS` that is not packed is smaller."""

# Formats that are only pictures. PIL knows others as well, such as PostScript, which is a program:
# PIL would give it to Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

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

# Enough for every embedded data set (a 32x32 picture takes 3 KiB), little beside a CLIP model.
_KEEP_BYTES = 256 * 2**20

_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # PIL's modes beyond 8 bits, all greyscale
_WHITE = 65535  # of 16 bits; the modes of 32 bits do not say what their white is


class ImageStore:
    """The pictures of one data set, in a folder or in one zip file.

    Decoded pictures stay in memory until ``keep_bytes`` of them are held; the rest is read anew.
    A store may be sent to other processes: each opens the zip itself and keeps its own pictures.
    """

    def __init__(self, root: Path, *, keep_bytes: int = _KEEP_BYTES) -> None:
        """Point at the pictures; nothing is read yet.

        Args:
            root: Folder, or ``.zip`` file.
            keep_bytes: Most bytes of decoded pictures to hold.

        Raises:
            MissingFile: There is no such folder or zip.
        """
        is_zip = root.suffix == ".zip"
        if not (root.is_file() if is_zip else root.is_dir()):
            kind = "zip file" if is_zip else "folder"
            raise MissingFile(f"no image {kind} at '{root}': put the pictures there")
        self.root = root
        self._is_zip = is_zip
        self._keep_bytes = keep_bytes
        self._kept: dict[str, Image.Image] = {}
        self._kept_bytes = 0
        self._zip: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open zip and the kept pictures."""
        return {**self.__dict__, "_kept": {}, "_kept_bytes": 0, "_zip": None}

    def open(self, path: str) -> Image.Image:
        """Decode one picture; do not draw into it, it may be kept.

        Args:
            path: Path below the root, with forward slashes.

        Returns:
            The picture in RGB; see ``decode`` for what becomes of other modes. A rotation noted
            in EXIF is not applied, as in the paper's code.

        Raises:
            MissingFile: There is no such file, the path leads out of the root, or the system does
                not let the file be read.
            BadData: The file is no picture, or a damaged one.
        """
        if path in self._kept:
            return self._kept[path]
        try:
            picture = decode(self._read(path))
        except UNREADABLE as error:
            if isinstance(error, OSError) and error.errno:  # the system's; PIL gives no number
                raise MissingFile(
                    f"'{self.root / path}' cannot be read ({error.strerror}): see to its rights "
                    "and its disk"
                ) from error
            raise BadData(
                f"'{self.root / path}' is not a readable picture ({reason(error)}): replace the "
                "file"
            ) from error
        size = 3 * picture.width * picture.height
        if self._kept_bytes + size <= self._keep_bytes:
            self._kept[path] = picture
            self._kept_bytes += size
        return picture

    def _read(self, path: str) -> bytes:
        """Read a file, from wherever the pictures are."""
        missing = f"no picture '{path}' in '{self.root}': restore it, or leave it out of the split"
        if clean_path(path) is None:
            raise MissingFile(f"'{path}' leads out of '{self.root}': correct the split")
        if not self._is_zip:
            file = self.root / path
            if not file.is_file():
                raise MissingFile(missing)
            _check_size(file.stat().st_size)
            return file.read_bytes()
        archive = self._archive()
        try:
            size = archive.getinfo(path).file_size
        except KeyError:
            raise MissingFile(missing) from None
        _check_size(size)
        with archive.open(path) as member:
            return member.read(size)  # and no more, whatever it unpacks to

    def _archive(self) -> zipfile.ZipFile:
        """Return this process's own handle: a forked one shares its position with the parent's."""
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = (os.getpid(), zipfile.ZipFile(self.root))
        return self._zip[1]


def decode(data: bytes) -> Image.Image:
    """Decode the bytes of a picture file to RGB.

    Raises:
        Exception: One of ``UNREADABLE``, if it is no picture, a damaged one, or too large.
    """
    with open_picture(io.BytesIO(data)) as image:
        return to_rgb(image)


def open_picture(source: Path | IO[bytes]) -> Image.Image:
    """Open a picture without decoding it; its pixels are not counted yet.

    Raises:
        Exception: One of ``UNREADABLE``, if it is no picture or a damaged one.
    """
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        return Image.open(source, formats=_FORMATS)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any picture to RGB, in 8 bits per channel.

    Args:
        image: Of any mode; left as it is.

    Returns:
        What PIL makes of it. Greyscale with values above 255 is taken to be of 16 bits: 65535 is
        white, and so is whatever lies beyond.

    Raises:
        Exception: One of ``UNREADABLE``, if it is damaged, or has more than ``MOST_PIXELS``.
    """
    if image.width * image.height > MOST_PIXELS:  # before there is memory taken for them
        raise Image.DecompressionBombError(
            f"{image.width} x {image.height} pixels, more than {MOST_PIXELS}"
        )
    image.load()
    if image.mode in _DEEP:
        image = _eight_bits(image)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]  # PIL ignores it, but with a warning
    return image.convert("RGB")


def reason(error: Exception) -> str:
    """Say why a picture is unreadable, in the words of one of ``UNREADABLE``."""
    return str(error).partition("<")[0].strip() or type(error).__name__


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"{size} bytes, more than {MOST_BYTES}")


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64))  # (H, W)
    if values.max() <= 255:
        return image
    return Image.fromarray((values.clip(0, _WHITE) * (255 / _WHITE)).round().astype(np.uint8))
