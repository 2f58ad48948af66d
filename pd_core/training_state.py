"""Where a training stands: everything that it needs to go on exactly as it was."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from pd_core.averaging import BestState, WeightedSum, trained_parameters

Metrics = dict[str, float]


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
    history: list[Metrics] = field(default_factory=list)

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
