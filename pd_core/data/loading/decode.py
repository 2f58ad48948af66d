"""Pictures, stored in a folder or a zip and opened as RGB; ``to_rgb`` says how."""

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
"""Size that a picture's file may have; a picture of most pixels that is not packed is smaller."""

# Enough for every embedded data set (a 32x32 picture takes 3 KiB), little beside a CLIP model.
_KEEP_BYTES = 256 * 2**20


class ImageStore:
    """The pictures of one data set, in a folder or in one zip file.

    Decoded pictures stay in memory until ``keep_bytes`` of them are held; the rest is read anew.
    A store may be sent to other processes: each opens the zip itself and keeps its own pictures.
    """

    def __init__(self, root: Path, *, keep_bytes: int = _KEEP_BYTES) -> None:
        """Point at the images; nothing is read yet.

        Args:
            root: Folder, or ``.zip`` file.
            keep_bytes: Most bytes of decoded images to hold.

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
            The picture in RGB; see ``to_rgb`` for what becomes of other modes. A rotation noted
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
    """Decode the bytes of an image file to RGB; one of ``UNREADABLE`` is raised if it is none."""
    with open_picture(io.BytesIO(data)) as image:
        return to_rgb(image)


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"{size} bytes, more than {MOST_BYTES}")
