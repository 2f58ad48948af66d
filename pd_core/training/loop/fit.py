"""The one training loop: optimiser, mixed precision, averaging, checkpoints.

A training is a module that owns what is trained, and a step that computes a batch's loss. All
randomness is determined by (seed, epoch) outside, so an interrupted training ends with the same
weights as one that was not. Several processes may train together (see `distributed`): each gets
its part of every batch, and its step returns the scalars of the whole batch.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD

from pd_core.core.artifacts import write_json
from pd_core.core.atomic import write_folder
from pd_core.core.config import Compute
from pd_core.core.errors import BadParams, Diverged, Interrupted
from pd_core.core.hooks import NO_HOOKS, Hooks, Metrics
from pd_core.core.options import OnNonFinite, Precision
from pd_core.data.loading.images import Batch
from pd_core.training.loop.checkpoints import Checkpoints, History, TrainingState
from pd_core.training.loop.config import OptimConfig
from pd_core.training.loop.distributed import average_gradients, from_first, gathered, is_first
from pd_core.training.loop.feature_cache import FeatureCache
from pd_core.training.loop.optimizer import make_sgd
from pd_core.training.loop.schedule import BestState, WeightedSum, learning_rate
from pd_core.training.loop.transfer import transferred

EVERY = 50
"""Steps between two checks of the losses: reading a loss waits for the device."""

# For fp16. torch's own 65,536 is meant for losses near 1; distillation's is weighted by 1000, so
# that the first steps would overflow and be skipped.
INITIAL_LOSS_SCALE = 64.0

_NAMED = 16  # images in a message, at most

Step = Callable[[Batch], Mapping[str, Tensor]]
Score = Callable[[], float]


class Batches(Protocol):
    """A source of batches, which are the same whenever an epoch is read again."""

    @property
    def steps(self) -> int:
        """Batches per epoch."""

    @property
    def corrupt(self) -> set[int]:
        """Positions of the corrupt images so far, which are left out."""

    @property
    def left_out(self) -> int:
        """Number of corrupt images in the last epoch that was read."""

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch without the first `start` ones.

        Corrupt images make a batch smaller, or empty.
        """

    def names(self, indices: Sequence[int]) -> list[str]:
        """Return the names of images by their positions in the list, for messages."""


@dataclass(frozen=True)
class Run:
    """The surroundings of a training.

    Attributes:
        compute: seed, device, precision and the like.
        hooks: callbacks.
        checkpoints: store the state; without them a training that is stopped starts anew.
        features: cache of frozen towers' features, if any.
        is_rehearsal: a student that is no model is noted, not refused; for random weights.
    """

    compute: Compute
    hooks: Hooks = NO_HOOKS
    checkpoints: Checkpoints | None = None
    features: FeatureCache | None = None
    is_rehearsal: bool = False

    @property
    def device(self) -> torch.device:
        """Device of the training."""
        return torch.device(self.compute.device)

    def required_features(self) -> FeatureCache:
        """Return the feature cache.

        Raises:
            BadParams: there is none.
        """
        if self.features is None:
            raise BadParams(
                "cached features need a feature cache; give one, or compute them online"
            )
        return self.features


class _Model(Protocol):
    def save(self, path: Path) -> None: ...


def store(model: _Model, history: History, file: Path, run: Run) -> None:
    """Write a model and, beside it, `history.json`; then delete the checkpoints."""
    if not is_first():
        return
    with write_folder(file.parent) as folder:
        model.save(folder / file.name)
        write_json(folder / "history.json", history)
    if run.checkpoints is not None:
        run.checkpoints.remove()


def make_optimizer(
    parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float
) -> SGD:
    """Make the optimiser of both stages: plain SGD, decay on everything trained."""
    return make_sgd(list(parameters), lr=lr, momentum=momentum, weight_decay=weight_decay)


