"""The one training loop: optimiser, schedule, mixed precision, averaging, resuming.

A training run is a module that owns what is trained, and a step that turns a
batch into a loss. Everything random is decided by (seed, epoch) outside, so a
run that was interrupted ends with the same weights as one that was not.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import SGD

from pd_core.artifacts import read_tensors, write_tensors
from pd_core.errors import BadParams
from pd_core.options import Precision

# For fp16. torch's own 65,536 is meant for losses near 1; distillation's is weighted by 1000, so
# that the first steps would overflow and be skipped.
INITIAL_LOSS_SCALE = 64.0

Metrics = dict[str, float]
Step = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
OnEpoch = Callable[[int, Metrics], None]
OnProgress = Callable[[int, int], None]
Score = Callable[[], float]


class Batches(Protocol):
    """A source of batches, the same ones whenever an epoch is asked for again."""

    @property
    def steps(self) -> int:
        """Batches per epoch."""

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield positions in the list of images (B,) and images (B, 3, H, W)."""


@runtime_checkable
class Skipping(Protocol):
    """Batches that may leave damaged pictures out."""

    @property
    def left_out(self) -> int:
        """Damaged pictures of the last epoch that was gone through."""


def left_out(batches: Batches) -> int:
    """Count what the last epoch left out; other batches than `Skipping` leave nothing out."""
    return batches.left_out if isinstance(batches, Skipping) else 0


def learning_rate(
    epoch: int, *, epochs: int, peak: float, warmup_epochs: int = 1, warmup_lr: float = 1e-5
) -> float:
    """Compute the learning rate of an epoch: constant at first, then half a cosine.

    The cosine starts at its peak after the warm-up but is still stretched over
    all epochs, so it never reaches zero (as published).

    Args:
        epoch: from 1.
        epochs: number of epochs.
        peak: the highest rate.
        warmup_epochs: how many epochs keep `warmup_lr`.
        warmup_lr: 1e-5 as published.
    """
    if epoch <= warmup_epochs:
        return warmup_lr
    return 0.5 * peak * (1 + math.cos(math.pi * (epoch - warmup_epochs - 1) / epochs))


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> SGD:
    """Make the optimiser of both stages: plain SGD, decay on everything trained."""
    return SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)


def set_rate(optimizer: SGD, rate: float) -> None:
    """Give an optimiser its learning rate for the coming epoch."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def gaussian_weights(epochs: int, *, mean: float, deviation: float) -> tuple[float, ...]:
    """Compute the weight of each epoch in PromptSRC's Gaussian averaging.

    PromptSRC, section 3.2.2 ("self-ensembling").

    Args:
        epochs: number of epochs; they are counted from 1.
        mean: the epoch with the largest weight, 15 of 20 as published.
        deviation: in epochs, 1 as published.

    Returns:
        One weight per epoch, with sum 1.

    Raises:
        BadParams: the deviation is not positive, or the mean is so far from all
            epochs that every weight vanishes.
    """
    if deviation <= 0:
        raise BadParams(f"averaging deviation = {deviation}; give a number above 0")
    raw = [math.exp(-0.5 * ((e - mean) / deviation) ** 2) for e in range(1, epochs + 1)]
    total = sum(raw)
    if total == 0:
        raise BadParams(
            f"averaging mean = {mean} with deviation {deviation} gives none of the {epochs} epochs"
            f" a weight; choose a mean between 1 and {epochs}"
        )
    return tuple(value / total for value in raw)


class WeightedSum:
    """Adds up a module's parameters over the epochs, each with its weight.

    Only what the module owns is averaged: frozen towers would only collect
    rounding errors.

    Attributes:
        sums: the running sums, by parameter name.
    """

    def __init__(self, module: nn.Module, weights: Sequence[float]) -> None:
        """Start at zero; `weights` has one entry per epoch."""
        self._weights = tuple(weights)
        self.sums = {name: torch.zeros_like(value) for name, value in _parameters(module)}

    @torch.no_grad()
    def add(self, epoch: int, module: nn.Module) -> None:
        """Add the parameters as they are after an epoch, counted from 1."""
        for name, value in _parameters(module):
            self.sums[name] += self._weights[epoch - 1] * value

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Put the sums in place of the parameters."""
        for name, value in _parameters(module):
            value.copy_(self.sums[name])


