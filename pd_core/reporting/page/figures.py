"""The page's figures as SVG elements with the page's own colours; the same for MLflow."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pd_core.data.loading.splits import Protocol
from pd_core.pipeline.stages.jobs import Job
from pd_core.reporting.page.dataset import Curve, DatasetPage, read_stages
from pd_core.reporting.page.models import PEOPLE
from pd_core.reporting.results import PROTOCOLS, keys_of, titles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from pd_core.reporting.page.build import Page

# Okabe and Ito's vermilion and blue, which colour-blind readers tell apart, a little lighter so
# that both can be seen on white and on black
COLOURS = {"teacher": "#e0701f", "student": "#2f8fd0"}
MARKERS = {"teacher": "s", "student": "o"}

_INK = "#123456"  # replaced by the page's
_SPREAD = (
    ("zero_shot_student", _INK, "D", -0.24),
    ("teacher", COLOURS["teacher"], "s", 0.0),
    ("student", COLOURS["student"], "o", 0.24),
)  # colour, mark, rows downwards
_NAME = 19  # letters in a line of a data set's name; two lines
_WIDTH = 4.4  # inches
_SMALLEST, _LARGEST = 4, 60  # areas of a bin's mark, square points
_AXES = {"hm": "harmonic mean", "accuracy": "accuracy"}
_PERCENTS = {"teacher": "accuracy", "student": "agreement"}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
    ),
}
_HEAD = re.compile(r"^.*?(?=<svg)|<metadata>.*?</metadata>", re.DOTALL)
_SIZE = re.compile(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"')
_FAMILY = re.compile(r" font-family: [^;\"]*;")


def curves(page: DatasetPage) -> str:
    """Draw what each training wrote after every epoch: losses, and accuracy or agreement."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(2, 2, sharex="col")
        for column, stage in enumerate(PEOPLE):
            rows = page.curves[stage]
            _curve(axes[0, column], rows, "loss", stage)
            _curve(axes[1, column], rows, _PERCENTS[stage], stage)
            axes[0, column].set_title(f"{stage}: loss", fontsize=9)
            axes[1, column].set_title(f"{_PERCENTS[stage]} in training, %", fontsize=9)
            axes[1, column].set_xlabel("epoch")
        figure.subplots_adjust(
            left=0.09, right=0.98, top=0.92, bottom=0.13, hspace=0.3, wspace=0.25
        )

    return _svg(draw, height=3.4, key=f"curves-{page.name}", label=f"Learning curves, {page.title}")


def reliability(page: DatasetPage) -> str:
    """Draw accuracy over confidence; on the diagonal, they agree."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], color=_INK, linewidth=0.8, alpha=0.5)
        for who in PEOPLE:
            found = page.people[who].calibration
            if found is None:
                continue
            x = [100 * one.confidence for one in found.bins]
            y = [100 * one.accuracy for one in found.bins]
            most = max(one.count for one in found.bins)
            areas = [_SMALLEST + _LARGEST * one.count / most for one in found.bins]
            label = f"{who}, ECE {found.error:.1f}%"
            axes.plot(x, y, color=COLOURS[who], linewidth=0.9)
            axes.scatter(x, y, areas, color=COLOURS[who], marker=MARKERS[who], label=label)
        axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="confidence, %", ylabel="accuracy, %")
        axes.legend(loc="upper left")
        figure.subplots_adjust(left=0.13, right=0.95, top=0.96, bottom=0.16)

    return _svg(
        draw, height=3.4, key=f"calibration-{page.name}", label=f"Calibration, {page.title}"
    )


def matrices(page: DatasetPage) -> str:
    """Draw the confusion matrices of teacher and student, rows as shares of a class's images."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 2)
        for one, who in zip(axes, PEOPLE, strict=True):
            picture = one.imshow(
                _shares(page, who), vmin=0, vmax=1, cmap="cividis", interpolation="none"
            )
            one.set_title(who, fontsize=9)
            one.set_xlabel("answered class")
            _whole_numbers(one.xaxis, one.yaxis)
            if page.base_count < len(page.classes):
                for line in (one.axhline, one.axvline):
                    line(page.base_count - 0.5, color="white", linewidth=0.7)
        axes[0].set_ylabel("class")
        bar = figure.add_axes((0.3, 0.16, 0.4, 0.025))
        figure.colorbar(picture, cax=bar, orientation="horizontal", label="share of the class")
        figure.subplots_adjust(left=0.1, right=0.98, top=0.97, bottom=0.27, wspace=0.22)

    return _svg(draw, height=3.0, key=f"confusion-{page.name}", label=f"Confusion, {page.title}")


def _shares(page: DatasetPage, who: str) -> NDArray[np.float64]:
    """Return a confusion matrix (C, C) as shares of each class's images, 0 to 1."""
    person = page.people[who]
    cells = np.diag([(one or 0.0) / 100 for one in person.classes])
    for pair in person.confused:
        cells[pair.label, pair.taken_for] = pair.count / page.images[pair.label]
    return cells


