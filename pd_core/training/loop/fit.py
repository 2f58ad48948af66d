"""The one training loop: optimiser, mixed precision, averaging, checkpoints.

A training run is a module that owns what is trained, and a step that turns a
batch into a loss. Everything random is decided by (seed, epoch) outside, so a
run that was interrupted ends with the same weights as one that was not. Several
processes may train together (see `parallel`): each is given its part of every
batch, and its step returns the scalars of the whole batch.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD

from pd_core.core.errors import BadParams, Interrupted
from pd_core.core.options import OnNonFinite, Precision
from pd_core.models.precision import to_device
from pd_core.training.loop.checkpoints import Checkpoints, Metrics, TrainingState
from pd_core.training.loop.distributed import average_gradients, from_first, gathered
from pd_core.training.loop.divergence import LossWatch
from pd_core.training.loop.schedule import learning_rate
from pd_core.training.loop.weight_averaging import BestState, WeightedSum

# For fp16. torch's own 65,536 is meant for losses near 1; distillation's is weighted by 1000, so
# that the first steps would overflow and be skipped.
INITIAL_LOSS_SCALE = 64.0

Step = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
OnEpoch = Callable[[int, Metrics], None]
OnProgress = Callable[[int, int], None]
OnLoss = Callable[[int, float], None]
Score = Callable[[], float]


class Batches(Protocol):
    """A source of batches, the same ones whenever an epoch is asked for again."""

    @property
    def steps(self) -> int:
        """Batches per epoch."""

    @property
    def damaged(self) -> set[int]:
        """Positions of the images found damaged so far, to be left out."""

    @property
    def left_out(self) -> int:
        """Damaged images of the last epoch that was gone through."""

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield positions in the list of images (B,) and images (B, 3, H, W).

        The first `start` batches of the epoch are left out. Damaged images make a batch smaller,
        or empty.
        """

    def names(self, indices: Sequence[int]) -> list[str]:
        """Return the names of images by their positions in the list, for messages."""


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
    max_grad_norm: float | None = None,
    on_non_finite: OnNonFinite = OnNonFinite.FAIL,
    least_batch: int = 1,
    accumulate: int = 1,
    averaging: Sequence[float] | None = None,
    score: Score | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = Precision.FP32,
    checkpoints: Checkpoints | None = None,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
    on_loss: OnLoss | None = None,
) -> list[Metrics]:
    """Train a module, in place.

    Args:
        module: all of its parameters are trained.
        step: from positions (B,) and images (B, 3, H, W) on the device to
            scalars by name, of the batch of all processes; the one called "loss" is minimised.
        batches: where the batches of an epoch come from.
        epochs: number of epochs, counted from 1.
        lr: peak learning rate.
        momentum: of SGD.
        weight_decay: of SGD.
        warmup_epochs: epochs at `warmup_lr`.
        warmup_lr: learning rate of those.
        max_grad_norm: gradients are scaled down to this norm; None leaves them.
        on_non_finite: what to do about a batch whose loss is not finite.
        least_batch: batches with fewer images are passed over.
        accumulate: batches whose gradients are averaged for one step of the optimiser; those left
            over at the end of an epoch make a smaller step of their own.
        averaging: one weight per epoch; the module ends as the weighted sum of
            its states after each epoch. None keeps the last state.
        score: called after each epoch, with the module in evaluation mode; the
            module ends as it was after the epoch with the highest score.
        device: where the module is.
        precision: decides whether the loss is scaled; the step itself chooses
            what it computes in.
        checkpoints: keep the state. If they hold one of this very run, training
            goes on from there.
        on_epoch: called for each epoch, those before a checkpoint too, with the mean of every
            scalar, "lr" and, if there are any, "skipped" (damaged pictures that were left out),
            "non_finite" (batches that were) and "score".
        on_progress: called after each step with steps done and steps in all.
        on_loss: called every `finite.EVERY` steps, before a checkpoint and at an epoch's end with
            steps done and the mean loss of those since the last call.

    Returns:
        The metrics of each epoch.

    Raises:
        BadParams: fewer than one epoch, or one without any batch.
        Diverged: a loss is not finite, or more than half of an epoch's are.
        Interrupted: the run was told to end; its state is saved.
        NoSpace: there is no room for checkpoints.
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
    loop = _Loop(
        step=step,
        batches=batches,
        state=TrainingState(module, optimizer, scaler, average, best),
        checkpoints=checkpoints,
        device=device,
        max_grad_norm=max_grad_norm,
        skips=on_non_finite is OnNonFinite.SKIP,
        least_batch=least_batch,
        accumulate=accumulate,
        on_loss=on_loss,
    )
    loop.resume()
    history = loop.state.history
    for number, metrics in enumerate(history, start=1):
        if on_epoch is not None:
            on_epoch(number, metrics)
    module.train()
    for epoch in range(loop.state.epoch, epochs + 1):
        current = learning_rate(
            epoch, epochs=epochs, peak=lr, warmup_epochs=warmup_epochs, warmup_lr=warmup_lr
        )
        set_rate(optimizer, current)
        loop.run_epoch(_progress(on_progress, epoch, epochs, batches.steps))
        metrics = loop.finish_epoch()
        if average is not None:
            average.add(epoch, module)
        history.append({**metrics, "lr": current})
        if score is not None and best is not None:
            module.eval()
            history[-1]["score"] = from_first(score)
            module.train()
            best.offer(module, history[-1]["score"])
        loop.save()
        if on_epoch is not None:
            on_epoch(epoch, history[-1])
        loop.end_if_told()
    if average is not None:
        average.copy_to(module)
    if best is not None:
        module.load_state_dict(best.state)
    module.eval()
    return history


class _Loop:
    """What is done to a training state, step by step."""

    def __init__(
        self,
        *,
        step: Step,
        batches: Batches,
        state: TrainingState,
        checkpoints: Checkpoints | None,
        device: torch.device,
        max_grad_norm: float | None,
        skips: bool,
        least_batch: int,
        accumulate: int,
        on_loss: OnLoss | None,
    ) -> None:
        self.state = state
        self._step = step
        self._batches = batches
        self._checkpoints = checkpoints
        self._device = device
        self._max_grad_norm = max_grad_norm
        self._skips = skips
        self._least_batch = least_batch
        self._accumulate = accumulate
        self._on_loss = on_loss
        self._added = 0  # batches whose gradients wait for the step
        self._watch = LossWatch(
            batches.names,
            checkpoints.newest if checkpoints is not None else lambda: None,
            self._report_loss,
        )

    def run_epoch(self, report: Callable[[int], None]) -> None:
        """Train for the rest of the state's epoch."""
        state = self.state
        for indices, images in self._batches.epoch(state.epoch, start=state.done):
            state.done += 1
            shown = gathered(indices)
            if len(shown) < self._least_batch:
                continue
            self._train_on(indices, images, shown)
            report(state.done)
            # Between two steps of the optimiser only, since gradients are not stored.
            if self._added == 0 and self._checkpoints is not None and self._checkpoints.due():
                self.save(shown)
                self.end_if_told()

    def finish_epoch(self) -> Metrics:
        """Return the epoch's metrics; the next one begins."""
        if self._added and not self._update():
            self.state.skipped_steps += 1
        self._watch.look()
        state = self.state
        if state.counted == 0:
            raise BadParams(
                f"epoch {state.epoch} has no batch of {self._least_batch} or more intact images;"
                " lower batch_size, or give more images"
            )
        counts: Metrics = {
            "skipped": self._batches.left_out, "non_finite": state.skipped_steps
        }  # fmt: skip
        metrics = state.finish_epoch()
        return metrics | {name: count for name, count in counts.items() if count}

    def save(self, indices: Tensor | None = None) -> None:
        """Store the state, if its numbers are finite; `indices` are those of the last batch."""
        if self._checkpoints is None:
            return
        self._watch.look()
        state = self.state
        if not state.is_finite():
            seen = torch.empty(0, dtype=torch.int64) if indices is None else indices
            raise self._watch.error("a weight is not finite", state.epoch, state.done, seen)
        damaged = json.dumps(sorted(self._batches.damaged))
        metadata = {**state.metadata(), "damaged": damaged}
        self._checkpoints.save(state.epoch, state.done, state.tensors(), metadata)

    def resume(self) -> None:
        """Take up the state of this very run, if there is one."""
        if self._checkpoints is None:
            return
        self._checkpoints.require_space(self.state.size())
        found = self._checkpoints.latest()
        if found is not None:
            tensors, metadata = found
            self.state.restore(tensors, metadata)
            self._batches.damaged.update(json.loads(metadata["damaged"]))

    def end_if_told(self) -> None:
        """Raise `Interrupted` if the run is to end now; its state has been stored."""
        if self._checkpoints is not None and self._checkpoints.interrupted():
            raise Interrupted(
                f"told to end at epoch {self.state.epoch}, after {self.state.done} of its"
                f" {self._batches.steps} steps; the state is in"
                f" '{self._checkpoints.newest()}': start the same command again to go on"
            )

    def _train_on(self, indices: Tensor, images: Tensor, shown: Tensor) -> None:
        """Train on this process's part of a batch; `shown` are the positions of the whole one."""
        values = self._step(to_device(indices, self._device), to_device(images, self._device))
        if self._added == 0:
            self.state.optimizer.zero_grad(set_to_none=True)
        if self._skips and not math.isfinite(values["loss"].detach()):
            self._leave_out(shown, values["loss"])
            return
        torch.autograd.backward(self.state.scaler.scale(values["loss"] / self._accumulate))
        self._added += 1
        if self._added == self._accumulate and not self._update():
            self._leave_out(shown, values["loss"])
            return
        self.state.add(values)
        self._watch.note(self.state.epoch, self.state.done, shown, values["loss"])

    def _update(self) -> bool:
        """Let the optimiser take a step; return whether the gradients could be used."""
        self._added = 0
        average_gradients(self.state.module.parameters())
        if not self._clipped():
            return False
        self.state.scaler.step(self.state.optimizer)
        self.state.scaler.update()
        return True

    def _clipped(self) -> bool:
        """Scale the gradients down; return whether they can be used."""
        scaler = self.state.scaler
        if self._max_grad_norm is None and not self._skips:
            return True
        scaler.unscale_(self.state.optimizer)
        largest = math.inf if self._max_grad_norm is None else self._max_grad_norm
        norm = nn.utils.clip_grad_norm_(self.state.module.parameters(), largest)
        # With fp16 the scaler leaves such a step out itself, and lowers its scale.
        return not self._skips or scaler.is_enabled() or math.isfinite(norm)

    def _report_loss(self, epoch: int, step: int, mean: float) -> None:
        if self._on_loss is not None:
            self._on_loss((epoch - 1) * self._batches.steps + step, mean)

    def _leave_out(self, indices: Tensor, loss: Tensor) -> None:
        self.state.skipped_steps += 1
        if 2 * self.state.skipped_steps > self._batches.steps:
            raise self._watch.error(
                f"the loss is {float(loss.detach())}, and more than half of the epoch's batches"
                " were left out,",
                self.state.epoch,
                self.state.done,
                indices,
            )


def _progress(
    on_progress: OnProgress | None, epoch: int, epochs: int, steps: int
) -> Callable[[int], None]:
    def report(done: int) -> None:
        if on_progress is not None:
            on_progress((epoch - 1) * steps + done, epochs * steps)

    return report
