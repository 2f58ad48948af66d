"""Noticing that a training's numbers are no longer finite."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from pd_core.core.errors import Diverged

EVERY = 50
"""Steps between two looks: each look waits for the device."""

OnLook = Callable[[int, int, float], None]

_NAMED = 16  # pictures in a message, at most


class LossWatch:
    """Looks at the losses of many steps at a time, and knows which batch each belongs to."""

    def __init__(
        self,
        names: Callable[[Sequence[int]], list[str]],
        newest: Callable[[], Path | None] = lambda: None,
        on_look: OnLook = lambda *_: None,
    ) -> None:
        """Start watching.

        Args:
            names: of pictures, by their positions in the list.
            newest: the newest checkpoint.
            on_look: called for each look that finds nothing wrong, with epoch and step of the last
                loss looked at, and the mean of those since the look before.
        """
        self._names = names
        self._newest = newest
        self._on_look = on_look
        self._waiting: list[tuple[int, int, Tensor, Tensor]] = []

    def note(self, epoch: int, step: int, indices: Tensor, loss: Tensor) -> None:
        """Take note of a step's batch (B,) and loss, a scalar; look if it is time.

        Raises:
            Diverged: as in `look`.
        """
        self._waiting.append((epoch, step, indices, loss.detach()))
        if len(self._waiting) >= EVERY:
            self.look()

    def look(self) -> None:
        """Look at the losses since the last time.

        Raises:
            Diverged: one is not finite.
        """
        if not self._waiting:
            return
        values = torch.stack([loss for *_, loss in self._waiting]).tolist()
        for (epoch, step, indices, _), value in zip(self._waiting, values, strict=True):
            if not math.isfinite(value):
                raise self.error(f"the loss is {value}", epoch, step, indices)
        last_epoch, last_step, *_ = self._waiting[-1]
        self._waiting.clear()
        self._on_look(last_epoch, last_step, fmean(values))

    def error(self, what: str, epoch: int, step: int, indices: Tensor) -> Diverged:
        """Make the error for a batch after which the numbers are not finite."""
        names = self._names(indices[:_NAMED].tolist())
        more = f" and {len(indices) - _NAMED} more" if len(indices) > _NAMED else ""
        newest = self._newest()
        good = f"'{newest}'" if newest else "none"
        return Diverged(
            f"{what} at epoch {epoch}, step {step}, on {', '.join(names)}{more};"
            f" last good checkpoint: {good}; lower lr or the loss weights, set max_grad_norm, use"
            " fp32, or leave such batches out by on_non_finite: skip"
        )
