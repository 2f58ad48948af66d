"""Stage `report` of the protocols: results over the seeds as JSON, Markdown and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING, Any

from pd_core.core.artifacts import write_json, write_text
from pd_core.core.atomic import write_folder
from pd_core.core.options import TITLES
from pd_core.data.loading.splits import Protocol
from pd_core.reporting import results
from pd_core.reporting.protocol_results import (
    Run,
    averages,
    headline_of,
    keys_of,
    protocols_of,
    read,
    summarise,
)
from pd_core.reporting.results import WHO, Scores, Summary, Titles, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

_BAND = "#F5F5F5"
_ROW, _HEAD = 0.44, 0.9  # inches: height of a data set, and of a panel's title and axis
_LINE = 36  # characters of a title in a line, of which a row has room for two
_RING: dict[str, Any] = {
    "linestyle": "none", "marker": "o", "markersize": 9, "zorder": 4,
    "markerfacecolor": "none", "markeredgecolor": "#000000", "markeredgewidth": 1.4,
}  # fmt: skip
_AXES = {"hm": "harmonic mean of base and novel accuracy (%)", "accuracy": "accuracy (%)"}

HEADINGS = {
    Protocol.BASE_TO_NOVEL: "Base to novel",
    Protocol.CROSS_DATASET: "Cross-data-set",
    Protocol.DOMAIN_GENERALISATION: "Domain generalisation",
    Protocol.ALL_CLASSES: "All classes",
}

_HALVES = "Base classes / novel classes / harmonic mean; differences and outliers are of the last."
_WHOLE = "Accuracy over all classes."


# Colour, mark, its size in points, rows downwards; the shapes tell them apart as well
_SERIES = {
    "zero_shot_student": ("#666666", "s", 7.5, -0.28),
    "teacher": (results.VERMILION, "D", 6.2, 0.0),
    "student": (results.BLUE, "o", 8.0, 0.28),
}


@dataclass(frozen=True)
class _Row:
    """A data set, or the average: the headline number of each seed by who, and who is off."""

    title: str
    values: Mapping[str, Mapping[str, float]]
    wild: frozenset[tuple[str, str]] = frozenset()  # who and seed

    def mean(self, who: str) -> float:
        return fmean(self.values[who].values())


def figure(summary: Summary, titles: Titles | None = None) -> bytes:
    """Draw one panel a protocol: each data set's seeds as dots on their mean's marker.

    Data sets are in the order of the distilled student's mean; the average of the panel comes last.
    Outliers are ringed. All panels have the same axis.

    Returns:
        A PNG picture, the same bytes for the same summary.
    """
    panels = {
        protocol: _rows_of(protocol, found, titles)
        for protocol, found in protocols_of(summary).items()
    }
    heights = [_ROW * len(rows) for rows in panels.values()]
    everything = [row for rows in panels.values() for row in rows]
    limits = _limits(everything)

    def draw(picture: Figure) -> None:
        places = picture.subplots(len(panels), height_ratios=heights, squeeze=False)[:, 0]
        for axes, (protocol, rows) in zip(places, panels.items(), strict=True):
            _draw(axes, rows)
            axes.set_xlim(limits)
            axes.set_title(HEADINGS[protocol], loc="left", weight="bold", color=results.INK)
            label = [_AXES[headline_of(protocol)], *_taught_by(summary, protocol, titles)]
            axes.set_xlabel("\n".join(label), loc="right", color=results.INK)
        _legend(picture, several=len(summary["seeds"]) > 1, ringed=any(r.wild for r in everything))

    return results.png(draw, height=0.8 + sum(heights) + _HEAD * len(panels), gap=0.08)


def _rows_of(protocol: Protocol, found: Summary, titles: Titles | None) -> list[_Row]:
    """Return the data sets by the distilled student's mean, then the average."""
    key, runs = headline_of(protocol), found["runs"]
    wild = {(one["dataset"], one["who"], str(one["seed"])) for one in found["outliers"]}
    rows = [
        _Row(
            title(name, titles),
            _by_who(seeds, key),
            frozenset((who, seed) for off, who, seed in wild if off == name),
        )
        for name, seeds in runs.items()
    ]
    rows.sort(key=lambda row: (-row.mean("student"), row.title))
    return [*rows, _Row("average", _by_who(averages(runs), key))]


def _by_who(seeds: Mapping[str, Run], key: str) -> dict[str, dict[str, float]]:
    return {who: {seed: run[who][key] for seed, run in seeds.items()} for who in _SERIES}


def _draw(axes: Axes, rows: Sequence[_Row]) -> None:
    """Draw each one's mean as a pale marker, and its seeds as dots on it or beside it."""
    for place, row in enumerate(rows):
        for who, (colour, _, _, lift) in _SERIES.items():
            y, values = place + lift, row.values[who]
            axes.plot(row.mean(who), y, **_mean_style(who))
            axes.plot(list(values.values()), [y] * len(values), **_dot_style(colour))
            ringed = [value for seed, value in values.items() if (who, seed) in row.wild]
            axes.plot(ringed, [y] * len(ringed), **_RING)
        results.write_gain(axes, place, row.mean("student") - row.mean("zero_shot_student"))
    for place in range(0, len(rows) - 1, 2):
        axes.axhspan(place - 0.5, place + 0.5, color=_BAND, zorder=0)
    results.name_rows(axes, [fill(row.title, _LINE) for row in rows])


