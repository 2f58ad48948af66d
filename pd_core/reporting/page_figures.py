"""Figures of the page, on white and on black, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from pd_core.data.loading.splits import Protocol
from pd_core.reporting.figures import SVG_INK, svg
from pd_core.reporting.results import PROTOCOLS, Summary, Titles, keys_of, title, titles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from pd_core.reporting.page_dataset import DatasetPage

# Okabe and Ito's colours a little lighter
COLOURS = {"teacher": "#e0701f", "student": "#2f8fd0"}
MARKERS = {"teacher": "s", "student": "o"}
PERCENTS = {"teacher": "accuracy", "student": "agreement"}

_SPREAD = (
    ("zero_shot_student", SVG_INK, "D", -0.24),
    ("teacher", COLOURS["teacher"], "s", 0.0),
    ("student", COLOURS["student"], "o", 0.24),
)  # colour, mark, rows downwards
_NAME = 19  # letters in a line of a data set's name; two lines
_SMALLEST, _LARGEST = 4, 60  # areas of a bin's mark, square points


def curves(page: DatasetPage) -> str:
    """Draw the history of each training by epoch: losses, and accuracy or agreement."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(2, 2, sharex="col")
        for column, stage in enumerate(COLOURS):
            rows = page.curves[stage]
            _curve(axes[0, column], rows, "loss", stage)
            _curve(axes[1, column], rows, PERCENTS[stage], stage)
            axes[0, column].set_title(f"{stage}: loss", fontsize=9)
            axes[1, column].set_title(f"{PERCENTS[stage]} in training, %", fontsize=9)
            axes[1, column].set_xlabel("epoch")
        figure.subplots_adjust(
            left=0.09, right=0.98, top=0.92, bottom=0.13, hspace=0.3, wspace=0.25
        )

    return svg(draw, height=3.4, key=f"curves-{page.name}", label=f"Learning curves, {page.title}")


def _curve(axes: Axes, rows: Sequence[Mapping[str, float]], key: str, stage: str) -> None:
    epochs = [number for number, row in enumerate(rows, 1) if key in row]
    values = [row[key] for row in rows if key in row]
    axes.plot(epochs, values, color=COLOURS[stage], marker=MARKERS[stage], markersize=3)
    axes.grid(axis="y", color=SVG_INK, alpha=0.15)
    _whole_numbers(axes.xaxis)
    if not values:
        axes.text(0.5, 0.5, "not there", transform=axes.transAxes, ha="center")


def _whole_numbers(*axes: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def reliability(page: DatasetPage) -> str:
    """Draw accuracy over confidence; on the diagonal, they agree."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], color=SVG_INK, linewidth=0.8, alpha=0.5)
        for model, colour in COLOURS.items():
            calibration = page.people[model].calibration
            if calibration is None:
                continue
            x = [100 * part.confidence for part in calibration.bins]
            y = [100 * part.accuracy for part in calibration.bins]
            most = max(part.count for part in calibration.bins)
            areas = [_SMALLEST + _LARGEST * part.count / most for part in calibration.bins]
            label = f"{model}, ECE {calibration.error:.1f}%"
            axes.plot(x, y, color=colour, linewidth=0.9)
            axes.scatter(x, y, areas, color=colour, marker=MARKERS[model], label=label)
        axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="confidence, %", ylabel="accuracy, %")
        axes.legend(loc="upper left")
        figure.subplots_adjust(left=0.13, right=0.95, top=0.96, bottom=0.16)

    return svg(draw, height=3.4, key=f"calibration-{page.name}", label=f"Calibration, {page.title}")


def matrices(page: DatasetPage) -> str:
    """Draw the confusion matrices of teacher and student, rows as shares of a class's images."""

    def draw(figure: Figure) -> None:
        subplots = figure.subplots(1, 2)
        for axes, model in zip(subplots, COLOURS, strict=True):
            image = axes.imshow(
                _shares(page, model), vmin=0, vmax=1, cmap="cividis", interpolation="none"
            )
            axes.set_title(model, fontsize=9)
            axes.set_xlabel("predicted class")
            _whole_numbers(axes.xaxis, axes.yaxis)
            if page.base_count < len(page.classes):
                for line in (axes.axhline, axes.axvline):
                    line(page.base_count - 0.5, color="white", linewidth=0.7)
        subplots[0].set_ylabel("class")
        bar = figure.add_axes((0.3, 0.16, 0.4, 0.025))
        figure.colorbar(image, cax=bar, orientation="horizontal", label="share of the class")
        figure.subplots_adjust(left=0.1, right=0.98, top=0.97, bottom=0.27, wspace=0.22)

    return svg(draw, height=3.0, key=f"confusion-{page.name}", label=f"Confusion, {page.title}")


def _shares(page: DatasetPage, model: str) -> NDArray[np.float64]:
    """Return a confusion matrix (C, C) as shares of each class's images, 0 to 1."""
    result = page.people[model]
    cells = np.diag([(accuracy or 0.0) / 100 for accuracy in result.classes])
    for pair in result.confused:
        cells[pair.label, pair.taken_for] = pair.count / page.images[pair.label]
    return cells


def seeds(summary: Summary, protocol: Protocol, titles: Titles) -> str:
    """Draw the headline number of each seed as a dot around their mean, a row a data set."""
    key, runs = keys_of(protocol)[-1], summary["protocols"][protocol]["runs"]
    names, height = titles_of(protocol), 0.75 + 0.36 * len(runs)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for model, colour, mark, lift in _SPREAD:
            rows = [[run[model][key] for run in each.values()] for each in runs.values()]
            dots = [(value, row + lift) for row, values in enumerate(rows) for value in values]
            means = [(fmean(values), row + lift) for row, values in enumerate(rows)]
            style: dict[str, Any] = {"color": colour, "linestyle": "none"}
            axes.plot(*zip(*means, strict=True), marker="|", markersize=9, **style)
            axes.plot(
                *zip(*dots, strict=True), marker=mark, markersize=3.5, alpha=0.7, mew=0, **style,
                label=names[model],
            )  # fmt: skip
        axes.set_yticks(range(len(runs)), [_two_lines(title(name, titles)) for name in runs])
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_yticks([row + 0.5 for row in range(len(runs) - 1)], minor=True)
        axes.grid(axis="y", which="minor", color=SVG_INK, alpha=0.15)
        axes.tick_params(axis="y", which="both", length=0)
        axes.set_xlabel("harmonic mean, %" if key == "hm" else "accuracy, %")
        figure.legend(loc="upper center", ncols=3, handletextpad=0, columnspacing=0.8)
        figure.subplots_adjust(left=0.31, right=0.97, top=1 - 0.3 / height, bottom=0.45 / height)

    label = f"Single seeds, {PROTOCOLS[protocol]}"
    return svg(draw, height=height, key=f"seeds-{protocol}", label=label)


def _two_lines(name: str) -> str:
    """Break a data set's name into two lines, and cut what does not fit."""
    lines = wrap(name, _NAME)
    return "\n".join(lines if len(lines) < 3 else (lines[0], f"{lines[1][: _NAME - 1]}…"))
