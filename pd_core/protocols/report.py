"""Stage `report` of the protocols: every protocol's result over the seeds, in one place.

All files are functions of the measurements alone, to the byte: no times, hosts or versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd_core.artifacts import write_json, write_text
from pd_core.atomic import write_folder
from pd_core.data.splits import Protocol
from pd_core.protocols.figure import figure
from pd_core.protocols.results import (
    headline_of,
    keys_of,
    protocols_of,
    read,
    summarise,
    titles_of,
)
from pd_core.protocols.words import HEADINGS, heading, numbers, title
from pd_core.results import TITLES, WHO, Scores, Summary

if TYPE_CHECKING:
    from rich.table import Table

Titles = Mapping[str, str]


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
    """Write `summary.json`, `summary.md` and `summary.png`.

    Args:
        evaluations: holds `<protocol>/<run>/metrics.json`, see `results.read`.
        folder: where the three files go, `reports/protocols`; replaced.
        profile: `quickstart` or `paper`.
        datasets: by protocol, the data sets to report; a protocol without any is left out.
        seeds: the seeds to report.
        source: the data set that the teacher was tuned on, for the protocols with such a one.
        titles: a readable name for each data set, where there is one.

    Returns:
        The summary, as `results.summarise` makes it.

    Raises:
        BadParams: there is no data set, no seed, or no source where one is needed.
        MissingFile: a run is missing.
        BadArtifact: a metrics file lacks a number.
        PdError: the folder cannot be written.
    """
    measured = read(evaluations, datasets=datasets, seeds=seeds, source=source)
    summary = summarise(profile, measured, source)
    with write_folder(folder) as new:
        write_json(new / "summary.json", summary)
        write_text(new / "summary.md", markdown(summary, titles))
        (new / "summary.png").write_bytes(figure(summary, titles))
    return summary


def markdown(summary: Summary, titles: Titles | None = None) -> str:
    """Return the summary as Markdown: what was run, then one section per protocol."""
    lines = _introduction(summary)
    for protocol, found in protocols_of(summary).items():
        people = titles_of(protocol)
        lines += ["", f"## {heading(summary, protocol, titles)}", "", numbers(protocol), ""]
        lines += [_line(["data set", *(people[who] for who in WHO)])]
        lines += [_line(["---", *["---:"] * len(WHO)])]
        lines += [
            _line([name, *(_all_numbers(protocol, row[who], who) for who in WHO)])
            for name, row in _rows(found, titles)
        ]
        lines += ["", *(f"- {sentence}." for sentence in findings(protocol, found, titles))]
    return "\n".join(lines) + "\n"


def findings(protocol: Protocol, found: Summary, titles: Titles | None = None) -> list[str]:
    """Tell a protocol's differences and outliers, one line each."""
    told = _differences(protocol, found, digits=2, over=_over(found))
    return told + _outliers(protocol, found, titles)


def table(summary: Summary, titles: Titles | None = None) -> Table:
    """Return the headline numbers as a table for the terminal, with differences and outliers."""
    from rich.box import HORIZONTALS
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=f"PromptKD, {summary['profile']} profile, {_seeds(summary)}",
        caption=Text("\n".join(_notes(summary, titles))),
        caption_justify="left",
        box=HORIZONTALS,
        show_edge=False,
        padding=0,
    )
    shown.add_column("data set", min_width=36)  # which leaves the caption room
    for who in WHO:
        style = "bold" if who == "student" else ""
        shown.add_column(TITLES[who].replace(" ", "\n"), justify="right", style=style, no_wrap=True)
    for protocol, found in protocols_of(summary).items():
        shown.add_row(Text(heading(summary, protocol, titles), style="italic"))
        rows, key = _rows(found, titles), headline_of(protocol)
        for index, (name, row) in enumerate(rows, 1):
            cells = [_spread(row[who], key, digits=1) for who in WHO]
            label = Text(name, no_wrap=True, overflow="ellipsis")  # cut, not broken
            shown.add_row(label, *cells, end_section=index >= len(rows) - 1)
    return shown


def _notes(summary: Summary, titles: Titles | None) -> list[str]:
    """Say what the terminal's table shows, how large the differences are, and who is off."""
    several = " ± standard deviation" if len(summary["seeds"]) > 1 else ""
    lines = [f"percent: harmonic mean of base and novel accuracy, or accuracy{several}"]
    for protocol, found in protocols_of(summary).items():
        lines += ["", f"{HEADINGS[protocol]},{_over(found)}:"]
        lines += _differences(protocol, found, digits=1)
        lines += _outliers(protocol, found, titles)
    return lines


def _introduction(summary: Summary) -> list[str]:
    several = len(summary["seeds"]) > 1
    shown = "mean ± sample standard deviation over the seeds" if several else "of a single seed"
    return [
        f"# Protocols of the {summary['profile']} profile, {_seeds(summary)}",
        "",
        f"Accuracy in percent, {shown}.",
        "Averages are over the data sets within each seed; the average's harmonic mean is that of",
        "the averaged base and novel accuracy, as in the paper.",
        "Differences are paired by data set and seed; p is of Wilcoxon's signed-rank test over the",
        "data sets, each with the mean of its seeds.",
    ]


def _seeds(summary: Summary) -> str:
    seeds = summary["seeds"]
    return f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"


def _rows(found: Summary, titles: Titles | None) -> list[tuple[str, Mapping[str, Scores]]]:
    rows = [(title(name, titles), row) for name, row in sorted(found["datasets"].items())]
    return [*rows, ("average", found["average"])]


def _all_numbers(protocol: Protocol, scores: Scores, who: str) -> str:
    *others, headline = (_spread(scores, key, digits=2) for key in keys_of(protocol))
    return " / ".join([*others, f"**{headline}**" if who == "student" else headline])


def _spread(scores: Scores, key: str, *, digits: int, sign: str = "") -> str:
    number = f"{scores[key]:{sign}.{digits}f}"
    std = scores.get(f"{key}_std")
    return number if std is None else f"{number} ± {std:.{digits}f}"


def _differences(protocol: Protocol, found: Summary, *, digits: int, over: str = "") -> list[str]:
    """Tell the differences, one line each; `over` goes between the points and p."""
    people = titles_of(protocol)
    return [
        f"{people[one['first']]} over {people[one['second']]}: "
        f"{_spread(one, 'difference', digits=digits, sign='+')} points{over}, {_p(one['p'])}"
        for one in found["differences"]
    ]


def _p(value: float | None) -> str:
    return "too few for p" if value is None else f"p = {value:.2g}"


def _over(found: Summary) -> str:
    count = len(found["datasets"])
    return f" over {count} data set{'s' if count > 1 else ''}"


def _outliers(protocol: Protocol, found: Summary, titles: Titles | None) -> list[str]:
    """Name the outliers, one line each, or say that there is none, or that none can be named."""
    people = titles_of(protocol)
    runs = [run for seeds in found["runs"].values() for run in seeds.values()]
    seeds = len(next(iter(found["runs"].values())))
    if seeds < 3:
        return ["outliers: none named, which takes three seeds"]
    return [
        f"outlier: {title(one['dataset'], titles)}, {people[one['who']]}, seed {one['seed']}: "
        f"{one['value']:.1f}, {one['deviation']:+.1f} points off the other seeds' "
        f"{one['others']:.1f}"
        for one in found["outliers"]
    ] or [f"no outlier among {len(runs)} runs"]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
