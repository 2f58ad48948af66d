"""The protocols' picture: every seed of every data set, before and after distilling."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING, Any

from pd_core.data.splits import Protocol
from pd_core.protocols.results import Run, averages, headline_of, protocols_of
from pd_core.protocols.words import HEADINGS, taught_by, title
from pd_core.results import TITLES, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
        protocol: _rows(protocol, found, titles)
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


def _rows(protocol: Protocol, found: Summary, titles: Mapping[str, str] | None) -> list[_Row]:
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
