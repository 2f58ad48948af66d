"""Stage `report` of the protocols: mean, spread, outliers and significance over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from pd_core.core.artifacts import read_json, understood, write_json, write_text
from pd_core.core.atomic import write_folder
from pd_core.core.errors import BadParams, PdError
from pd_core.core.options import TITLES
from pd_core.core.scores import mark
from pd_core.data.loading.splits import Protocol
from pd_core.evaluation.significance import over_datasets
from pd_core.pipeline.redaction import masked
from pd_core.reporting.figures import single_seeds
from pd_core.reporting.outliers import Cell, outliers
from pd_core.reporting.results import (
    ACCURACY,
    MODELS,
    PROTOCOLS,
    Scores,
    Summary,
    Titles,
    average,
    heading,
    keys_of,
    mean_and_deviation,
    p_value,
    protocols_of,
    rounded,
    scores_of,
    title,
    titles_of,
    with_deviation,
    worse,
)
from pd_core.reporting.tables import Column, Kind, Row, Table

Run = Mapping[str, Scores]  # model -> the protocol's keys, in percent
Runs = Mapping[str, Mapping[str, Run]]  # data set -> seed -> run

COMPARED = (
    ("student", "zero_shot_student"),
    ("student", "teacher"),
    ("teacher", "zero_shot_teacher"),
    ("student", "zero_shot_teacher"),
)
NOT_RUN = "Not run. `cd protocols && dvc repro` runs every protocol over several seeds."

_HALVES = "Base classes / novel classes / harmonic mean; differences and outliers are of the last."
_WHOLE = "Accuracy over all classes."


def run(
    evaluations: Path,
    folder: Path,
    *,
    profile: str,
    datasets: Mapping[Protocol, Sequence[str]],
    seeds: Sequence[int],
    source: str | None = None,
    titles: Titles | None = None,
) -> dict[str, Any]:
    """Write `summary.json`, `summary.md` and `summary.png`; return the summary.

    Args:
        evaluations: see `read`, as for data sets, seeds and source.
        folder: output folder, `reports/protocols`; replaced.
        profile: `quickstart` or `paper`.
        datasets: by protocol.
        seeds: of the runs.
        source: of the teacher.
        titles: readable names of data sets, where there are any.

    Raises:
        PdError: as of `read`, or the folder cannot be written.
    """
    measured = read(evaluations, datasets=datasets, seeds=seeds, source=source)
    summary = summarise(profile, measured, source)
    with write_folder(folder) as new:
        write_json(new / "summary.json", summary)
        write_text(new / "summary.md", markdown(summary, titles))
        (new / "summary.png").write_bytes(single_seeds(summary, titles))
    return summary


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


def markdown(summary: Summary, titles: Titles | None = None) -> str:
    """Return the summary as Markdown: profile and seeds, then one section per protocol."""
    several = len(summary["seeds"]) > 1
    shown = "mean ± sample standard deviation over the seeds" if several else "of a single seed"
    lines = [
        f"# Protocols of the {summary['profile']} profile, {_seeds(summary)}",
        "",
        f"Accuracy in percent, {shown}.",
        "Averages are over the data sets within each seed; the average's harmonic mean is that of",
        "the averaged base and novel accuracy, as in the paper.",
        "Differences are paired by data set and seed; p is of Wilcoxon's signed-rank test over the",
        "data sets, each with the mean of its seeds.",
    ]
    for protocol, part in protocols_of(summary).items():
        names = titles_of(protocol)
        rows = [
            (name, *(_all_numbers(protocol, row, model) for model in MODELS))
            for name, row in _rows(part, titles)
        ]
        lines += ["", f"## {heading(summary, protocol, titles)}", ""]
        lines += [_HALVES if protocol is Protocol.BASE_TO_NOVEL else _WHOLE, ""]
        lines += [Table(["data set", *(names[model] for model in MODELS)], rows).markdown()]
        lines += ["", *(f"- {sentence}." for sentence in findings(protocol, part, titles))]
    return "\n".join(lines) + "\n"


def table(summary: Summary, titles: Titles | None = None) -> Table:
    """Return the headline numbers, with differences and outliers as notes."""
    several = " ± standard deviation" if len(summary["seeds"]) > 1 else ""
    notes = [f"percent: harmonic mean of base and novel accuracy, or accuracy{several}"]
    rows = []
    for protocol, part in protocols_of(summary).items():
        key = keys_of(protocol)[-1]
        rows.append(Row((heading(summary, protocol, titles),), Kind.HEADING))
        for name, row in _rows(part, titles):
            kind = Kind.AVERAGE if row is part["average"] else Kind.PLAIN
            cells = (_number(row[m], key, digits=1) + mark(m, row) for m in MODELS)
            rows.append(Row((name, *cells), kind))
        notes += ["", f"{PROTOCOLS[protocol]},{_over(part)}:"]
        notes += _differences(protocol, part, digits=1)
        notes += _outlier_lines(protocol, part, titles) + worse(part, titles)
    columns = [Column(TITLES[m].replace(" ", "\n"), bold=m == "student") for m in MODELS]
    name = f"PromptKD, {summary['profile']} profile, {_seeds(summary)}"
    return Table(["data set", *columns], rows, title=name, notes=notes, name_width=36)


def findings(protocol: Protocol, part: Summary, titles: Titles | None = None) -> list[str]:
    """Return a protocol's differences and outliers, one line each."""
    differences = _differences(protocol, part, digits=2, over=_over(part))
    return [
        *differences, *_outlier_lines(protocol, part, titles), *worse(part, titles),
    ]  # fmt: skip