def set_rate(optimizer: SGD, rate: float) -> None:
    """Set the learning rate of an optimiser."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def fit(
    module: nn.Module,
    step: Step,
    batches: Batches,
    config: OptimConfig,
    run: Run,
    *,
    averaging: Sequence[float] | None = None,
    score: Score | None = None,
    least_batch: int = 1,
) -> History:
    """Train a module, in place.

    Args:
        module: all of its parameters are trained.
        step: from a batch on the device to scalars by name, of the batch of all processes; the
            one called "loss" is minimised. The precision is up to it.
        batches: source of the batches.
        config: of optimiser and schedule.
        run: the surroundings. If its checkpoints hold a state of this training, it is resumed.
        averaging: one weight per epoch; the module ends as the weighted sum of its states after
            each epoch. None keeps the last state.
        score: called after each epoch, with the module in evaluation mode; the module ends with
            its state after the epoch with the highest score.
        least_batch: smaller batches are skipped.

    Returns:
        The metrics of each epoch: the mean of every scalar, "lr" and, if there are any, "skipped"
        (corrupt images), "non_finite" (batches left out) and "score".

    Raises:
        BadParams: an epoch without any batch.
        Diverged: a loss is not finite, or more than half of an epoch's are.
        Interrupted: the training was stopped; its state is saved.
        NoSpace: there is no room for checkpoints.
    """
    optimizer = make_optimizer(
        module.parameters(),
        lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay,
    )  # fmt: skip
    scaler = torch.amp.GradScaler(
        run.device.type,
        init_scale=INITIAL_LOSS_SCALE,
        enabled=run.compute.precision is Precision.FP16,
    )
    average = WeightedSum(module, averaging) if averaging is not None else None
    best = BestState(module) if score is not None else None
    state = TrainingState(module, optimizer, scaler, average, best)
    loop = _Loop(step, batches, state, config, run, least_batch)
    loop.resume()
    run.hooks.on_start(module)
    history = state.history
    for number, metrics in enumerate(history, start=1):
        run.hooks.on_epoch(number, metrics)
    module.train()
    for epoch in range(state.epoch, config.epochs + 1):
        rate = learning_rate(
            epoch, epochs=config.epochs, peak=config.lr,
            warmup_epochs=config.warmup_epochs, warmup_lr=config.warmup_lr,
        )  # fmt: skip
        set_rate(optimizer, rate)
        loop.run_epoch()
        metrics = loop.finish_epoch()
        if average is not None:
            average.add(epoch, module)
        history.append({**metrics, "lr": rate})
        if score is not None and best is not None:
            module.eval()
            history[-1]["score"] = from_first(score)
            module.train()
            best.offer(module, history[-1]["score"])
        loop.save()
        run.hooks.on_epoch(epoch, history[-1])
        loop.stop_if_requested()
    if average is not None:
        average.copy_to(module)
    if best is not None:
        module.load_state_dict(best.state)
    module.eval()
    return history


@dataclass
class _LossWatch:
    """Checks the losses of many steps at a time; reports their mean, or names the bad batch."""

    batches: Batches
    run: Run
    waiting: list[tuple[int, int, Tensor, Tensor]] = field(default_factory=list)

    def add(self, epoch: int, step: int, indices: Tensor, loss: Tensor) -> None:
        """Add a step's batch (B,) and loss, a scalar; check all if it is time.

        Raises:
            Diverged: a loss is not finite.
        """
        self.waiting.append((epoch, step, indices, loss.detach()))
        if len(self.waiting) >= EVERY:
            self.check()

    def check(self) -> None:
        """Check the losses since the last time.

        Raises:
            Diverged: one is not finite.
        """
        if not self.waiting:
            return
        values = torch.stack([loss for *_, loss in self.waiting]).tolist()
        for (epoch, step, indices, _), value in zip(self.waiting, values, strict=True):
            if not math.isfinite(value):
                raise self.error(f"the loss is {value}", epoch, step, indices)
        epoch, step, *_ = self.waiting[-1]
        self.waiting.clear()
        self.run.hooks.on_loss((epoch - 1) * self.batches.steps + step, fmean(values))

    def error(self, what: str, epoch: int, step: int, indices: Tensor) -> Diverged:
        """Make the error for a batch after which the numbers are not finite."""
        names = self.batches.names(indices[:_NAMED].tolist())
        more = f" and {len(indices) - _NAMED} more" if len(indices) > _NAMED else ""
        newest = self.run.checkpoints.newest() if self.run.checkpoints is not None else None
        good = f"'{newest}'" if newest else "none"
        return Diverged(
            f"{what} at epoch {epoch}, step {step}, on {', '.join(names)}{more};"
            f" last good checkpoint: {good}; lower lr or the loss weights, set max_grad_norm, use"
            " fp32, or leave such batches out by on_non_finite: skip"
        )


@dataclass
class _Loop:
    """Advances a training state step by step."""

    step: Step
    batches: Batches
    state: TrainingState
    config: OptimConfig
    run: Run
    least_batch: int
    added: int = 0  # batches whose gradients wait for the step

    def __post_init__(self) -> None:
        self.checkpoints = self.run.checkpoints
        self.skips = self.config.on_non_finite is OnNonFinite.SKIP
        self.watch = _LossWatch(self.batches, self.run)

    def run_epoch(self) -> None:
        """Train for the rest of the state's epoch."""
        state, steps = self.state, self.batches.steps
        source = self.config.source_epoch(state.epoch)
        batches = self.batches.epoch(source, start=state.done)
        for indices, batch in transferred(batches, self.run.device):
            state.done += 1
            shown = gathered(indices)
            if len(shown) < self.least_batch:
                continue
            self._train_on(batch, shown)
            done = (state.epoch - 1) * steps + state.done
            self.run.hooks.on_progress(done, self.config.epochs * steps)
            # Between two steps of the optimiser only, since gradients are not stored.
            if self.added == 0 and self.checkpoints is not None and self.checkpoints.due():
                self.save(shown)
                self.stop_if_requested()

    def finish_epoch(self) -> Metrics:
        """Return the epoch's metrics, and begin the next epoch."""
        if self.added and not self._update():
            self.state.skipped_steps += 1
        self.watch.check()
        state = self.state
        if state.counted == 0:
            raise BadParams(
                f"epoch {state.epoch} has no batch of {self.least_batch} or more intact images;"
                " lower batch_size, or give more images"
            )
        counts: Metrics = {
            "skipped": self.batches.left_out, "non_finite": state.skipped_steps
        }  # fmt: skip
        metrics = state.finish_epoch()
        return metrics | {name: count for name, count in counts.items() if count}

    def save(self, indices: Tensor | None = None) -> None:
        """Store the state, if its numbers are finite; `indices` are those of the last batch."""
        if self.checkpoints is None:
            return
        self.watch.check()
        state = self.state
        if not state.is_finite():
            last = torch.empty(0, dtype=torch.int64) if indices is None else indices
            raise self.watch.error("a weight is not finite", state.epoch, state.done, last)
        damaged = json.dumps(sorted(self.batches.corrupt))
        metadata = {**state.metadata(), "damaged": damaged}
        self.checkpoints.save(state.epoch, state.done, state.tensors(), metadata)

    def resume(self) -> None:
        """Restore the newest matching checkpoint, if any."""
        if self.checkpoints is None:
            return
        self.checkpoints.require_space(self.state.size())
        checkpoint = self.checkpoints.latest()
        if checkpoint is not None:
            tensors, metadata = checkpoint
            self.state.restore(tensors, metadata)
            self.batches.corrupt.update(json.loads(metadata["damaged"]))

    def stop_if_requested(self) -> None:
        """Raise `Interrupted` if the training is to stop; its state has been stored."""
        if self.checkpoints is not None and self.checkpoints.stop_requested():
            raise Interrupted(
                f"interrupted at epoch {self.state.epoch}, after {self.state.done} of its"
                f" {self.batches.steps} steps; the state is in"
                f" '{self.checkpoints.newest()}': start the same command again to go on"
            )

    def _train_on(self, batch: Batch, shown: Tensor) -> None:
        """Train on this process's part of a batch; `shown` are the positions of the whole one."""
        values = self.step(batch)
        if self.added == 0:
            self.state.optimizer.zero_grad(set_to_none=True)
        if self.skips and not math.isfinite(values["loss"].detach()):
            self._leave_out(shown, values["loss"])
            return
        torch.autograd.backward(self.state.scaler.scale(values["loss"] / self.config.accumulate))
        self.added += 1
        if self.added == self.config.accumulate and not self._update():
            self._leave_out(shown, values["loss"])
            return
        self.state.add(values)
        self.watch.add(self.state.epoch, self.state.done, shown, values["loss"])

    def _update(self) -> bool:
        """Take a step of the optimiser; return False if the gradients could not be used."""
        self.added = 0
        average_gradients(self.state.module.parameters())
        if not self._clip():
            return False
        self.state.scaler.step(self.state.optimizer)
        self.state.scaler.update()
        return True

    def _clip(self) -> bool:
        """Scale the gradients down; return False if they cannot be used."""
        scaler = self.state.scaler
        if self.config.max_grad_norm is None and not self.skips:
            return True
        scaler.unscale_(self.state.optimizer)
        largest = math.inf if self.config.max_grad_norm is None else self.config.max_grad_norm
        norm = nn.utils.clip_grad_norm_(self.state.module.parameters(), largest)
        # With fp16 the scaler leaves such a step out itself, and lowers its scale.
        return not self.skips or scaler.is_enabled() or math.isfinite(norm)

    def _leave_out(self, indices: Tensor, loss: Tensor) -> None:
        state = self.state
        state.skipped_steps += 1
        if 2 * state.skipped_steps > self.batches.steps:
            raise self.watch.error(
                f"the loss is {float(loss.detach())}, and more than half of the epoch's batches"
                " were left out,",
                state.epoch, state.done, indices,
            )  # fmt: skip
