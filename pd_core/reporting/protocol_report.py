"""Stage `report` of the protocols: the summary as JSON, Markdown, table and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pd_core.core.artifacts import write_json, write_text
from pd_core.core.atomic import write_folder
from pd_core.core.options import TITLES
from pd_core.core.scores import mark
from pd_core.data.loading.splits import Protocol
from pd_core.reporting.figures import single_seeds
from pd_core.reporting.protocol_summary import read, summarise
from pd_core.reporting.results import (
    MODELS,
    PROTOCOLS,
    Scores,
    Summary,
    Titles,
    heading,
    keys_of,
    p_value,
    protocols_of,
    title,
    titles_of,
    with_deviation,
    worse,
)
from pd_core.reporting.tables import Column, Kind, Row, Table

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
