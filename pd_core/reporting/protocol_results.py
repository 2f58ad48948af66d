"""Results of all protocols and seeds: mean, spread, outliers, significance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import NormalDist, fmean, median, stdev
from typing import Annotated, Any

from pydantic import AllowInfNan, Field, TypeAdapter, ValidationError

from pd_core.core.artifacts import read_json, understood
from pd_core.core.errors import BadParams, PdError
from pd_core.data.loading.splits import Protocol
from pd_core.evaluation.significance import over_datasets
from pd_core.pipeline.redaction import masked
from pd_core.reporting.results import (
    ACCURACY,
    KEYS,
    WHO,
    Scores,
    Summary,
    average,
    percent,
    rounded,
)

Cell = Mapping[str, float]
"""A number by the seed it was measured with."""

LEAST = 5.0
"""A run that is less than so many points off is no outlier, however little the others vary."""

_FAR = 4.0  # standard deviations of a seed's distance from the other seeds
_PAIR = sqrt(2) * NormalDist().inv_cdf(0.75)  # median of |a - b|, in standard deviations


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


def spread(key: str, values: Sequence[float]) -> dict[str, float]:
    """Average a number over its seeds, of which there is at least one.

    Returns:
        The mean as `<key>`; of several seeds also the sample standard deviation as `<key>_std`, and
        how many they are as `<key>_n`.
    """
    mean = {key: round(fmean(values), 2)}
    if len(values) == 1:
        return mean
    return {**mean, f"{key}_std": round(stdev(values), 2), f"{key}_n": len(values)}


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


COMPARED = (
    ("student", "zero_shot_student"),
    ("student", "teacher"),
    ("teacher", "zero_shot_teacher"),
    ("student", "zero_shot_teacher"),
)

Run = Mapping[str, Scores]  # who -> the protocol's keys, in percent
Runs = Mapping[str, Mapping[str, Run]]  # data set -> seed -> run


def keys_of(protocol: Protocol) -> tuple[str, ...]:
    """Name the numbers that a protocol measures."""
    return KEYS if protocol is Protocol.BASE_TO_NOVEL else (ACCURACY,)


def headline_of(protocol: Protocol) -> str:
    """Name the one of them that stands for all: the harmonic mean, or the accuracy."""
    return keys_of(protocol)[-1]


def read(
    evaluations: Path,
    *,
    datasets: Mapping[Protocol, Sequence[str]],
    seeds: Sequence[int],
    source: str | None = None,
) -> dict[Protocol, Runs]:
    """Read what was measured.

    Args:
        evaluations: holds `<protocol>/<data set>-<seed>/metrics.json`, or
            `<data set>-from-<source>-<seed>` where the teacher was tuned on another data set.
        datasets: by protocol, the data sets to read; a protocol without any is left out.
        seeds: the seeds to read.
        source: the data set that the teacher was tuned on, for the protocols with such a one.

    Returns:
        By protocol, data set, seed and who: base, novel and hm, or accuracy, in percent.

    Raises:
        BadParams: there is no data set, no seed, or no source where one is needed.
        MissingFile: a run is missing.
        BadArtifact: a file lacks a number.
    """
    wanted = {protocol: datasets[protocol] for protocol in Protocol if datasets.get(protocol)}
    if not wanted or not seeds:
        raise BadParams("the protocols need at least one data set and one seed")
    return {
        protocol: {
            name: {
                str(seed): _read_run(evaluations, protocol, name, seed, source)
                for seed in sorted(seeds)
            }
            for name in sorted(names)
        }
        for protocol, names in wanted.items()
    }


def summarise(
    profile: str, measured: Mapping[Protocol, Runs], source: str | None = None
) -> dict[str, Any]:
    """Average over the seeds, compare, and name outliers.

    Differences are of the headline number, paired by data set
    and seed: their mean over both, the standard deviation over the seeds of the mean over the data
    sets, and Wilcoxon's p over the data sets. (The difference of harmonic means so averaged is not
    exactly that of the averages' harmonic means.)

    Args:
        profile: `quickstart` or `paper`.
        measured: what `read` returns.
        source: the data set that the teacher was tuned on, where it is another.

    Returns:
        `profile`, `seeds`, `source` and `protocols.<protocol>` with `datasets`, `average`,
        `differences`, `outliers` and `runs`; percent and points have two decimals, p has four
        significant digits (None from a single data set). `<key>_std` and `<key>_n` go with a mean
        over several seeds.
    """
    runs = [run for protocol in measured.values() for run in protocol.values()]
    summary: dict[str, Any] = {
        "profile": profile,
        "seeds": sorted({int(seed) for run in runs for seed in run}),
        "protocols": {
            str(protocol): _summarise(protocol, found) for protocol, found in measured.items()
        },
    }
    if any(protocol.has_source for protocol in measured):
        summary["source"] = source
    return summary


def protocols_of(summary: Summary) -> dict[Protocol, Summary]:
    """Return a summary's protocols in the order in which they are told."""
    found = summary["protocols"]
    return {protocol: found[protocol] for protocol in Protocol if protocol in found}


