"""Schedules over the epochs: the learning rate, the weighted sum of states, the best epoch."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pd_core.core.errors import BadParams


def learning_rate(
    epoch: int, *, epochs: int, peak: float, warmup_epochs: int, warmup_lr: float
) -> float:
    """Compute the learning rate of an epoch: a constant warm-up, then half a cosine.

    The cosine starts after the warm-up but is stretched over all epochs, so that it never reaches
    zero (as published).

    Args:
        epoch: from 1.
        epochs: number of epochs.
        peak: the highest rate.
        warmup_epochs: number of epochs at `warmup_lr`.
        warmup_lr: constant rate of the warm-up.
    """
    if epoch <= warmup_epochs:
        return warmup_lr
    return 0.5 * peak * (1 + math.cos(math.pi * (epoch - warmup_epochs - 1) / epochs))


def gaussian_weights(epochs: int, *, mean: float, deviation: float) -> tuple[float, ...]:
    """Compute the weight of each epoch in PromptSRC's Gaussian averaging (section 3.2.2).

    Args:
        epochs: number of epochs.
        mean: the epoch, from 1, with the largest weight.
        deviation: in epochs.

    Returns:
        One weight per epoch, with sum 1.

    Raises:
        BadParams: the deviation is not positive, or the mean so far away that all weights vanish.
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
    """Weighted sum of a module's trained parameters over the epochs.

    Frozen towers are left out: they would only collect rounding errors.

    Attributes:
        sums: the running sums, by parameter name.
    """

    def __init__(self, module: nn.Module, weights: Sequence[float]) -> None:
        """Start at zero; `weights` has one entry per epoch."""
        self._weights = tuple(weights)
        self.sums = {name: torch.zeros_like(value) for name, value in trained_parameters(module)}

    @torch.no_grad()
    def add(self, epoch: int, module: nn.Module) -> None:
        """Add the parameters as they are after an epoch, counted from 1."""
        for name, value in trained_parameters(module):
            self.sums[name] += self._weights[epoch - 1] * value

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Set the parameters to the sums."""
        for name, value in trained_parameters(module):
            value.copy_(self.sums[name])


class BestState:
    """Copy of a module's state after its best epoch.

    Attributes:
        state: the module's tensors, by name.
    """

    def __init__(self, module: nn.Module) -> None:
        """Start with the module's current state."""
        self.state = _copy(module)
        self._score = -math.inf

    def offer(self, module: nn.Module, score: float) -> None:
        """Copy the module's state if its score is the highest so far."""
        if score > self._score:
            self.state, self._score = _copy(module), score

    def resume(self, state: Mapping[str, Tensor], scores: Iterable[float]) -> None:
        """Restore a stored state and the scores of the epochs so far."""
        self.state, self._score = dict(state), max(scores, default=-math.inf)


def trained_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the names and values of the trained parameters."""
    return [(name, value) for name, value in module.named_parameters() if value.requires_grad]


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
