"""Style of all figures, and the figures themselves: the same bytes for the same numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING, Any

from pd_core.core.options import TITLES
from pd_core.core.scores import gain, headline
from pd_core.data.loading.splits import Protocol
from pd_core.reporting.results import (
    PROTOCOLS,
    Evaluation,
    Summary,
    Titles,
    average,
    keys_of,
    protocols_of,
    source_of,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's blue and vermilion, which colour-blind readers tell apart; ink for the rest
BLUE, VERMILION, INK, FAINT, BAND = "#0072B2", "#D55E00", "#333333", "#DDDDDD", "#F5F5F5"

AXES = {"hm": "harmonic mean of base and novel accuracy (%)", "accuracy": "accuracy (%)"}
MARK, FOOTNOTE = "†", "checkpoint chosen on test images, as the published code does"

_GAIN: dict[str, Any] = {"textcoords": "offset points", "color": BLUE, "fontsize": 10}


def png(draw: Callable[[Figure], None], *, height: float, gap: float = 0.1) -> bytes:
    """Draw a PNG image, ten inches wide, the same bytes whatever the user's matplotlibrc.

    `draw` fills the figure; its height, and the gap above and below its axes, are in inches.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        figure = Figure(figsize=(10, height), dpi=150)
        FigureCanvasAgg(figure)
        figure.set_layout_engine("constrained", h_pad=gap, w_pad=0.1)
        draw(figure)
        data = io.BytesIO()
        figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


SVG_INK = "#123456"  # replaced by the page's colour of text
_SVG_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), SVG_INK
    ),
}
_HEAD = re.compile(r"^.*?(?=<svg)|<metadata>.*?</metadata>", re.DOTALL)
_SIZE = re.compile(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"')
_FAMILY = re.compile(r" font-family: [^;\"]*;")


def svg(draw: Callable[[Figure], None], *, height: float, key: str, label: str) -> str:
    """Draw an SVG element, 4.4 inches wide, in the colours of the page around it.

    `draw` fills the figure, and `SVG_INK` becomes the page's colour of text. The key makes names
    inside the element unique on its page; the label is read aloud in place of the figure.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**_SVG_SETTINGS, "svg.hashsalt": key})
        figure = Figure(figsize=(4.4, height))
        FigureCanvasSVG(figure)
        draw(figure)
        data = io.StringIO()
        figure.savefig(data, format="svg", metadata={"Date": None})
    text = _SIZE.sub(r"\1\2", _HEAD.sub("", data.getvalue()), count=1)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda id_: id_.group() if id_.group(1) in used else "", text)
    text = _FAMILY.sub("", text).replace(SVG_INK, "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip()


def standalone(figure: str) -> str:
    """Return an SVG element as a file of its own, black on white wherever it is shown."""
    return figure.replace("<svg", '<svg style="background: white; color: black"', 1)


def _bare(axes: Axes, **grid: Any) -> None:
    """Leave vertical grid lines and labels alone of the axes."""
    axes.grid(axis="x", color=FAINT, **grid)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)


def _name_rows(axes: Axes, names: Sequence[str], *, with_average: bool = True) -> None:
    """Name the rows of a figure of results, top to bottom, the last being the average, if any."""
    last = len(names) - 1
    axes.set_yticks(range(len(names)), names, fontsize=10.5, color=INK)
    if with_average:
        axes.get_yticklabels()[last].set_fontweight("bold")
        axes.axhline(last - 0.5, color=INK, linewidth=0.8)
    axes.set_ylim(last + 0.5, -0.5)
    _bare(axes, zorder=0)
    axes.annotate("gain", (1.0, 1.0), (8, 2), xycoords="axes fraction", va="bottom", **_GAIN)


def _write_gain(axes: Axes, row: int, points: float) -> None:
    """Write right of a row by how much distillation raised the student's number."""
    beside: Any = ("axes fraction", "data")
    axes.annotate(f"{points:+.1f}", (1.0, row), (8, 0), xycoords=beside, va="center", **_GAIN)


def dumbbells(
    rows: Sequence[tuple[str, Evaluation]],
    average_row: tuple[str, Evaluation] | None,
    notes: Sequence[str],
) -> bytes:
    """Draw what tuning and distillation changed, data set by data set, then their average.

    Each data set has two dumbbells on the axis of the harmonic mean (or of the accuracy on all
    classes, if these were taught): the teacher's, from zero-shot to tuned, and the student's, from
    zero-shot to distilled. Data sets are in the order of the distilled student's result.
    """
    ordered = sorted(rows, key=lambda row: (-headline(row[1]["student"]), row[0]))
    ordered += [average_row] if average_row else []

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (_, scores) in enumerate(ordered):
            _dumbbell(axes, index, scores)
        _name_rows(axes, [name for name, _ in ordered], with_average=average_row is not None)
        axes.set_xlim(0, 100)
        axes.set_xlabel("\n".join([AXES["hm"], *notes]), color=INK)
        figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=10)

    return png(draw, height=1.7 + 0.42 * len(ordered))


