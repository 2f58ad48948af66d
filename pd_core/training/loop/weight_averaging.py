"""Weighted sum of the parameters over the epochs, and the state of the best epoch."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn


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
        self.sums = {name: torch.zeros_like(value) for name, value in trained_parameters(module)}

    @torch.no_grad()
    def add(self, epoch: int, module: nn.Module) -> None:
        """Add the parameters as they are after an epoch, counted from 1."""
        for name, value in trained_parameters(module):
            self.sums[name] += self._weights[epoch - 1] * value

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Put the sums in place of the parameters."""
        for name, value in trained_parameters(module):
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
        self.state, self._score = dict(state), max(scores, default=-math.inf)


def trained_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that are trained, by name."""
    return [(name, value) for name, value in module.named_parameters() if value.requires_grad]


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
