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
from pd_core.core.hooks import NO_HOOKS, Metrics, OnNote
from pd_core.training.loop.distributed import any_of, from_first, is_first
from pd_core.training.loop.schedule import BestState, WeightedSum, trained_parameters

History = list[Metrics]


@dataclass
class TrainingState:
    """Everything that changes during a training."""

    module: nn.Module
    optimizer: SGD
    scaler: torch.amp.GradScaler
    average: WeightedSum | None = None  # over the epochs
    best: BestState | None = None  # so far, if an epoch is selected
    epoch: int = 1  # the current one
    done: int = 0  # batches of it that were read
    counted: int = 0  # batches of it that were trained on
    skipped_steps: int = 0  # batches of it whose loss or gradient was not finite
    sums: dict[str, Tensor] = field(default_factory=dict)  # of each scalar over its steps
    history: History = field(default_factory=list)  # metrics of the epochs before

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add a step's scalars; as tensors, since reading a number would wait for the device."""
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
        """Return the upper limit of the bytes in `tensors`."""
        module = sum(value.nbytes for value in self.module.state_dict().values())
        trained = sum(value.nbytes for _, value in trained_parameters(self.module))
        averaged = trained if self.average is not None else 0
        best = module if self.best is not None else 0
        return int(module + trained + averaged + best)

    def is_finite(self) -> bool:
        """Return True if all numbers of the module are finite."""
        values = self.module.state_dict().values()
        return all(bool(torch.isfinite(value).all()) for value in values)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint, random states included."""
        tensors = {f"module.{key}": value for key, value in self.module.state_dict().items()}
        for name, value in trained_parameters(self.module):
            buffer = self.optimizer.state[value].get("momentum_buffer")
            if buffer is not None:  # as without momentum, or while fp16 has skipped every step
                tensors[f"momentum.{name}"] = buffer
        for name, total in (self.average.sums if self.average else {}).items():
            tensors[f"average.{name}"] = total
        for name, tensor in (self.best.state if self.best else {}).items():
            tensors[f"best.{name}"] = tensor
        tensors |= {f"sum.{name}": value for name, value in self.sums.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self._device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self._device)
        return tensors

    def metadata(self) -> dict[str, str]:
        """Return the metadata of a checkpoint: counters, history and loss scale."""
        names = ("epoch", "done", "counted", "skipped_steps", "history")
        content: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {"state": json.dumps({**content, "scaler": self.scaler.state_dict()})}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Restore the state from a checkpoint."""
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
    """Return the tensors whose names have a prefix, by the rest of the name."""
    return {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}


KEPT = 2
"""Checkpoints that stay on disk: an older one too, in case the newest is corrupt."""

_NAME = re.compile(r"checkpoint-\d+-\d+\.safetensors")
_ASIDE = "set-aside"
_KEY = "run"


@dataclass
class Checkpoints:
    """The checkpoints of one training.

    Attributes:
        folder: their folder, outside the outputs of the stage.
        key: hash of all that determines the weights: code, data, parameters. Only checkpoints
            with the same key are restored.
        minutes: one is due after each epoch, and within an epoch after so many minutes.
        interrupted: returns True when the training is to save its state and stop.
        on_note: called with a line for each checkpoint that is restored or cannot be.
    """

    folder: Path
    key: str
    minutes: float = 5.0
    interrupted: Callable[[], bool] = NO_HOOKS.interrupted
    on_note: OnNote = NO_HOOKS.on_note
    _last: float = field(default_factory=lambda: time.monotonic(), init=False)

    def due(self) -> bool:
        """Return True if it is time for a checkpoint within an epoch, in any process."""
        overdue = time.monotonic() - self._last >= 60 * self.minutes
        return any_of(self.interrupted() or overdue)

    def stop_requested(self) -> bool:
        """Return True if the training is to save its state and stop, in any process."""
        return any_of(self.interrupted())

    def newest(self) -> Path | None:
        """Return the file of the newest checkpoint, if any."""
        return max(self._files(), default=None)

    def require_space(self, size: int) -> None:
        """Check that the disk has room for the checkpoints, each of `size` bytes.

        Raises:
            NoSpace: it has not.
        """
        # One more than are kept: an old one is deleted after the new one is written.
        check_space(self.folder, (KEPT + 1) * size, "training (checkpoints)")

    def save(
        self, epoch: int, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> None:
        """Write a checkpoint, and delete all but the last two.

        Args:
            epoch: the current one.
            step: batches of it that are done.
            tensors: of any shapes.
            metadata: strings.

        Raises:
            PdError: the folder cannot be written; earlier checkpoints are intact.
        """
        if is_first():
            path = self.folder / f"checkpoint-{epoch:06}-{step:09}.safetensors"
            write_tensors(path, tensors, {**metadata, _KEY: self.key})
            for old in self._files()[:-KEPT]:
                old.unlink()
        self._last = time.monotonic()

    def latest(self) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Read the newest intact checkpoint.

        Those of another run are set aside; so are corrupt ones, if no other is left.

        Returns:
            Tensors and metadata as given to `save`; None if the training starts anew.
        """
        return from_first(self._read_newest)

    def remove(self) -> None:
        """Delete the checkpoints, once the result of the training is written."""
        for entry in self.folder.glob("*"):
            if entry.name != _ASIDE:
                entry.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _read_newest(self) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        for path in reversed(self._files()):
            try:
                tensors, metadata = read_tensors(path, what="checkpoint", remedy="it is not used")
            except BadArtifact as error:
                self.on_note(str(error))
                continue
            if metadata.pop(_KEY, None) != self.key:
                self._set_aside("of other code, data or parameters")
                return None
            self.on_note(f"continues from checkpoint '{path}'")
            return tensors, metadata
        if self._files():
            self._set_aside("damaged")
        return None

    def _files(self) -> list[Path]:
        """Return the files, oldest first."""
        return sorted(path for path in self.folder.glob("*") if _NAME.fullmatch(path.name))

    def _set_aside(self, reason: str) -> None:
        aside = self.folder / _ASIDE
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for path in self._files():
            path.rename(aside / path.name)
        self.on_note(f"checkpoints {reason} are set aside in '{aside}'; training starts anew")
