"""Checkpoints: what a training needs to go on after its process has ended.

They lie outside the outputs of the stage, since DVC deletes those before it runs a stage. Of
processes that train together the first one reads and writes them, and all agree when.
"""

import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from pd_core.artifacts import read_tensors, write_tensors
from pd_core.atomic import check_space
from pd_core.errors import BadArtifact
from pd_core.parallel import any_of, from_first, is_first

OnNote = Callable[[str], None]

KEPT = 2
"""The last ones are kept, in case that the newest is damaged."""

_NAME = re.compile(r"checkpoint-\d+-\d+\.safetensors")
_ASIDE = "set-aside"
_KEY = "run"


class Checkpoints:
    """The checkpoints of one training, in a folder of their own.

    Attributes:
        folder: where they are.
        key: hash of all that decides the weights: code, data, parameters.
    """

    def __init__(
        self,
        folder: Path,
        *,
        key: str,
        minutes: float = 5.0,
        interrupted: Callable[[], bool] | None = None,
        on_note: OnNote | None = None,
    ) -> None:
        """Describe them; nothing is read yet.

        Args:
            folder: where they go, outside the outputs of the stage.
            key: as above; only checkpoints with the same one are taken up.
            minutes: one is due after each epoch, and when so many minutes have passed.
            interrupted: whether the run is to save and end now.
            on_note: called with a line about each checkpoint that is taken up or cannot be.
        """
        self.folder = folder
        self.key = key
        self._seconds = 60 * minutes
        self._interrupted = interrupted or (lambda: False)
        self._note = on_note or (lambda _: None)
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for one within an epoch."""
        return any_of(self._interrupted() or time.monotonic() - self._last >= self._seconds)

    def interrupted(self) -> bool:
        """Whether the run is to save and end now."""
        return any_of(self._interrupted())

    def newest(self) -> Path | None:
        """Return the file of the newest one; None if there is none."""
        return max(self._files(), default=None)

    def require_space(self, size: int) -> None:
        """Make sure that there is room for them, each of `size` bytes.

        Raises:
            NoSpace: there is not.
        """
        # One more than are kept: an old one goes when the new one is there.
        check_space(self.folder, (KEPT + 1) * size, "training (checkpoints)")

    def save(
        self, epoch: int, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> None:
        """Write one, and delete all but the last two.

        Args:
            epoch: that is going on.
            step: batches of it that are done.
            tensors: any shapes.
            metadata: strings.

        Raises:
            PdError: the folder cannot be written; those before are still there.
        """
        if is_first():
            path = self.folder / f"checkpoint-{epoch:06}-{step:09}.safetensors"
            write_tensors(path, tensors, {**metadata, _KEY: self.key})
            for old in self._files()[:-KEPT]:
                old.unlink()
        self._last = time.monotonic()

    def latest(self) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Read the newest one that is whole.

        Those of another run are set aside, and so are damaged ones if there is no other.

        Returns:
            Tensors and metadata as given to `save`; None if training starts anew.
        """
        return from_first(self._newest_whole)

    def remove(self) -> None:
        """Delete them, when what they led to has been written."""
        for entry in self.folder.glob("*"):
            if entry.name != _ASIDE:
                entry.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _newest_whole(self) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        for path in reversed(self._files()):
            try:
                tensors, metadata = read_tensors(
                    path, what="checkpoint", remedy="it is not taken up"
                )
            except BadArtifact as error:
                self._note(str(error))
                continue
            if metadata.pop(_KEY, None) != self.key:
                self._set_aside("of other code, data or parameters")
                return None
            self._note(f"continues from checkpoint '{path}'")
            return tensors, metadata
        if self._files():
            self._set_aside("damaged")
        return None

    def _files(self) -> list[Path]:
        """Return the files, oldest first."""
        return sorted(path for path in self.folder.glob("*") if _NAME.fullmatch(path.name))

    def _set_aside(self, why: str) -> None:
        aside = self.folder / _ASIDE
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for path in self._files():
            path.rename(aside / path.name)
        self._note(f"checkpoints {why} are set aside in '{aside}'; training starts anew")
