"""Trainer state for bit-exact resumption, and the checkpoint files that hold it."""

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from pd_core.core.artifacts import read_tensors, write_tensors
from pd_core.core.atomic import check_space
from pd_core.core.errors import BadArtifact
from pd_core.core.hooks import Metrics, OnNote
from pd_core.training.loop.distributed import any_of, from_first, is_first
from pd_core.training.loop.schedule import BestState, WeightedSum, trained_parameters

History = list[Metrics]


@dataclass
class TrainingState:
    """What changes while a module is trained.

    Attributes:
        module: what is trained.
        optimizer: its optimiser.
        scaler: of the loss.
        average: the weighted sum of epochs, if there is one.
        best: the best epoch so far, if it is kept.
        epoch: the one that is going on, from 1.
        done: batches of it that have been gone through.
        counted: how many of them were trained on.
        skipped_steps: how many had a loss that was not finite.
        sums: of each scalar over the epoch's steps.
        history: metrics of the epochs before.
    """

    module: nn.Module
    optimizer: SGD
    scaler: torch.amp.GradScaler
    average: WeightedSum | None = None
    best: BestState | None = None
    epoch: int = 1
    done: int = 0
    counted: int = 0
    skipped_steps: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    history: History = field(default_factory=list)

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add a step's scalars.

        They are kept as tensors: reading a number would wait for the device at every step.
        """
        self.counted += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()

    def finish_epoch(self) -> Metrics:
        """Begin the next epoch; return the mean of each scalar over the steps of this one."""
        metrics = {name: float(value) / self.counted for name, value in self.sums.items()}
        self.epoch, self.done, self.counted, self.skipped_steps = self.epoch + 1, 0, 0, 0
        self.sums = {}
        return metrics

    def size(self) -> int:
        """Return the bytes that `tensors` will have at most."""
        module = sum(value.nbytes for value in self.module.state_dict().values())
        trained = sum(value.nbytes for _, value in trained_parameters(self.module))
        averaged = trained if self.average is not None else 0
        kept = module if self.best is not None else 0
        return int(module + trained + averaged + kept)

    def is_finite(self) -> bool:
        """Whether all numbers of the module are."""
        values = self.module.state_dict().values()
        return all(bool(torch.isfinite(value).all()) for value in values)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store, random states included."""
        tensors = {f"module.{key}": value for key, value in self.module.state_dict().items()}
        for name, value in trained_parameters(self.module):
            buffer = self.optimizer.state[value].get("momentum_buffer")
            if buffer is not None:  # as without momentum, or while fp16 has skipped every step
                tensors[f"momentum.{name}"] = buffer
        for name, total in (self.average.sums if self.average else {}).items():
            tensors[f"average.{name}"] = total
        for name, kept in (self.best.state if self.best else {}).items():
            tensors[f"best.{name}"] = kept
        tensors |= {f"sum.{name}": value for name, value in self.sums.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self._device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self._device)
        return tensors

    def metadata(self) -> dict[str, str]:
        """Return the rest of what is to be stored."""
        numbers = ("epoch", "done", "counted", "skipped_steps", "history")
        content: dict[str, Any] = {name: getattr(self, name) for name in numbers}
        return {"state": json.dumps({**content, "scaler": self.scaler.state_dict()})}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Take up a stored state."""
        content = json.loads(metadata["state"])
        self.scaler.load_state_dict(content.pop("scaler"))
        for name, value in content.items():
            setattr(self, name, value)
        self.module.load_state_dict(_under("module.", tensors))
        for name, parameter in trained_parameters(self.module):
            if f"momentum.{name}" in tensors:
                buffer = tensors[f"momentum.{name}"].to(self._device, copy=True)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
            if self.average is not None:
                self.average.sums[name].copy_(tensors[f"average.{name}"])
        if self.best is not None:
            scores = [epoch["score"] for epoch in self.history]
            self.best.resume(_under("best.", tensors), scores)
        self.sums = {
            name: value.to(self._device, copy=True)
            for name, value in _under("sum.", tensors).items()
        }
        torch.set_rng_state(tensors["random.cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the tensors whose names start with a prefix, by what follows it."""
    return {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}


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