def averages(runs: Runs) -> dict[str, Run]:
    """Average over the data sets within each seed; `hm` is the averages' harmonic mean."""
    seeds = next(iter(runs.values()))
    keys = list(next(iter(seeds.values()))[WHO[0]])
    return {
        seed: {who: average([run[seed][who] for run in runs.values()], keys) for who in WHO}
        for seed in seeds
    }


def _read_run(
    evaluations: Path, protocol: Protocol, name: str, seed: int, source: str | None
) -> Run:
    target = name
    if protocol.has_source:
        if source is None:
            raise BadParams(f"protocol '{protocol}' needs a source; name one under `source`")
        target = f"{name}-from-{source}"
    path = evaluations / protocol / f"{target}-{seed}" / "metrics.json"
    remedy = f"run `dvc repro {protocol}@{name}-{seed}` in protocols/"
    value = read_json(path, what=f"result of {protocol} on '{name}', seed {seed}", remedy=remedy)
    return {
        who: {
            key: percent(value, who, "all" if key == ACCURACY else key, path=path, remedy=remedy)
            for key in keys_of(protocol)
        }
        for who in WHO
    }


def _summarise(protocol: Protocol, runs: Runs) -> dict[str, Any]:
    key = headline_of(protocol)
    headlines = {
        who: {
            name: {seed: run[who][key] for seed, run in seeds.items()}
            for name, seeds in runs.items()
        }
        for who in WHO
    }
    return {
        "datasets": {name: _statistics(list(seeds.values())) for name, seeds in runs.items()},
        "average": _statistics(list(averages(runs).values())),
        "differences": [
            {"first": first, "second": second, "key": key}
            | _difference(headlines[first], headlines[second])
            for first, second in COMPARED
        ],
        "outliers": [
            outlier for who, cells in headlines.items() for outlier in _outliers(who, key, cells)
        ],
        "runs": {
            name: {
                seed: {who: rounded(scores) for who, scores in run.items()}
                for seed, run in seeds.items()
            }
            for name, seeds in runs.items()
        },
    }


