"""The results of all protocols and seeds: reading them, and putting them into one summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

from pd_core.artifacts import read_json
from pd_core.data.splits import Protocol
from pd_core.errors import BadParams
from pd_core.protocols.spread import Cell, outliers, spread
from pd_core.results import KEYS, TITLES, WHO, Scores, Summary, percent
from pd_core.significance import over_datasets

COMPARED = (
    ("student", "zero_shot_student"),
    ("student", "teacher"),
    ("teacher", "zero_shot_teacher"),
    ("student", "zero_shot_teacher"),
)

Run = Mapping[str, Scores]  # who -> the protocol's keys, in percent
Runs = Mapping[str, Mapping[str, Run]]  # data set -> seed -> run

_ACCURACY = ("accuracy",)
_WRITTEN = {"accuracy": "all"}  # what `evaluate` calls it


def keys_of(protocol: Protocol) -> tuple[str, ...]:
    """Name the numbers that a protocol measures."""
    return KEYS if protocol is Protocol.BASE_TO_NOVEL else _ACCURACY


def headline_of(protocol: Protocol) -> str:
    """Name the one of them that stands for all: the harmonic mean, or the accuracy."""
    return keys_of(protocol)[-1]


def titles_of(protocol: Protocol) -> dict[str, str]:
    """Return what people call those who are measured: most teachers know the data set itself."""
    return TITLES | ({"teacher": "source's teacher"} if protocol.has_source else {})


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

    A seed's average over the data sets has the harmonic mean of the averaged base and novel
    accuracy, as in the paper's Table 1. Differences are of the headline number, paired by data set
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
    return {
        seed: {who: _average([run[seed][who] for run in runs.values()]) for who in WHO}
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
            key: percent(value, who, _WRITTEN.get(key, key), path=path, remedy=remedy)
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
                seed: {who: _rounded(scores) for who, scores in run.items()}
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
            for name, number in _spread(key, [run[who][key] for run in seeds]).items()
        }
        for who in WHO
    }


def _spread(key: str, values: Sequence[float]) -> dict[str, float]:
    found = spread(values)
    mean = {key: round(found.mean, 2)}
    if found.std is None:
        return mean
    return {**mean, f"{key}_std": round(found.std, 2), f"{key}_n": found.count}


def _difference(first: Mapping[str, Cell], second: Mapping[str, Cell]) -> dict[str, Any]:
    found = over_datasets(_seeds(first), _seeds(second))
    seeds = next(iter(first.values()))
    changes = [fmean(first[name][seed] - second[name][seed] for name in first) for seed in seeds]
    std = spread(changes).std
    return {
        "datasets": found.datasets,
        "seeds": len(seeds),
        "difference": round(found.difference, 2) + 0.0,  # a zero has no sign
        **({} if std is None else {"difference_std": round(std, 2)}),
        "p": None if found.p is None else float(f"{found.p:.4g}"),
    }


def _seeds(cells: Mapping[str, Cell]) -> dict[str, list[float]]:
    return {name: list(cell.values()) for name, cell in cells.items()}


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


def _average(scores: Sequence[Scores]) -> dict[str, float]:
    means = {key: fmean(row[key] for row in scores) for key in scores[0]}
    if "hm" in means:
        means["hm"] = harmonic_mean([means["base"], means["novel"]])
    return means


def _rounded(scores: Scores) -> dict[str, float]:
    return {key: round(value, 2) for key, value in scores.items()}
