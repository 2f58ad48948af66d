"""What several seeds say about one number: its mean, its spread, and which seeds are far off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from statistics import NormalDist, fmean, median, stdev

Cell = Mapping[str, float]
"""A number by the seed it was measured with."""

LEAST = 5.0
"""A run that is less than so many points off is no outlier, however little the others vary."""

_FAR = 4.0  # standard deviations of a seed's distance from the other seeds
_PAIR = sqrt(2) * NormalDist().inv_cdf(0.75)  # median of |a - b|, in standard deviations


@dataclass(frozen=True)
class Spread:
    """A number over several seeds.

    Attributes:
        mean: over the seeds.
        std: the sample standard deviation over the seeds; None for a single one.
        count: how many seeds there are.
    """

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Outlier:
    """A seed that lies far from the others of its cell.

    Attributes:
        cell: the cell's name.
        seed: the seed that is off.
        value: what was measured with it.
        others: the median of the other seeds.
    """

    cell: str
    seed: str
    value: float
    others: float

    @property
    def deviation(self) -> float:
        """How far it lies above the other seeds (below: negative)."""
        return self.value - self.others


def spread(values: Sequence[float]) -> Spread:
    """Return the statistics of one number over several seeds, of which there is at least one."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def outliers(cells: Mapping[str, Cell]) -> list[Outlier]:
    """Name the seeds that lie far from the other seeds of their cell.

    Three seeds say little about how much a number varies from seed to seed, so that is estimated
    from all cells together: the median difference between two seeds of one cell, which is 0.954
    standard deviations of a normal spread for any number of seeds. The pairs of the run that is
    judged are left out, and other wild runs move a median little, so that no outlier hides itself
    or another. Named is a run that is farther from its cell's median than more than half of the
    cell's runs (so not its neighbours, and nobody where two seeds merely differ), and whose
    distance from the median of the others is at least four standard deviations of such a distance
    and at least `LEAST` points: half of the ten by which single seeds are known to go wrong. In
    simulated normal spreads of eleven data sets and three seeds, a name is false in one table of
    twenty at most, and in none where the standard deviation is a point; ten points are named where
    it is estimated to be below two.

    Args:
        cells: of one protocol and one classifier, the headline number by data set and by seed.

    Returns:
        The outliers, in the order of `cells` and their seeds.
    """
    return [
        run
        for name, cell in cells.items()
        for run in _far_from_most(name, cell)
        if abs(run.deviation) >= max(LEAST, _FAR * _of_a_distance(cells, run))
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


def _of_a_distance(cells: Mapping[str, Cell], judged: Outlier) -> float:
    """Return the standard deviation of a seed's distance from the other seeds, in points."""
    differences = [
        abs(one - other)
        for name, cell in cells.items()
        for (first, one), (second, other) in combinations(cell.items(), 2)
        if name != judged.cell or judged.seed not in (first, second)
    ]
    seeds = len(cells[judged.cell])
    # the middle of the others varies as well, by about one in so many as they are
    return median(differences) / _PAIR * sqrt(seeds / (seeds - 1))