def seeds(page: Page, protocol: Protocol) -> str:
    """Draw the headline number of each seed as a dot around their mean, a row a data set."""
    key, runs = keys_of(protocol)[-1], page.seeds.protocols[protocol]["runs"]
    people, height = titles_of(protocol), 0.75 + 0.36 * len(runs)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for who, colour, mark, lift in _SPREAD:
            rows = [[run[who][key] for run in each.values()] for each in runs.values()]
            dots = [(value, row + lift) for row, values in enumerate(rows) for value in values]
            means = [(fmean(values), row + lift) for row, values in enumerate(rows)]
            look: dict[str, Any] = {"color": colour, "linestyle": "none"}
            axes.plot(*zip(*means, strict=True), marker="|", markersize=9, **look)
            axes.plot(
                *zip(*dots, strict=True), marker=mark, markersize=3.5, alpha=0.7, mew=0, **look,
                label=people[who],
            )  # fmt: skip
        axes.set_yticks(range(len(runs)), [_short(page.titles.get(name, name)) for name in runs])
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_yticks([row + 0.5 for row in range(len(runs) - 1)], minor=True)
        axes.grid(axis="y", which="minor", color=_INK, alpha=0.15)
        axes.tick_params(axis="y", which="both", length=0)
        axes.set_xlabel(f"{_AXES[key]}, %")
        figure.legend(loc="upper center", ncols=3, handletextpad=0, columnspacing=0.8)
        figure.subplots_adjust(left=0.31, right=0.97, top=1 - 0.3 / height, bottom=0.45 / height)

    label = f"Single seeds, {PROTOCOLS[protocol]}"
    return _svg(draw, height=height, key=f"seeds-{protocol}", label=label)


def _short(title: str) -> str:
    """Break a data set's name into two lines, and cut what does not fit."""
    lines = textwrap.wrap(title, _NAME)
    return "\n".join(lines if len(lines) < 3 else (lines[0], f"{lines[1][: _NAME - 1]}…"))


def standalone(figure: str) -> str:
    """Return a figure as a file of its own, black on white wherever it is shown."""
    return figure.replace("<svg", '<svg style="background: white; color: black"', 1)


def _curve(axes: Axes, rows: Curve, key: str, stage: str) -> None:
    epochs = [number for number, row in enumerate(rows, 1) if key in row]
    values = [row[key] for row in rows if key in row]
    axes.plot(epochs, values, color=COLOURS[stage], marker=MARKERS[stage], markersize=3)
    axes.grid(axis="y", color=_INK, alpha=0.15)
    _whole_numbers(axes.xaxis)
    if not values:
        axes.text(0.5, 0.5, "not there", transform=axes.transAxes, ha="center")


def _whole_numbers(*axes: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _svg(draw: Callable[[Figure], None], *, height: float, key: str, label: str) -> str:
    """Draw a figure and return its element, with names of its own and the page's ink."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the figure
        mpl.rcParams.update({**_SETTINGS, "svg.hashsalt": key})
        figure = Figure(figsize=(_WIDTH, height))
        FigureCanvasSVG(figure)
        draw(figure)
        data = io.StringIO()
        figure.savefig(data, format="svg", metadata={"Date": None})
    return _element(data.getvalue(), label)


def _element(text: str, label: str) -> str:
    text = _HEAD.sub("", text)
    text = _SIZE.sub(r"\1\2", text, count=1)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(
        r' id="([^"]*)"', lambda found: found.group() if found.group(1) in used else "", text
    )
    text = _FAMILY.sub("", text).replace(_INK, "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip()


CURVES = "learning_curves.svg"
CONFUSION = "confusion_matrix.svg"
CLASSES = "per_class_metrics.csv"
CALIBRATION = "calibration"  # a folder, of a figure a data set


def of_evaluation(job: Job) -> dict[str, str]:
    """Return the files of an evaluated data set's run, by name.

    There is no confusion where no test image has a label.

    Raises:
        PdError: what the stages wrote is missing or damaged.
    """
    page, _, _ = read_stages(job)
    files = {CURVES: standalone(curves(page))}
    if page.people:
        files[CONFUSION] = standalone(matrices(page))
        files[CLASSES] = _classes(page)
    return files


def calibrations(pages: Sequence[DatasetPage]) -> dict[str, str]:
    """Return the reliability diagrams of the data sets whose models answered, by name."""
    return {
        f"{CALIBRATION}/{page.name}.svg": standalone(reliability(page))
        for page in pages
        if page.calibrated
    }


def calibration_errors(pages: Sequence[DatasetPage]) -> dict[str, float]:
    """Return the expected calibration errors, percent, by data set and who."""
    return {
        f"{page.name}/{who}/calibration_error": person.calibration.error
        for page in pages
        for who, person in page.people.items()
        if person.calibration is not None
    }


def _classes(page: DatasetPage) -> str:
    """Write each class's test images and accuracies, percent; empty without test images."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["label", "class", "images", *PEOPLE])
    for label, name in enumerate(page.classes):
        accuracies = [page.people[who].classes[label] for who in PEOPLE]
        cells = ("" if one is None else f"{one:.2f}" for one in accuracies)
        table.writerow([label, name, page.images[label], *cells])
    return text.getvalue()
