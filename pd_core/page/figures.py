"""The page's figures, as SVG elements that take the page's own ink, light or dark.

Drawn at the width of a phone, so that their letters stay readable there.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from pd_core.page.answering import PEOPLE
from pd_core.page.dataset import Curve, DatasetPage, shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's vermilion and blue, which colour-blind readers tell apart, a little lighter so
# that both can be seen on white and on black
COLOURS = {"teacher": "#e0701f", "student": "#2f8fd0"}
MARKERS = {"teacher": "s", "student": "o"}

_INK = "#123456"  # replaced by the page's
_WIDTH = 4.4  # inches
_SMALLEST, _LARGEST = 4, 60  # areas of a bin's mark, square points
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
                shares(page, who), vmin=0, vmax=1, cmap="cividis", interpolation="none"
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
