"""Images in a folder or a zip file, decoded to RGB."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

from pd_core.core.errors import BadData, MissingFile
from pd_core.data.loading.splits import clean_path
from pd_core.models.portable.pictures import UNREADABLE, open_picture, reason, to_rgb

MOST_BYTES = 2**30
"""Limit of an image file's size, above that of the largest image without compression."""

# Enough for any embedded data set (3 KiB an image), and little beside a CLIP model.
_KEEP_BYTES = 256 * 2**20


class ImageStore:
    """The images of a data set, in a folder or in a zip file.

    The first ``keep_bytes`` of decoded images are cached in memory. A store can be sent to other
    processes; each opens the zip itself and has its own cache.
    """

    def __init__(self, root: Path, *, keep_bytes: int = _KEEP_BYTES) -> None:
        """Create a store for a folder or ``.zip`` file; MissingFile if it does not exist."""
        is_zip = root.suffix == ".zip"
        if not (root.is_file() if is_zip else root.is_dir()):
            kind = "zip file" if is_zip else "folder"
            raise MissingFile(f"no image {kind} at '{root}': put the images there")
        self.root = root
        self._is_zip = is_zip
        self._keep_bytes = keep_bytes
        self._cache: dict[str, Image.Image] = {}
        self._cached_bytes = 0
        self._zip: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open zip and the cache."""
        return {**self.__dict__, "_cache": {}, "_cached_bytes": 0, "_zip": None}

    def open(self, path: str) -> Image.Image:
        """Decode an image to RGB, see ``to_rgb``; do not modify it, it may be cached.

        Args:
            path: Below the root, with forward slashes.

        Raises:
            MissingFile: The file does not exist, is outside the root, or cannot be opened.
            BadData: The image is corrupt.
        """
        if path in self._cache:
            return self._cache[path]
        try:
            image = decode(self._read(path))
        except UNREADABLE as error:
            if isinstance(error, OSError) and error.errno:  # the system's; PIL sets no number
                raise MissingFile(
                    f"'{self.root / path}' cannot be read ({error.strerror}): check its "
                    "permissions and the disk"
                ) from error
            raise BadData(
                f"'{self.root / path}' is not a readable image ({reason(error)}): replace the file"
            ) from error
        size = 3 * image.width * image.height
        if self._cached_bytes + size <= self._keep_bytes:
            self._cache[path] = image
            self._cached_bytes += size
        return image

    def _read(self, path: str) -> bytes:
        """Read a file of the folder or the zip."""
        missing = f"no image '{path}' in '{self.root}': restore it, or remove it from the split"
        if clean_path(path) is None:
            raise MissingFile(f"'{path}' is outside of '{self.root}': correct the split")
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
            return member.read(size)  # never more than the stated size

    def _archive(self) -> zipfile.ZipFile:
        """Return this process's own handle; a forked one shares its position with the parent."""
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = (os.getpid(), zipfile.ZipFile(self.root))
        return self._zip[1]


def decode(data: bytes) -> Image.Image:
    """Decode the bytes of an image file to RGB; raises one of ``UNREADABLE``."""
    with open_picture(io.BytesIO(data)) as image:
        return to_rgb(image)


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"{size} bytes, more than {MOST_BYTES}")