def _dumbbell(axes: Axes, row: int, scores: Evaluation) -> None:
    pairs = (
        (row - 0.15, VERMILION, "zero_shot_teacher", "teacher"),
        (row + 0.15, BLUE, "zero_shot_student", "student"),
    )
    for y, colour, before, after in pairs:
        start, end = headline(scores[before]), headline(scores[after])
        axes.plot([start, end], [y, y], color=colour, alpha=0.35, linewidth=3, zorder=2)
        for model, x, fill_colour in ((before, start, "white"), (after, end, colour)):
            axes.plot(
                [x], [y], marker="o", linestyle="none", markersize=7, zorder=3,
                markerfacecolor=fill_colour, markeredgecolor=colour, markeredgewidth=1.6,
                label=TITLES[model] if row == 0 else None,
            )  # fmt: skip
    _write_gain(axes, row, gain(scores))


_ROW, _PANEL = 0.44, 0.9  # inches: height of a data set, and of a panel's title and axis
_LINE = 36  # characters of a title in a line, of which a row has room for two
_RING: dict[str, Any] = {
    "linestyle": "none", "marker": "o", "markersize": 9, "zorder": 4,
    "markerfacecolor": "none", "markeredgecolor": "#000000", "markeredgewidth": 1.4,
}  # fmt: skip

# Colour, mark, its size in points, rows downwards; the shapes tell them apart as well
_SERIES = {
    "zero_shot_student": ("#666666", "s", 7.5, -0.28),
    "teacher": (VERMILION, "D", 6.2, 0.0),
    "student": (BLUE, "o", 8.0, 0.28),
}


@dataclass(frozen=True)
class _Seeds:
    """A data set, or the average: the headline number by model and seed, and the outliers."""

    title: str
    values: Mapping[str, Mapping[str, float]]
    outliers: frozenset[tuple[str, str]] = frozenset()  # model and seed

    def mean(self, model: str) -> float:
        return fmean(self.values[model].values())


def single_seeds(summary: Summary, titles: Titles | None = None) -> bytes:
    """Draw one panel a protocol: each data set's seeds as dots on their mean's marker.

    Data sets are in the order of the distilled student's mean; the average of the panel comes last.
    Outliers are ringed. All panels have the same axis.
    """
    panels = {
        protocol: _seeds_of(protocol, part, titles)
        for protocol, part in protocols_of(summary).items()
    }
    heights = [_ROW * len(rows) for rows in panels.values()]
    everything = [row for rows in panels.values() for row in rows]
    values = [v for row in everything for seeds in row.values.values() for v in seeds.values()]
    # whole tens around all seeds, with room for markers
    limits = max(0, 10 * floor(min(values) / 10 - 0.2)), min(100, 10 * ceil(max(values) / 10 + 0.2))

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(panels), height_ratios=heights, squeeze=False)[:, 0]
        for axes, (protocol, rows) in zip(grid, panels.items(), strict=True):
            _draw_seeds(axes, rows)
            axes.set_xlim(limits)
            axes.set_title(PROTOCOLS[protocol], loc="left", weight="bold", color=INK)
            label = [AXES[keys_of(protocol)[-1]], *source_of(summary, protocol, titles)]
            axes.set_xlabel("\n".join(label), loc="right", color=INK)
        ringed = any(row.outliers for row in everything)
        _seeds_legend(figure, several=len(summary["seeds"]) > 1, ringed=ringed)

    return png(draw, height=0.8 + sum(heights) + _PANEL * len(panels), gap=0.08)


def _seeds_of(protocol: Protocol, part: Summary, titles: Titles | None) -> list[_Seeds]:
    """Return the data sets by the distilled student's mean, then the average."""
    key, runs = keys_of(protocol)[-1], part["runs"]
    rows = []
    for name, seeds in runs.items():
        values = {
            model: {seed: run[model][key] for seed, run in seeds.items()} for model in _SERIES
        }
        outliers = frozenset(
            (row["who"], str(row["seed"])) for row in part["outliers"] if row["dataset"] == name
        )
        rows.append(_Seeds(title(name, titles), values, outliers))
    rows.sort(key=lambda row: (-row.mean("student"), row.title))
    means = {
        model: {
            seed: average([run[seed][model] for run in runs.values()], keys_of(protocol))[key]
            for seed in next(iter(runs.values()))
        }
        for model in _SERIES
    }
    return [*rows, _Seeds("average", means)]