class BestState:
    """Remembers a module as it was after its best epoch.

    Attributes:
        state: the module's tensors, by name.
    """

    def __init__(self, module: nn.Module) -> None:
        """Remember the module as it is now, until an epoch is better."""
        self.state = _copy(module)
        self._score = -math.inf

    def offer(self, module: nn.Module, score: float) -> None:
        """Remember the module if it is better than all before; of equals the first is kept."""
        if score > self._score:
            self.state, self._score = _copy(module), score

    def resume(self, state: Mapping[str, Tensor], scores: Iterable[float]) -> None:
        """Go on from a stored state and the scores of the epochs so far."""
        self.state, self._score = dict(state), max(scores)


def fit(
    module: nn.Module,
    step: Step,
    batches: Batches,
    *,
    epochs: int,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup_epochs: int = 1,
    warmup_lr: float = 1e-5,
    averaging: Sequence[float] | None = None,
    score: Score | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = Precision.FP32,
    checkpoint: Path | None = None,
    run_key: str = "",
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
) -> list[Metrics]:
    """Train a module, in place.

    Args:
        module: all of its parameters are trained.
        step: from positions (B,) and images (B, 3, H, W) on the device to
            scalars by name; the one called "loss" is minimised.
        batches: where the batches of an epoch come from.
        epochs: number of epochs, counted from 1.
        lr: peak learning rate.
        momentum: of SGD.
        weight_decay: of SGD.
        warmup_epochs: epochs at `warmup_lr`.
        warmup_lr: learning rate of those.
        averaging: one weight per epoch; the module ends as the weighted sum of
            its states after each epoch. None keeps the last state.
        score: called after each epoch, with the module in evaluation mode; the
            module ends as it was after the epoch with the highest score.
        device: where the module is.
        precision: decides whether the loss is scaled; the step itself chooses
            what it computes in.
        checkpoint: file that keeps the state after every epoch. If it holds the
            state of this very run, training goes on from there.
        run_key: what identifies the run to its checkpoint.
        on_epoch: called after each epoch with the mean of every scalar, "lr" and, if there
            are any, "skipped" (damaged pictures that the epoch left out) and "score".
        on_progress: called after each step with steps done and steps in all.

    Returns:
        The metrics of each epoch.

    Raises:
        BadParams: fewer than one epoch, or the loss is no longer finite.
    """
    if epochs < 1:
        raise BadParams(f"epochs = {epochs}; give a number from 1 upwards")
    device = torch.device(device)
    optimizer = make_optimizer(
        module.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    scaler = torch.amp.GradScaler(
        device.type, init_scale=INITIAL_LOSS_SCALE, enabled=precision is Precision.FP16
    )
    average = WeightedSum(module, averaging) if averaging is not None else None
    best = BestState(module) if score is not None else None
    state = _Checkpoint(checkpoint, run_key, module, optimizer, scaler, average, best)
    history = state.resume()
    module.train()
    for epoch in range(len(history) + 1, epochs + 1):
        current = learning_rate(
            epoch, epochs=epochs, peak=lr, warmup_epochs=warmup_epochs, warmup_lr=warmup_lr
        )
        set_rate(optimizer, current)
        start = (epoch - 1) * batches.steps
        report = _progress(on_progress, start, epochs * batches.steps)
        metrics = _epoch(step, batches.epoch(epoch), optimizer, scaler, device, report)
        _check_finite(metrics, epoch)
        if average is not None:
            average.add(epoch, module)
        history.append({**metrics, "lr": current})
        if skipped := left_out(batches):
            history[-1]["skipped"] = skipped
        if score is not None and best is not None:
            module.eval()
            history[-1]["score"] = score()
            module.train()
            best.offer(module, history[-1]["score"])
        state.save(history)
        if on_epoch is not None:
            on_epoch(epoch, history[-1])
    if average is not None:
        average.copy_to(module)
    if best is not None:
        module.load_state_dict(best.state)
    module.eval()
    return history


def _epoch(
    step: Step,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: SGD,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    report: Callable[[int], None],
) -> Metrics:
    """Train for one epoch; return the mean of each scalar over its steps."""
    sums: dict[str, Tensor] = {}
    done = 0
    for done, (indices, images) in enumerate(batches, start=1):
        values = step(indices.to(device), images.to(device, non_blocking=True))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(scaler.scale(values["loss"]))
        scaler.step(optimizer)
        scaler.update()
        for name, value in values.items():
            # Kept as tensors: reading a number here would wait for the device at every step.
            sums[name] = sums.get(name, 0) + value.detach().float()
        report(done)
    return {name: float(value) / done for name, value in sums.items()}


def _check_finite(metrics: Metrics, epoch: int) -> None:
    if not metrics or not math.isfinite(metrics["loss"]):
        loss = metrics.get("loss", "missing (no full batch)")
        raise BadParams(
            f"the loss of epoch {epoch} is {loss};"
            " lower the learning rate or the loss weights, or use fp32"
        )


def _progress(on_progress: OnProgress | None, start: int, total: int) -> Callable[[int], None]:
    def report(done: int) -> None:
        if on_progress is not None:
            on_progress(start + done, total)

    return report


def _parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, value) for name, value in module.named_parameters() if value.requires_grad]


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the tensors whose names start with a prefix, by what follows it."""
    return {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}


class _Checkpoint:
    """Everything that an interrupted run needs to go on exactly as it was."""

    def __init__(
        self,
        path: Path | None,
        run_key: str,
        module: nn.Module,
        optimizer: SGD,
        scaler: torch.amp.GradScaler,
        average: WeightedSum | None,
        best: BestState | None,
    ) -> None:
        self._path = path
        self._run_key = run_key
        self._module = module
        self._optimizer = optimizer
        self._scaler = scaler
        self._average = average
        self._best = best

    def save(self, history: list[Metrics]) -> None:
        if self._path is None:
            return
        tensors = {f"module.{key}": value for key, value in self._module.state_dict().items()}
        for name, value in _parameters(self._module):
            buffer = self._optimizer.state[value].get("momentum_buffer")
            if buffer is not None:  # as without momentum, or while fp16 has skipped every step
                tensors[f"momentum.{name}"] = buffer
        for name, total in (self._average.sums if self._average else {}).items():
            tensors[f"average.{name}"] = total
        for name, kept in (self._best.state if self._best else {}).items():
            tensors[f"best.{name}"] = kept
        metadata = {
            "run": self._run_key,
            "history": json.dumps(history),
            "scaler": json.dumps(self._scaler.state_dict()),
        }
        write_tensors(self._path, tensors, metadata)

    def resume(self) -> list[Metrics]:
        """Restore the state of this run, if there is one; return its history."""
        if self._path is None or not self._path.is_file():
            return []
        tensors, metadata = read_tensors(
            self._path, what="checkpoint", remedy="delete it to start again"
        )
        if metadata.get("run") != self._run_key:
            return []
        self._module.load_state_dict(_under("module.", tensors))
        for name, value in _parameters(self._module):
            if f"momentum.{name}" in tensors:
                buffer = tensors[f"momentum.{name}"].to(value.device)
                self._optimizer.state[value]["momentum_buffer"] = buffer
            if self._average is not None:
                self._average.sums[name].copy_(tensors[f"average.{name}"])
        self._scaler.load_state_dict(json.loads(metadata["scaler"]))
        history: list[Metrics] = json.loads(metadata["history"])
        if self._best is not None:
            self._best.resume(_under("best.", tensors), [epoch["score"] for epoch in history])
        return history