def _limits(rows: Sequence[_Row]) -> tuple[int, int]:
    """Return the axis of all panels: whole tens around all seeds, with room for markers."""
    values = [value for row in rows for seeds in row.values.values() for value in seeds.values()]
    return max(0, 10 * floor(min(values) / 10 - 0.2)), min(100, 10 * ceil(max(values) / 10 + 0.2))


def _legend(picture: Figure, *, several: bool, ringed: bool) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], label=TITLES[who], **_mean_style(who)) for who in _SERIES]
    if several:
        marks.append(Line2D([], [], label="single seeds", **_dot_style(results.INK)))
    if ringed:
        marks.append(Line2D([], [], label="outlier", **_RING))
    picture.legend(
        handles=marks, loc="outside upper center", ncols=len(marks), frameon=False, fontsize=10,
        handletextpad=0.2, columnspacing=1.4,
    )  # fmt: skip


def _mean_style(who: str) -> dict[str, Any]:
    colour, marker, size, _ = _SERIES[who]
    return {
        "linestyle": "none", "marker": marker, "markersize": size, "zorder": 2,
        "markerfacecolor": (colour, 0.3), "markeredgecolor": colour,
    }  # fmt: skip


def _dot_style(colour: str) -> dict[str, Any]:
    return {
        "linestyle": "none", "marker": "o", "markersize": 3, "zorder": 3, "color": colour,
    }  # fmt: skip


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
        evaluations: holds `<protocol>/<run>/metrics.json`, see `read`.
        folder: where the three files go, `reports/protocols`; replaced.
        profile: `quickstart` or `paper`.
        datasets: by protocol, the data sets to report; a protocol without any is left out.
        seeds: the seeds to report.
        source: the data set that the teacher was tuned on, for the protocols with such a one.
        titles: a readable name for each data set, where there is one.

    Returns:
        The summary, as `summarise` makes it.

    Raises:
        PdError: as of `read`, or the folder cannot be written.
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
        lines += ["", f"## {heading(summary, protocol, titles)}", ""]
        lines += [_HALVES if protocol is Protocol.BASE_TO_NOVEL else _WHOLE, ""]
        rows = (
            [name, *(_all_numbers(protocol, row[who], who) for who in WHO)]
            for name, row in _rows(found, titles)
        )
        lines += results.markdown_table(["data set", *(people[who] for who in WHO)], rows)
        lines += ["", *(f"- {sentence}." for sentence in findings(protocol, found, titles))]
    return "\n".join(lines) + "\n"


def heading(summary: Summary, protocol: Protocol, titles: Titles | None) -> str:
    """Return a protocol's heading, with the source if the teacher is another data set's."""
    return ", ".join([HEADINGS[protocol], *_taught_by(summary, protocol, titles)])


def titles_of(protocol: Protocol) -> dict[str, str]:
    """Return what people call those who are measured: most teachers know the data set itself."""
    return TITLES | ({"teacher": "source's teacher"} if protocol.has_source else {})


def findings(protocol: Protocol, found: Summary, titles: Titles | None = None) -> list[str]:
    """Tell a protocol's differences and outliers, one line each."""
    told = _differences(protocol, found, digits=2, over=_over(found))
    return told + _outliers(protocol, found, titles)


def table(summary: Summary, titles: Titles | None = None) -> Table:
    """Return the headline numbers as a table for the terminal, with differences and outliers."""
    from rich.text import Text

    shown = results.terminal_table(
        "data set", 36,
        title=f"PromptKD, {summary['profile']} profile, {_seeds(summary)}",
        caption=Text("\n".join(_notes(summary, titles))),
        caption_justify="left",
    )  # fmt: skip
    for who in WHO:
        weight = "bold" if who == "student" else ""
        shown.add_column(
            TITLES[who].replace(" ", "\n"), justify="right", style=weight, no_wrap=True
        )
    for protocol, found in protocols_of(summary).items():
        shown.add_row(Text(heading(summary, protocol, titles), style="italic"))
        rows, key = _rows(found, titles), headline_of(protocol)
        for index, (name, row) in enumerate(rows, 1):
            cells = [_spread(row[who], key, digits=1) for who in WHO]
            label = Text(name, no_wrap=True, overflow="ellipsis")  # cut, not broken
            shown.add_row(label, *cells, end_section=index >= len(rows) - 1)
    return shown


def _taught_by(summary: Summary, protocol: Protocol, titles: Titles | None) -> list[str]:
    """Say whose teacher it is, if it is another data set's: one phrase, or none."""
    return [f"teacher from {title(summary['source'], titles)}"] if protocol.has_source else []


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
