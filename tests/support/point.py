"""A module of four numbers for the training loop, whose course can be worked out by hand."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tiny import Batches
from torch import Tensor, nn
from trainings import fit

PLAIN: dict[str, Any] = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0}
STEPS = 3

Step = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


class Point(nn.Module):
    """Four numbers, and whether they were used for training each time."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full((4,), start))
        self.trained: list[bool] = []

    def forward(self, slope: float) -> Tensor:
        self.trained.append(self.training)
        return slope * self.value.sum()


def downhill(point: Point, slope: Callable[[Tensor], float] = lambda _: 1.0) -> Step:
    """Make a step whose gradient is the same everywhere, or depends on the images' positions."""
    return lambda indices, _: {"loss": point(slope(indices))}


def train(point: Point, step: Step | None = None, **rest: Any) -> list[dict[str, float]]:
    numbers = {**PLAIN, "epochs": 2, **rest}
    batches = numbers.pop("batches", None) or Batches(2 * STEPS, size=2)
    return fit(point, step or downhill(point), batches, **numbers)


def moved(point: Point, start: float = 1.0) -> list[float]:
    return (point.value.detach() - start).tolist()


def poisoned(point: Point, *numbers: int, by: float = math.nan) -> Step:
    """Make a step that multiplies the loss of some steps, counted from 1 over all epochs."""
    count = iter(range(1, 1000))
    return downhill(point, lambda _: by if next(count) in numbers else 1.0)
