"""Extrapolation from measured stages to complete ones: time, memory and disk.

A stage consists of parts, such as its start and its steps. A part has a number of units, and each
unit a cost, which may grow linearly with a size (the number of classes whose texts are encoded).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Self

HOUR = 3600.0


@dataclass(frozen=True)
class Cost:
    """Seconds of the wall clock and of all processors."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both, one after the other."""
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Cost) -> Cost:
        """Return what is left without a part of it, at least nothing."""
        return Cost(max(0.0, self.wall - other.wall), max(0.0, self.cpu - other.cpu))

    def __mul__(self, times: float) -> Cost:
        """Return the cost of so many units."""
        return Cost(self.wall * times, self.cpu * times)


NOTHING = Cost()


@dataclass(frozen=True)
class Rate:
    """Cost of a unit.

    Attributes:
        each: mean.
        error: standard error of the mean, in seconds of the wall clock; None if it is unknown.
    """

    each: Cost = NOTHING
    error: float | None = 0.0

    @classmethod
    def of(cls, costs: Sequence[Cost]) -> Self:
        """Return the mean of the costs of several units; nothing if there are none."""
        if not costs:
            return cls()
        walls = [cost.wall for cost in costs]
        error = stdev(walls) / math.sqrt(len(walls)) if len(walls) > 1 else None
        return cls(Cost(fmean(walls), fmean(cost.cpu for cost in costs)), error)


def interpolated(points: Iterable[tuple[float, Rate]], size: float) -> Rate:
    """Return the rate at a size, on the line through the smallest and the largest measured one.

    A rate that seems to fall with the size is noise: then it is the mean of both.

    Args:
        points: size and rate of each measurement, at least one.
        size: to read the line at.
    """
    ordered = sorted(points, key=lambda point: point[0])
    (low, first), (high, last) = ordered[0], ordered[-1]
    rises = low < high and first.each.wall < last.each.wall
    share = (size - low) / (high - low) if rises else 0.5
    cpu = max(0.0, _between(first.each.cpu, last.each.cpu, share))
    wall = max(0.0, _between(first.each.wall, last.each.wall, share))
    errors = [(abs(1 - share), first.error), (abs(share), last.error)]
    return Rate(Cost(wall, cpu), root_sum(errors))


def _between(first: float, last: float, share: float) -> float:
    return (1 - share) * first + share * last


def root_sum(errors: Iterable[tuple[float, float | None]]) -> float | None:
    """Add independent errors with their weights; None if one that counts is unknown."""
    known = [(weight, error) for weight, error in errors if weight]
    if any(error is None for _, error in known):
        return None
    return math.sqrt(sum((weight * (error or 0.0)) ** 2 for weight, error in known))


@dataclass(frozen=True)
class Part:
    """A part of a stage.

    Attributes:
        kind: what works in it, such as `decoding` or `teacher`.
        units: number of units to come.
        rate: cost of a unit.
    """

    kind: str
    units: float
    rate: Rate

    @property
    def cost(self) -> Cost:
        """Cost of all units."""
        return self.rate.each * self.units


@dataclass(frozen=True)
class Needs:
    """Peak of main memory and of GPU memory, and disk space of the outputs, in bytes."""

    memory: float = 0.0
    gpu: float = 0.0
    disk: float = 0.0


@dataclass(frozen=True)
class StageEstimate:
    """A stage of a data set.

    Attributes:
        stage: its name.
        parts: of its time.
        needs: its memory and disk space.
        measured: steps that were measured.
        steps: steps of the complete stage.
    """

    stage: str
    parts: tuple[Part, ...]
    needs: Needs = field(default_factory=Needs)
    measured: int = 0
    steps: int = 0

    @property
    def cost(self) -> Cost:
        """Cost of the stage."""
        return sum((part.cost for part in self.parts), NOTHING)

    @property
    def error(self) -> float | None:
        """Standard error of the seconds of the wall clock; None if it is unknown."""
        return root_sum((part.units, part.rate.error) for part in self.parts)


@dataclass(frozen=True)
class Estimate:
    """Stages of one or more data sets, one after the other."""

    stages: tuple[StageEstimate, ...]
    name: str = ""
    repeats: int = 1  # of seeds

    @property
    def cost(self) -> Cost:
        """Cost of all."""
        return sum((stage.cost for stage in self.stages), NOTHING) * self.repeats

    @property
    def error(self) -> float | None:
        """Standard error of the seconds of the wall clock; None if it is unknown.

        Stages share their measurements, so their errors add up.
        """
        errors = [stage.error for stage in self.stages]
        if None in errors:
            return None
        return sum(error or 0.0 for error in errors) * self.repeats

    @property
    def needs(self) -> Needs:
        """Peaks of memory, and disk space of all outputs."""
        each = [stage.needs for stage in self.stages] or [Needs()]
        disk = sum(needs.disk for needs in each) * self.repeats
        return Needs(max(n.memory for n in each), max(n.gpu for n in each), disk)

    def kinds(self) -> Mapping[str, float]:
        """Return the seconds of the wall clock by what works in them, the slowest first."""
        seconds: dict[str, float] = {}
        for stage in self.stages:
            for part in stage.parts:
                seconds[part.kind] = seconds.get(part.kind, 0.0) + part.cost.wall * self.repeats
        return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def together(estimates: Iterable[Estimate]) -> Estimate:
    """Return the sum of several data sets' estimates."""
    stages = tuple(
        stage
        for estimate in estimates
        for _ in range(estimate.repeats)
        for stage in estimate.stages
    )
    return Estimate(stages)
