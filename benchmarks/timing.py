"""Sides of a comparison take turns, so that whatever else the machine does slows down all.

Two clocks are read. The processor's counts the seconds of all threads, and hardly notices
neighbours; the wall's is what one waits for.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.outcome import Row

Clock = Literal["cpu", "wall"]
Note = Callable[[str], None]
Work = Callable[[], float]
"""A side; it returns a number, such as its loss, that its rivals have to agree with."""


@dataclass(frozen=True)
class Turns:
    """Times of all sides in each round.

    Attributes:
        seconds: by side, one pair of clocks a round.
        values: by side, what it returned when it was first run.
    """

    seconds: dict[str, list[dict[Clock, float]]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)

    def all(self, side: str, clock: Clock = "cpu") -> list[float]:
        """Return a side's seconds, round by round."""
        return [taken[clock] for taken in self.seconds[side]]

    def median(self, side: str, clock: Clock = "cpu") -> float:
        """Return a side's median seconds."""
        return statistics.median(self.all(side, clock))

    def row(
        self,
        what: str,
        ours: str,
        reference: str,
        *,
        clock: Clock = "cpu",
        least: float | None = None,
        most: float | None = None,
        note: str = "",
    ) -> Row:
        """Compare two sides: the ratio of their medians, and how far the rounds' ratios spread."""
        pairs = zip(self.all(ours, clock), self.all(reference, clock), strict=True)
        each = [a / b for a, b in pairs]
        other_clock: Clock = "wall" if clock == "cpu" else "cpu"
        return Row(
            what=what,
            value=self.median(ours, clock) / self.median(reference, clock),
            low=min(each),
            high=max(each),
            clock=clock,
            other=self.median(ours, other_clock) / self.median(reference, other_clock),
            least=least,
            most=most,
            note=note
            or f"{self.median(ours, clock):.3g} s against {self.median(reference, clock):.3g} s",
        )


def measured(work: Work) -> tuple[dict[Clock, float], float]:
    """Run a side once; return the seconds of both clocks, and its number."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = work()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}, value


def take_turns(
    sides: Mapping[str, Work], *, rounds: int, note: Note, warm_up: bool = True
) -> Turns:
    """Run all sides, one after the other, several times.

    Args:
        sides: by name.
        rounds: how often each is measured.
        note: called with a line about each turn.
        warm_up: whether each runs once more before, unmeasured.
    """
    turns = Turns({side: [] for side in sides})
    for number in range(0 if warm_up else 1, rounds + 1):
        for side, work in sides.items():
            seconds, value = measured(work)
            turns.values.setdefault(side, value)
            which = f"round {number} of {rounds}" if number else "warm-up"
            note(f"{which}: {side}: {seconds['cpu']:.3g} s of processor, {seconds['wall']:.3g} s")
            if number:
                turns.seconds[side].append(seconds)
    return turns


def check_agreement(values: Mapping[str, float], *, within: float = 1e-3) -> None:
    """Make sure that all sides compute the same number: otherwise no ratio means anything.

    Args:
        values: by side.
        within: of the largest one.

    Raises:
        RuntimeError: they do not.
    """
    numbers = list(values.values())
    far = within * max(map(abs, numbers))
    if not all(abs(number - numbers[0]) <= far for number in numbers):  # none is if one is NaN
        raise RuntimeError(f"the sides do not compute the same: {dict(values)}")


@dataclass(frozen=True)
class Line:
    """Costs as a linear function of a size, fitted by least squares.

    Attributes:
        slope: seconds per unit.
        start: seconds at size 0.
        explained: R², the share of the variance that the line explains.
        residual: the largest distance of a point from the line, as a share of the point.
    """

    slope: float
    start: float
    explained: float
    residual: float

    @classmethod
    def through(cls, sizes: Sequence[float], costs: Sequence[float]) -> "Line":
        """Fit a line to costs by size; there have to be at least two sizes."""
        slope, start = statistics.linear_regression(sizes, costs)
        off = [cost - start - slope * size for size, cost in zip(sizes, costs, strict=True)]
        mean = statistics.fmean(costs)
        total = sum((cost - mean) ** 2 for cost in costs)
        explained = 1 - sum(error**2 for error in off) / total if total else 1.0
        residual = max(abs(error) / cost for error, cost in zip(off, costs, strict=True))
        return cls(slope, start, explained, residual)

    def at(self, size: float) -> float:
        """Return the cost of a size."""
        return self.start + self.slope * size

    def describe(self, unit: str) -> str:
        """Describe the line in words; `unit` is what sizes count."""
        return (
            f"{self.start:.3g} s + {self.slope:.3g} s a {unit}, R² {self.explained:.4f},"
            f" largest residual {100 * self.residual:.1f}%"
        )


def to_stderr(part: str) -> Note:
    """Return a function that writes lines of progress to stderr."""

    def note(line: str) -> None:
        sys.stderr.write(f"{part}: {line}\n")
        sys.stderr.flush()

    return note