def _draw_seeds(axes: Axes, rows: Sequence[_Seeds]) -> None:
    """Draw each model's mean as a pale marker, and its seeds as dots on it or beside it."""
    for index, row in enumerate(rows):
        for model, (colour, _, _, lift) in _SERIES.items():
            y, values = index + lift, row.values[model]
            axes.plot(row.mean(model), y, **_mean_style(model))
            axes.plot(list(values.values()), [y] * len(values), **_dot_style(colour))
            ringed = [value for seed, value in values.items() if (model, seed) in row.outliers]
            axes.plot(ringed, [y] * len(ringed), **_RING)
        _write_gain(axes, index, row.mean("student") - row.mean("zero_shot_student"))
    for index in range(0, len(rows) - 1, 2):
        axes.axhspan(index - 0.5, index + 0.5, color=BAND, zorder=0)
    _name_rows(axes, [fill(row.title, _LINE) for row in rows])


def _seeds_legend(figure: Figure, *, several: bool, ringed: bool) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], label=TITLES[model], **_mean_style(model)) for model in _SERIES]
    if several:
        marks.append(Line2D([], [], label="single seeds", **_dot_style(INK)))
    if ringed:
        marks.append(Line2D([], [], label="outlier", **_RING))
    figure.legend(
        handles=marks, loc="outside upper center", ncols=len(marks), frameon=False, fontsize=10,
        handletextpad=0.2, columnspacing=1.4,
    )  # fmt: skip


def _mean_style(model: str) -> dict[str, Any]:
    colour, marker, size, _ = _SERIES[model]
    return {
        "linestyle": "none", "marker": marker, "markersize": size, "zorder": 2,
        "markerfacecolor": (colour, 0.3), "markeredgecolor": colour,
    }  # fmt: skip


def _dot_style(colour: str) -> dict[str, Any]:
    return {
        "linestyle": "none", "marker": "o", "markersize": 3, "zorder": 3, "color": colour,
    }  # fmt: skip


def ablation_differences(summary: Summary) -> bytes:
    """Draw the ablations' differences to the reference, ours beside the paper's, a line a row."""
    lines = [line for part in summary["tables"] for line in (part["title"], *part["rows"])]
    rows = {index: line for index, line in enumerate(lines) if isinstance(line, Mapping)}
    ours = {index: row["difference"] or {} for index, row in rows.items()}
    paper = {index: {"mean": row["paper_difference"]} for index, row in rows.items()}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _name_variants(axes, lines, seeds=len(summary["seeds"]))
        _errors(axes, "● embedded", ours, 0.16, 76, color=BLUE)
        _errors(axes, "○ paper", paper, -0.16, 130, color=VERMILION, markerfacecolor="white")

    return png(draw, height=1.2 + 0.29 * len(lines))


def label_of(row: Mapping[str, Any]) -> str:
    """Return an ablation's label, marked if its checkpoint was chosen on test images."""
    return f"{row['label']} {MARK}" if row["chosen_on_test"] else str(row["label"])


def _name_variants(axes: Axes, lines: Sequence[Any], *, seeds: int) -> None:
    names = ["" if isinstance(line, str) else label_of(line) for line in lines]
    axes.set_yticks(range(len(lines)), names, fontsize=9.5)
    for index, line in enumerate(lines):
        if isinstance(line, str):
            axes.axhspan(index - 0.45, index + 0.45, color="#F0F0F0", zorder=2)
            _write(axes, (0.0, index), line, 5, color=INK, fontweight="bold")
        elif line["reference"]:
            axes.get_yticklabels()[index].set_fontweight("bold")
            axes.plot(0, index, "s", color=INK, markersize=5, zorder=4)
    axes.axvline(0, color=INK, linewidth=1, zorder=1.8)  # above the grid, below the titles
    axes.set_ylim(len(lines) - 0.4, -0.6)
    _bare(axes)
    bars = "; bars: standard deviation over the seeds" if seeds > 1 else ""
    note = f"\n{MARK} {FOOTNOTE}" if any(name.endswith(MARK) for name in names) else ""
    axes.set_xlabel(
        f"difference in harmonic mean to the row in bold, points{bars}{note}", color=INK
    )


def _errors(
    axes: Axes,
    name: str,
    values: Mapping[int, Mapping[str, float | None]],
    lift: float,
    column: int,
    **style: Any,
) -> None:
    _write(axes, (1.0, -1), name, column, ha="right", color=style["color"])
    for row, value in values.items():
        mean, deviation = value.get("mean"), value.get("sd")
        if mean is not None:
            axes.errorbar(mean, row - lift, xerr=deviation, fmt="o", ms=5.5, zorder=4, **style)
            text = f"{mean:+.2f}".replace("-", "−")
            _write(axes, (1.0, row), text, column, ha="right", color=style["color"])


def _write(axes: Axes, at: tuple[float, int], text: str, right: int, **style: Any) -> None:
    beside: Any = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
    axes.annotate(text, at, (right, 0), va="center_baseline", fontsize=9.5, **beside, **style)