def _seeds(summary: Summary) -> str:
    seeds = summary["seeds"]
    return f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"


def _rows(part: Summary, titles: Titles | None) -> list[tuple[str, Mapping[str, Scores]]]:
    rows = [(title(name, titles), row) for name, row in sorted(part["datasets"].items())]
    return [*rows, ("average", part["average"])]


def _all_numbers(protocol: Protocol, row: Mapping[str, Scores], model: str) -> str:
    *others, number = (_number(row[model], key, digits=2) for key in keys_of(protocol))
    number += mark(model, row)
    return " / ".join([*others, f"**{number}**" if model == "student" else number])


def _number(scores: Scores, key: str, *, digits: int, sign: str = "") -> str:
    number = f"{scores[key]:{sign}.{digits}f}"
    return with_deviation(number, scores.get(f"{key}_std"), digits=digits)


def _differences(protocol: Protocol, part: Summary, *, digits: int, over: str = "") -> list[str]:
    """Describe the differences, one line each; `over` goes between the points and p."""
    names = titles_of(protocol)
    return [
        f"{names[row['first']]} over {names[row['second']]}: "
        f"{_number(row, 'difference', digits=digits, sign='+')} points{over}, {p_value(row['p'])}"
        for row in part["differences"]
    ]


def _over(part: Summary) -> str:
    count = len(part["datasets"])
    return f" over {count} data set{'s' if count > 1 else ''}"


def _outlier_lines(protocol: Protocol, part: Summary, titles: Titles | None) -> list[str]:
    """Name the outliers, one line each, or say that there is none, or that none can be named."""
    names = titles_of(protocol)
    seeds = [len(runs) for runs in part["runs"].values()]
    if seeds[0] < 3:
        return ["outliers: none named, which takes three seeds"]
    return [
        f"outlier: {title(row['dataset'], titles)}, {names[row['who']]}, seed {row['seed']}: "
        f"{row['value']:.1f}, {row['deviation']:+.1f} points off the other seeds' "
        f"{row['others']:.1f}"
        for row in part["outliers"]
    ] or [f"no outlier among {sum(seeds)} runs"]


@dataclass(frozen=True)
class Seeds:
    """Results over several seeds."""

    summary: dict[str, Any] = field(default_factory=dict)  # as of `summarise`; empty without any
    note: str = ""  # why there is none

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
        """The results by protocol."""
        return protocols_of(self.summary) if self.summary else {}


def read_summary(folder: Path) -> Seeds:
    """Read the summary in a report's folder, or return a note if there is none or it is corrupt."""
    path = folder / "summary.json"
    if not path.is_file():
        return Seeds(note=NOT_RUN)
    what, remedy = "summary of the protocols", "run `cd protocols && dvc repro report`"
    try:
        summary = read_json(path, what=what, remedy=remedy)
        with understood(path, what=what, remedy=remedy):
            _check_complete(summary, path, remedy)
            markdown(summary)  # fails where a difference or an outlier is not as `summarise` has it
    except (PdError, AttributeError) as error:
        return Seeds(note=f"Protocols and seeds are left out: {masked(str(error))}.")
    return Seeds(summary)


def _check_complete(summary: Summary, path: Path, remedy: str) -> None:
    """Check that every model has every number.

    Raises:
        BadArtifact: a number is missing.
        KeyError: a seed of a data set or the teacher's source is missing.
    """
    if not summary["seeds"]:
        raise KeyError("seeds")
    if any(protocol.has_source for protocol in protocols_of(summary)) and not summary["source"]:
        raise KeyError("source")
    for protocol, part in protocols_of(summary).items():
        names, seeds = part["datasets"], map(str, summary["seeds"])
        runs = [part["runs"][name][seed] for name, seed in product(names, seeds)]
        for row in (*names.values(), part["average"], *runs):
            scores_of(row, MODELS, keys_of(protocol), path=path, remedy=remedy)
