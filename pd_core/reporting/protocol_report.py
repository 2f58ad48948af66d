"""Stage `report` of the protocols: results over the seeds as JSON, Markdown and a figure."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING, Any

from pd_core.core.artifacts import write_json, write_text
from pd_core.core.atomic import write_folder
from pd_core.data.loading.splits import Protocol
from pd_core.reporting.protocol_results import (
    HEADINGS,
    Run,
    averages,
    heading,
    headline_of,
    keys_of,
    numbers,
    protocols_of,
    read,
    summarise,
    taught_by,
    title,
    titles_of,
)
from pd_core.reporting.results import TITLES, WHO, Scores, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

_INK, _FAINT, _BAND = "#333333", "#DDDDDD", "#F5F5F5"
_DOTS_PER_INCH = 150
_ROW, _HEAD = 0.44, 0.9  # inches: height of a data set, and of a panel's title and axis
_LINE = 36  # characters of a title in a line, of which a row has room for two
_BESIDE: dict[str, Any] = {"textcoords": "offset points", "color": "#0072B2", "fontsize": 10}
_RING: dict[str, Any] = {
    "linestyle": "none", "marker": "o", "markersize": 9, "zorder": 4,
    "markerfacecolor": "none", "markeredgecolor": "#000000", "markeredgewidth": 1.4,
}  # fmt: skip
_AXES = {"hm": "harmonic mean of base and novel accuracy (%)", "accuracy": "accuracy (%)"}


@dataclass(frozen=True)
class _Series:
    """How one classifier is drawn: Okabe and Ito's colours, and shapes that tell it as well."""

    who: str
    colour: str
    marker: str
    size: float  # points
    lift: float  # rows, downwards


_SERIES = (
    _Series("zero_shot_student", "#666666", "s", 7.5, -0.28),
    _Series("teacher", "#D55E00", "D", 6.2, 0.0),
    _Series("student", "#0072B2", "o", 8.0, 0.28),
)


@dataclass(frozen=True)
class _Row:
    """A data set, or the average: the headline number of each seed by who, and who is off."""

    title: str
    values: Mapping[str, Mapping[str, float]]
    wild: frozenset[tuple[str, str]] = frozenset()  # who and seed

    def mean(self, who: str) -> float:
        return fmean(self.values[who].values())

    @property
    def gain(self) -> float:
        return self.mean("student") - self.mean("zero_shot_student")


def figure(summary: Summary, titles: Mapping[str, str] | None = None) -> bytes:
    """Draw one panel a protocol: each data set's seeds as dots on their mean's marker.

    Data sets are in the order of the distilled student's mean; the average of the panel comes last.
    Outliers are ringed. All panels have the same axis.

    Returns:
        A PNG picture, the same bytes for the same summary.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {
        protocol: _rows_of(protocol, found, titles)
        for protocol, found in protocols_of(summary).items()
    }
    heights = [_ROW * len(rows) for rows in panels.values()]
    everything = [row for rows in panels.values() for row in rows]
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the bytes
        height = 0.8 + sum(heights) + _HEAD * len(panels)
        picture = Figure(figsize=(10, height), dpi=_DOTS_PER_INCH)
        FigureCanvasAgg(picture)
        picture.set_layout_engine("constrained", h_pad=0.08, w_pad=0.1)
        places = picture.subplots(len(panels), height_ratios=heights, squeeze=False)[:, 0]
        for axes, (protocol, rows) in zip(places, panels.items(), strict=True):
            for place, row in enumerate(rows):
                _draw(axes, place, row)
            _decorate(axes, [row.title for row in rows], _limits(everything))
            axes.set_title(HEADINGS[protocol], loc="left", weight="bold", color=_INK)
            axes.set_xlabel(_label(summary, protocol, titles), loc="right", color=_INK)
        _legend(picture, several=len(summary["seeds"]) > 1, ringed=any(r.wild for r in everything))
        data = io.BytesIO()
        picture.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def _rows_of(protocol: Protocol, found: Summary, titles: Mapping[str, str] | None) -> list[_Row]:
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
    return {one.who: {seed: run[one.who][key] for seed, run in seeds.items()} for one in _SERIES}


def _label(summary: Summary, protocol: Protocol, titles: Mapping[str, str] | None) -> str:
    return "\n".join([_AXES[headline_of(protocol)], *taught_by(summary, protocol, titles)])


def _draw(axes: Axes, place: int, row: _Row) -> None:
    """Draw each one's mean as a pale marker, and its seeds as dots on it or beside it."""
    for one in _SERIES:
        y, values = place + one.lift, row.values[one.who]
        axes.plot(row.mean(one.who), y, **_mean_style(one))
        axes.plot(list(values.values()), [y] * len(values), **_dot_style(one.colour))
        ringed = [value for seed, value in values.items() if (one.who, seed) in row.wild]
        axes.plot(ringed, [y] * len(ringed), **_RING)
    axes.annotate(
        f"{row.gain:+.1f}", (1.0, place), (8, 0), xycoords=("axes fraction", "data"), va="center",
        **_BESIDE,
    )  # fmt: skip


def _decorate(axes: Axes, names: Sequence[str], limits: tuple[int, int]) -> None:
    last = len(names) - 1
    for place in range(0, last, 2):
        axes.axhspan(place - 0.5, place + 0.5, color=_BAND, zorder=0)
    axes.set_yticks(range(len(names)), [fill(n, _LINE) for n in names], fontsize=10.5, color=_INK)
    axes.get_yticklabels()[last].set_fontweight("bold")
    axes.axhline(last - 0.5, color=_INK, linewidth=0.8)
    axes.set_ylim(last + 0.5, -0.5)
    axes.set_xlim(limits)
    axes.grid(axis="x", color=_FAINT, zorder=0)
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)
    axes.annotate("gain", (1.0, 1.0), (8, 2), xycoords="axes fraction", va="bottom", **_BESIDE)


def _limits(rows: Sequence[_Row]) -> tuple[int, int]:
    """Return the axis of all panels: whole tens around all seeds, with room for markers."""
    values = [value for row in rows for seeds in row.values.values() for value in seeds.values()]
    return max(0, 10 * floor(min(values) / 10 - 0.2)), min(100, 10 * ceil(max(values) / 10 + 0.2))


def _legend(picture: Figure, *, several: bool, ringed: bool) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], label=TITLES[one.who], **_mean_style(one)) for one in _SERIES]
    if several:
        marks.append(Line2D([], [], label="single seeds", **_dot_style(_INK)))
    if ringed:
        marks.append(Line2D([], [], label="outlier", **_RING))
    picture.legend(
        handles=marks, loc="outside upper center", ncols=len(marks), frameon=False, fontsize=10,
        handletextpad=0.2, columnspacing=1.4,
    )  # fmt: skip


def _mean_style(one: _Series) -> dict[str, Any]:
    return {
        "linestyle": "none", "marker": one.marker, "markersize": one.size, "zorder": 2,
        "markerfacecolor": (one.colour, 0.3), "markeredgecolor": one.colour,
    }  # fmt: skip


def _dot_style(colour: str) -> dict[str, Any]:
    return {
        "linestyle": "none", "marker": "o", "markersize": 3, "zorder": 3, "color": colour,
    }  # fmt: skip


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
