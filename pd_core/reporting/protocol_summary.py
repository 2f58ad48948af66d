"""Numbers of the protocols: mean, spread, outliers and significance over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pd_core.core.artifacts import read_json
from pd_core.core.errors import BadParams
from pd_core.data.loading.splits import Protocol
from pd_core.evaluation.significance import over_datasets
from pd_core.reporting.outliers import Cell, outliers
from pd_core.reporting.results import (
    ACCURACY,
    MODELS,
    Scores,
    average,
    keys_of,
    mean_and_deviation,
    rounded,
    scores_of,
)

Run = Mapping[str, Scores]  # model -> the protocol's keys, in percent
Runs = Mapping[str, Mapping[str, Run]]  # data set -> seed -> run

COMPARED = (
    ("student", "zero_shot_student"),
    ("student", "teacher"),
    ("teacher", "zero_shot_teacher"),
    ("student", "zero_shot_teacher"),
)


def read(
    evaluations: Path,
    *,
    datasets: Mapping[Protocol, Sequence[str]],
    seeds: Sequence[int],
    source: str | None = None,
) -> dict[Protocol, Runs]:
    """Read the metrics of all runs.

    Args:
        evaluations: holds `<protocol>/<data set>-<seed>/metrics.json`, or
            `<data set>-from-<source>-<seed>` where the teacher was tuned on another data set.
        datasets: by protocol, the data sets to read; a protocol without any is left out.
        seeds: the seeds to read.
        source: the data set that the teacher was tuned on, for the protocols with such a one.

    Returns:
        By protocol, data set, seed and model: base, novel and hm, or accuracy, in percent.

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
    content = read_json(path, what=f"result of {protocol} on '{name}', seed {seed}", remedy=remedy)
    keys = keys_of(protocol)
    if keys != (ACCURACY,):
        return scores_of(content, MODELS, keys, path=path, remedy=remedy)
    scores = scores_of(content, MODELS, ("all",), path=path, remedy=remedy)
    return {model: {ACCURACY: row["all"]} for model, row in scores.items()}


def summarise(
    profile: str, measured: Mapping[Protocol, Runs], source: str | None = None
) -> dict[str, Any]:
    """Average over the seeds, compare, and name outliers.

    Differences are of the headline number, paired by data set and seed: their mean over both, the
    standard deviation over the seeds of the mean over the data sets, and Wilcoxon's p over the data
    sets. (The difference of harmonic means so averaged is not exactly that of the averages'
    harmonic means.)

    Returns:
        `profile`, `seeds`, `source` and `protocols.<protocol>` with `datasets`, `average`,
        `differences`, `outliers` and `runs`; percent and points have two decimals, p has four
        significant digits (None of too few data sets). `<key>_std` and `<key>_n` go with a mean
        over several seeds.
    """
    runs = [run for protocol in measured.values() for run in protocol.values()]
    summary: dict[str, Any] = {
        "profile": profile,
        "seeds": sorted({int(seed) for run in runs for seed in run}),
        "protocols": {
            str(protocol): _summarise(protocol, runs) for protocol, runs in measured.items()
        },
    }
    if any(protocol.has_source for protocol in measured):
        summary["source"] = source
    return summary


def _summarise(protocol: Protocol, runs: Runs) -> dict[str, Any]:
    keys = keys_of(protocol)
    headlines = {
        model: {
            name: {seed: run[model][keys[-1]] for seed, run in seeds.items()}
            for name, seeds in runs.items()
        }
        for model in MODELS
    }
    averages = [
        {model: average([run[seed][model] for run in runs.values()], keys) for model in MODELS}
        for seed in next(iter(runs.values()))
    ]
    return {
        "datasets": {name: _statistics(list(seeds.values())) for name, seeds in runs.items()},
        "average": _statistics(averages),
        "differences": [
            {"first": first, "second": second, "key": keys[-1]}
            | _difference(headlines[first], headlines[second])
            for first, second in COMPARED
        ],
        "outliers": [
            {
                "dataset": outlier.cell,
                "who": model,
                "seed": int(outlier.seed),
                "key": keys[-1],
                "value": round(outlier.value, 2),
                "others": round(outlier.others, 2),
                "deviation": round(outlier.deviation, 2),
            }
            for model, cells in headlines.items()
            for outlier in outliers(cells)
        ],
        "runs": {
            name: {
                seed: {model: rounded(scores) for model, scores in run.items()}
                for seed, run in seeds.items()
            }
            for name, seeds in runs.items()
        },
    }


def _statistics(seeds: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation and count over the seeds, by model."""
    return {
        model: {
            name: number
            for key in seeds[0][model]
            for name, number in spread(key, [run[model][key] for run in seeds]).items()
        }
        for model in MODELS
    }


def spread(key: str, values: Sequence[float]) -> dict[str, float]:
    """Return the mean over seeds as `<key>`, and their deviation and count if there are several."""
    mean, deviation = mean_and_deviation(values)
    if deviation is None:
        return {key: mean}
    return {key: mean, f"{key}_std": deviation, f"{key}_n": len(values)}


def _difference(first: Mapping[str, Cell], second: Mapping[str, Cell]) -> dict[str, Any]:
    overall = over_datasets(
        *({name: list(cell.values()) for name, cell in cells.items()} for cells in (first, second))
    )
    seeds = next(iter(first.values()))
    changes = [fmean(first[name][seed] - second[name][seed] for name in first) for seed in seeds]
    _, deviation = mean_and_deviation(changes)
    return {
        "datasets": overall.datasets,
        "seeds": len(seeds),
        "difference": round(overall.difference, 2) + 0.0,  # a zero has no sign
        **({} if deviation is None else {"difference_std": deviation}),
        "p": None if overall.p is None else float(f"{overall.p:.4g}"),
    }
