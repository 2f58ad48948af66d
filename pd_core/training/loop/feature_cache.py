"""On-disk cache of frozen-encoder features.

A tensor is known by everything that decides it. The store is no output of a stage: whatever is
not there, or damaged, is computed anew, so its folder may be deleted at any time.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from pd_core.core.artifacts import file_hash, read_tensors, write_tensors
from pd_core.core.atomic import check_space, readable
from pd_core.core.errors import BadArtifact, BadParams, MissingFile
from pd_core.core.hooks import OnNote

_NAME = "features"


class FeatureCache:
    """A folder of tensors, kept below a limit.

    Attributes:
        folder: where they are, one folder for those that belong together.
        limit: bytes that they may take.
        half: whether what is large is stored in half precision.
    """

    def __init__(
        self,
        folder: Path,
        *,
        key: str = "",
        limit: int,
        half: bool = False,
        on_note: OnNote | None = None,
    ) -> None:
        """Describe the store; nothing is read yet.

        Args:
            folder: as above.
            key: of what decides every tensor beside its own `decisive`: code, versions, device.
            limit: as above.
            half: as above.
            on_note: called with a line about what is recorded, and what cannot be read.
        """
        self.folder = folder
        self.limit = limit
        self.half = half
        self.note = on_note or (lambda _: None)
        self._key = key

    def place(self, kind: str, decisive: Mapping[str, object]) -> Path:
        """Return the folder for tensors of a kind.

        Args:
            kind: what they are, for people to read.
            decisive: everything that decides them, as JSON has it.
        """
        text = json.dumps([self._key, decisive], sort_keys=True, default=str)
        return self.folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def read(self, place: Path, name: str) -> Tensor | None:
        """Read a tensor onto the CPU; None if it is not there. A damaged one is removed."""
        try:
            tensors, _ = read_tensors(
                _file(place, name), what="stored features", remedy="they are computed anew"
            )
            place.touch()  # what has been used lately goes last
            return tensors[_NAME]
        except MissingFile:
            return None
        except (BadArtifact, KeyError) as error:
            self.note(str(error))
            _file(place, name).unlink(missing_ok=True)
            return None

    def write(self, place: Path, name: str, tensor: Tensor) -> None:
        """Store a tensor, whole or not at all.

        Raises:
            PdError: the folder cannot be written.
        """
        write_tensors(_file(place, name), {_NAME: tensor}, {})

    def make_room(self, place: Path, size: int, *, what: str, remedy: str) -> None:
        """Make sure that tensors fit; of others, those that were used longest ago go.

        Args:
            place: where they will go.
            size: bytes that all in `place` will take.
            what: what they are, for the messages.
            remedy: how to need less.

        Raises:
            BadParams: they alone take more than the limit.
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
            self.note(f"removed '{oldest}' to stay below {readable(self.limit)}")
        check_space(self.folder, size, what)


def identity(model: str, weights: Path | str | None) -> list[str]:
    """Say which CLIP this is: its name, and the hash of its weights' file, or their tag."""
    path = Path(weights) if weights is not None else None
    return [model, file_hash(path) if path is not None and path.is_file() else str(weights)]


def _size(place: Path) -> int:
    """Return the bytes of the files in a folder, as far as no other process is at work there."""
    total = 0
    for file in place.glob("*"):
        with suppress(FileNotFoundError):  # it had a temporary name, or has been removed
            total += file.stat().st_size
    return total


def _last_use(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except FileNotFoundError:  # another process has removed it
        return 0.0


def _file(place: Path, name: str) -> Path:
    return place / f"{name}.safetensors"