def _statistics(seeds: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation and count over the seeds, by who."""
    return {
        who: {
            name: number
            for key in seeds[0][who]
            for name, number in spread(key, [run[who][key] for run in seeds]).items()
        }
        for who in WHO
    }


def _difference(first: Mapping[str, Cell], second: Mapping[str, Cell]) -> dict[str, Any]:
    found = over_datasets(
        *({name: list(cell.values()) for name, cell in cells.items()} for cells in (first, second))
    )
    seeds = next(iter(first.values()))
    changes = [fmean(first[name][seed] - second[name][seed] for name in first) for seed in seeds]
    return {
        "datasets": found.datasets,
        "seeds": len(seeds),
        "difference": round(found.difference, 2) + 0.0,  # a zero has no sign
        **({"difference_std": round(stdev(changes), 2)} if len(changes) > 1 else {}),
        "p": None if found.p is None else float(f"{found.p:.4g}"),
    }


def _outliers(who: str, key: str, cells: Mapping[str, Cell]) -> list[dict[str, Any]]:
    return [
        {
            "dataset": found.cell,
            "who": who,
            "seed": int(found.seed),
            "key": key,
            "value": round(found.value, 2),
            "others": round(found.others, 2),
            "deviation": round(found.deviation, 2),
        }
        for found in outliers(cells)
    ]


NOT_RUN = "Not run. `cd protocols && dvc repro` runs every protocol over several seeds."

_Number = Annotated[float, AllowInfNan(False)]
_Who = Annotated[str, Field(pattern=f"^({'|'.join(WHO)})$")]
_Scores = dict[_Who, dict[str, _Number]]  # number -> percent


@dataclass(frozen=True)
class _Difference:
    first: _Who
    second: _Who
    datasets: int
    seeds: int
    difference: _Number
    p: _Number | None
    difference_std: _Number | None = None


@dataclass(frozen=True)
class _Outlier:
    dataset: str
    who: _Who
    seed: int
    value: _Number
    others: _Number
    deviation: _Number


@dataclass(frozen=True)
class _Measured:
    datasets: dict[str, _Scores]
    average: _Scores
    differences: list[_Difference]
    outliers: list[_Outlier]
    runs: dict[str, dict[str, _Scores]]  # data set -> seed


@dataclass(frozen=True)
class _Summary:
    seeds: Annotated[list[int], Field(min_length=1)]
    protocols: dict[str, _Measured]
    source: str | None = None


@dataclass(frozen=True)
class Seeds:
    """Results over several seeds.

    Attributes:
        summary: as `summarise` made it; empty if there is none.
        note: why there is none; empty if there is one.
    """

    summary: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were run."""
        return tuple(self.summary.get("seeds", ()))

    @property
    def source(self) -> str | None:
        """The data set whose teacher is measured on others; None if none is."""
        return self.summary.get("source")

    @property
    def protocols(self) -> dict[Protocol, Summary]:
        """What was measured, by protocol."""
        return protocols_of(self.summary) if self.summary else {}


def read_summary(folder: Path) -> Seeds:
    """Read the summary of a profile's protocols.

    Args:
        folder: where their report is.

    Returns:
        What was measured; or, if nothing was or the file is damaged, a note that says so.
    """
    path = folder / "summary.json"
    if not path.is_file():
        return Seeds(note=NOT_RUN)
    what, remedy = "summary of the protocols", "run `cd protocols && dvc repro report`"
    try:
        found = Seeds(read_json(path, what=what, remedy=remedy))
        TypeAdapter(_Summary).validate_python(found.summary)
        with understood(path, what=what, remedy=remedy):
            _check(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its top"
        reason = f"{what} '{path}' is wrong at {where}: {first['msg']}; {remedy}"
    except PdError as error:
        reason = str(error)
    else:
        return found
    return Seeds(note=f"Protocols and seeds are left out: {masked(reason)}.")


def _check(found: Seeds) -> None:
    """Make sure that nobody lacks a number.

    Raises:
        KeyError: somebody does, or a data set lacks a seed, or the teacher's own is not named.
    """
    for protocol, measured in found.protocols.items():
        if protocol.has_source and not found.source:
            raise KeyError("source")
        rows, runs = measured["datasets"], measured["runs"]
        each = [runs[name][str(seed)] for name in rows for seed in found.seeds]
        for row in (*rows.values(), measured["average"], *each):
            if lacking := [who for who in WHO if not row[who].keys() >= set(keys_of(protocol))]:
                raise KeyError(f"{protocol}.{lacking[0]}")
