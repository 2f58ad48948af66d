"""On-disk cache of frozen-encoder features.

A tensor's folder is named by a hash of everything that determines the tensor. The cache is no
output of a stage: entries that are missing or corrupt are computed again, so its folder may be
deleted at any time.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pd_core.core.artifacts import file_hash, read_tensors, write_tensors
from pd_core.core.atomic import check_space, readable
from pd_core.core.errors import BadArtifact, BadParams, MissingFile
from pd_core.core.hooks import NO_HOOKS, OnNote
from pd_core.models.preprocessing import config_of_file

_NAME = "features"


@dataclass(frozen=True)
class FeatureCache:
    """Tensors on disk, up to a limit of bytes.

    Attributes:
        folder: holds one folder for the tensors that belong together.
        limit: bytes that all of them may take.
        key: hash of what determines every tensor: code, versions, device.
        half: store large tensors in half precision.
        on_note: called with a line for what is recorded, and what cannot be read.
    """

    folder: Path
    limit: int
    key: str = ""
    half: bool = False
    on_note: OnNote = NO_HOOKS.on_note

    def place(self, kind: str, values: Mapping[str, object]) -> Path:
        """Return the folder for tensors of a kind.

        Args:
            kind: readable part of the folder's name.
            values: cache key, JSON values: everything that determines the tensors beside `key`.
        """
        text = json.dumps([self.key, values], sort_keys=True, default=str)
        return self.folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def read(self, place: Path, name: str) -> Tensor | None:
        """Read a tensor onto the CPU; None if there is none. A corrupt file is removed."""
        try:
            tensors, _ = read_tensors(
                _file(place, name), what="stored features", remedy="they are computed anew"
            )
            place.touch()  # the least recently used are removed first
            return tensors[_NAME]
        except MissingFile:
            return None
        except (BadArtifact, KeyError) as error:
            self.on_note(str(error))
            _file(place, name).unlink(missing_ok=True)
            return None

    def write(self, place: Path, name: str, tensor: Tensor) -> None:
        """Write a tensor atomically.

        Raises:
            PdError: the folder cannot be written.
        """
        write_tensors(_file(place, name), {_NAME: tensor}, {})

    def make_room(self, place: Path, size: int, *, what: str, remedy: str) -> None:
        """Make room for tensors: the least recently used ones of other folders are removed.

        Args:
            place: their folder.
            size: bytes of all tensors in it.
            what: name of the tensors, for messages.
            remedy: advice in the error if they are too large.

        Raises:
            BadParams: they alone exceed the limit.
            NoSpace: the disk has no room for them.
        """
        if size > self.limit:
            raise BadParams(
                f"{what} take {readable(size)}, and run.features_gb allows"
                f" {readable(self.limit)}; raise it, or {remedy}"
            )
        others = {path: _size(path) for path in self.folder.glob("*-*") if path != place}
        for oldest in sorted(others, key=_last_use):
            if sum(others.values()) + size <= self.limit:
                break
            shutil.rmtree(oldest, ignore_errors=True)
            del others[oldest]
            self.on_note(f"removed '{oldest}' to stay below {readable(self.limit)}")
        check_space(self.folder, size, what)


def identity(model: str, weights: Path | str | None) -> list[str]:
    """Return the identity of a CLIP: its name, and the hash of its weights' file, or their tag.

    A configuration beside the file, which has the preprocessing, is part of it.
    """
    path = Path(weights) if weights is not None else None
    if path is None or not path.is_file():
        return [model, str(weights)]
    files = (path, config_of_file(path))
    return [model, *(file_hash(file) for file in files if file.is_file())]


def _size(place: Path) -> int:
    """Return the bytes of a folder's files."""
    total = 0
    for file in place.glob("*"):
        with suppress(FileNotFoundError):  # another process has renamed or removed it
            total += file.stat().st_size
    return total


def _last_use(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except FileNotFoundError:  # another process has removed it
        return 0.0


def _file(place: Path, name: str) -> Path:
    return place / f"{name}.safetensors"
