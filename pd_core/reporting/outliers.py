"""Seeds whose numbers lie far from those of the other seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from statistics import NormalDist, median

Cell = Mapping[str, float]  # seed -> headline number

LEAST = 5.0
"""A run that is less than so many points off is no outlier, however little the others vary."""

_FAR = 4.0  # standard deviations of a seed's distance from the other seeds
_PAIR = sqrt(2) * NormalDist().inv_cdf(0.75)  # median of |a - b|, in standard deviations


@dataclass(frozen=True)
class Outlier:
    """A seed that lies far from the others of its cell."""

    cell: str
    seed: str
    value: float
    others: float  # median of the other seeds

    @property
    def deviation(self) -> float:
        """The value less that of the other seeds."""
        return self.value - self.others


def outliers(cells: Mapping[str, Cell]) -> list[Outlier]:
    """Name the seeds that lie far from the other seeds of their cell.

    Three seeds say little about how much a number varies from seed to seed, so that is estimated
    from all cells together: the median difference between two seeds of one cell, which is 0.954
    standard deviations of a normal spread for any number of seeds. The pairs of the run under test
    are left out, and other outliers move a median little, so that no outlier hides itself or
    another. Named is a run that is farther from its cell's median than more than half of the cell's
    runs (so not its neighbours, and none where two seeds merely differ), and whose distance from
    the median of the others is at least four standard deviations of such a distance and at least
    `LEAST` points: half of the ten by which single seeds go wrong. In simulated normal spreads of
    eleven data sets and three seeds, a name is false in one table of twenty at most, and in none
    where the standard deviation is a point; ten points are named where it is estimated to be below
    two.

    Args:
        cells: of one protocol and one model, the headline number by data set and by seed.

    Returns:
        The outliers, in the order of `cells` and their seeds.
    """
    return [
        run
        for name, cell in cells.items()
        for run in _far_from_most(name, cell)
        if abs(run.deviation) >= max(LEAST, _FAR * _distance_deviation(cells, run))
    ]


def _far_from_most(name: str, cell: Cell) -> Iterator[Outlier]:
    """Yield the runs that are farther from the cell's median than most of its runs."""
    middle = median(cell.values())
    distances = {seed: abs(value - middle) for seed, value in cell.items()}
    for seed, value in cell.items():
        closer = sum(distance < distances[seed] for distance in distances.values())
        if closer > len(cell) / 2:
            others = median(number for other, number in cell.items() if other != seed)
            yield Outlier(name, seed, value, others)


def _distance_deviation(cells: Mapping[str, Cell], run: Outlier) -> float:
    """Return the standard deviation of a seed's distance from the other seeds, in points."""
    differences = [
        abs(value - other)
        for name, cell in cells.items()
        for (first, value), (second, other) in combinations(cell.items(), 2)
        if name != run.cell or run.seed not in (first, second)
    ]
    seeds = len(cells[run.cell])
    # the middle of the others varies as well, by about one in so many as they are
    return median(differences) / _PAIR * sqrt(seeds / (seeds - 1))
