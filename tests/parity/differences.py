"""Differences from recorded numbers, and their tolerances.

Differences are relative to the largest number of the recorded tensor. Tolerances are three times
the differences of an independent implementation. A number of a training step may exceed it up to
three times the effect of noise like rounding errors in images and parameters (README.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

TEACHER_LOSS = 3 * 4e-6
LOGITS = 3 * 3e-6
TEACHER_GRADIENT = 3 * 1.1e-5
ARITHMETIC = 3 * 1.2e-7  # SGD, momentum, learning rate, Gaussian averaging
DISTILLATION_LOSS = 3 * 1e-6
DISTILLATION_LOSS_WIDE = 3 * 3.4e-5
DISTILLATION_GRADIENT = 3 * 2.4e-5
DISTILLATION_GRADIENT_WIDE = 3 * 3.5e-4
BATCH_NORM = 3 * 1e-6
EVALUATION = 3 * 5e-7
CLASS_VECTORS = 3 * 1.3e-6

NOISE = 3e-6  # of rounding errors: what the independent implementation's logits were away

Number = Tensor | float
Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """The difference of a value from the recorded one."""

    part: str  # of the method
    name: str
    size: float  # relative to the largest recorded number
    allowed: float  # the tolerance, or the effect of noise if that is larger
    excused: bool = False  # allowed only because of noise


class Differences:
    """Collects differences; nothing is asserted until `verify`."""

    def __init__(self) -> None:
        self.all: list[Difference] = []

    @property
    def excused(self) -> list[Difference]:
        """Those beyond the tolerance that noise explains."""
        return [difference for difference in self.all if difference.excused]

    def add(
        self,
        part: str,
        name: str,
        ours: Number,
        recorded: Number,
        allowed: float,
        *,
        scale: float | None = None,
        shaken: Callable[[], Tensor] | None = None,
    ) -> None:
        """Compare two values of the same shape.

        `allowed` is relative to `scale`, by default the largest recorded number; `shaken` returns
        our value under noise, for a second chance.
        """
        ours, recorded = torch.as_tensor(ours).detach(), torch.as_tensor(recorded)
        assert ours.shape == recorded.shape, f"{name}: {ours.shape} for {recorded.shape}"
        size = _relative(ours, recorded, recorded, scale)
        excused = False
        if shaken is not None and not size <= allowed:
            noise = 3 * _relative(shaken().detach(), ours, recorded, scale)
            excused = allowed < noise and size <= noise
            allowed = max(allowed, noise)
        self.all.append(Difference(part, name, size, allowed, excused))

    def verify(self) -> None:
        """Fail if anything differs by more than is allowed, or if nothing was compared."""
        assert self.all, "nothing was compared"
        wrong = [d for d in self.all if not d.size <= d.allowed]
        lines = [f"{d.part} {d.name}: {d.size:.2e} > {d.allowed:.2e}" for d in wrong]
        assert not wrong, "\n".join(lines)


class Step:
    """A training step, and the same step under noise if necessary."""

    def __init__(
        self, differences: Differences, place: str, measure: Callable[[float], Values]
    ) -> None:
        """Take the step; `measure` returns its values for inputs with noise of a relative size."""
        self.values = measure(0.0)
        self._differences = differences
        self._place = place
        self._measure = measure

    @cached_property
    def shaken(self) -> Values:
        """Values of the step under noise."""
        return self._measure(NOISE)

    def compare(
        self, part: str, name: str, recorded: Number, allowed: float, *, scale: float | None = None
    ) -> None:
        """Compare one value of the step with the recorded one."""
        place, ours = self._place + name, self.values[name]
        self._differences.add(
            part, place, ours, recorded, allowed, scale=scale, shaken=lambda: self.shaken[name]
        )


def shake(value: Tensor, noise: float) -> Tensor:
    """Add noise, relative to the largest number; always the same one."""
    if noise == 0:
        return value
    draw = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    return value + noise * value.detach().abs().max() * draw


@torch.no_grad()
def shake_parameters(module: nn.Module, noise: float) -> None:
    """Add noise to every parameter, in place."""
    for parameter in module.parameters():
        parameter.copy_(shake(parameter, noise))


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Return the gradient of every parameter, as `grad/<name>`."""
    values = {}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        values[f"grad/{name}"] = parameter.grad
    return values


def _relative(value: Tensor, other: Tensor, recorded: Tensor, scale: float | None) -> float:
    """Return the largest difference of two tensors, relative to the recorded one.

    Prompts (depth, n, W) were recorded layer by layer, so each has its own scale.
    """
    if recorded.ndim == 3:
        rows = zip(value, other, recorded, strict=True)
        return max(_relative(*row, scale) for row in rows)
    largest = float(recorded.double().abs().max()) if scale is None else scale
    return float((value.double() - other.double()).abs().max()) / (largest or 1.0)
