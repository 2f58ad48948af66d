"""Report of a learning curve: figure, table, and what the last doublings brought."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from pd_core.core.artifacts import write_json, write_text
from pd_core.core.atomic import write_bytes
from pd_core.core.options import TITLES
from pd_core.data.loading.splits import Protocol
from pd_core.labelling.curve import Curve, Point
from pd_core.reporting.figures import AXES, BLUE, FAINT, INK, VERMILION, png
from pd_core.reporting.results import mean_and_deviation, with_deviation
from pd_core.reporting.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE = {"teacher": (VERMILION, "D", 0.98), "student": (BLUE, "o", 1.02)}
"""Colour, marker, and factor that moves a model's points aside, so that bars do not cover bars."""

_ZERO_SHOT = {"zero_shot_teacher": VERMILION, "zero_shot_student": BLUE}


def write(curve: Curve, protocol: Protocol, name: str, folder: Path) -> Path:
    """Write `<name>.md`, `<name>.png` and `<name>.json`; return the first."""
    accuracy = _accuracy(curve, protocol).capitalize()
    page = folder / f"{name}.md"
    lines = [
        f"# Learning curve of {name}",
        f"{accuracy}: mean and standard deviation over seeds, of which there are {_seeds(curve)}.",
        f"![accuracy by number of labels, and of unlabelled images]({name}.png)",
        table(curve).markdown(),
        *gains(curve),
    ]
    write_bytes(folder / f"{name}.png", figure(curve, protocol))
    rows = [
        {"shots": point.shots, "labels": point.labels, "unlabelled": point.unlabelled, **values}
        for point, values in curve.accuracies.items()
    ]
    write_json(folder / f"{name}.json", {"held_out": curve.held_out, "points": rows})
    write_text(page, "\n\n".join(lines) + "\n")
    return page


def table(curve: Curve) -> Table:
    """Return the accuracies of all points."""
    rows = [
        [
            f"{point.shots}", f"{point.labels}", f"{point.unlabelled}",
            *(_cell(curve.accuracies[point][model]) for model in _STYLE),
        ]
        for point in dict.fromkeys((*curve.by_labels, *curve.by_unlabelled))
    ]  # fmt: skip
    return Table(["labels a class", "labels", "unlabelled images", *_STYLE], rows)


def gains(curve: Curve) -> list[str]:
    """Return a line for each curve: what its last step brought the student."""
    parts = (
        (curve.by_labels, "labels", "labels"),
        (curve.by_unlabelled, "unlabelled", "unlabelled images"),
    )
    return [
        _gain(curve, before, after, key, title)
        for (*_, before, after), key, title in (part for part in parts if len(part[0]) > 1)
    ]


def _gain(curve: Curve, before: Point, after: Point, key: str, title: str) -> str:
    first, second = (curve.accuracies[point]["student"] for point in (before, after))
    gained = [new - old for old, new in zip(first, second, strict=True)]
    mean, deviation = mean_and_deviation(gained)
    cell = with_deviation(f"{mean:+.1f}", deviation, digits=1)
    start, end = getattr(before, key), getattr(after, key)
    return f"From {start} to {end} {title}, the student gained {cell} points."


def figure(curve: Curve, protocol: Protocol) -> bytes:
    """Draw both curves, with error bars of one standard deviation over the seeds."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        _panel(left, curve, curve.by_labels, "labels")
        _panel(right, curve, curve.by_unlabelled, "unlabelled")
        left.set_xlabel("labels", color=INK)
        right.set_xlabel("unlabelled images", color=INK)
        left.set_ylabel(_accuracy(curve, protocol), color=INK)
        handles, names = left.get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=10
        )

    return png(draw, height=4.2)


def _panel(axes: Axes, curve: Curve, points: Sequence[Point], key: str) -> None:
    x = [getattr(point, key) for point in points]
    for model, colour in _ZERO_SHOT.items():
        level = fmean(curve.accuracies[points[-1]][model])
        axes.axhline(level, color=colour, linestyle=":", linewidth=1, label=TITLES[model])
    for model, (colour, marker, aside) in _STYLE.items():
        values = [mean_and_deviation(curve.accuracies[point][model]) for point in points]
        axes.errorbar(
            [aside * value for value in x], [mean for mean, _ in values],
            yerr=[deviation or 0.0 for _, deviation in values],
            color=colour, marker=marker, markersize=6, capsize=3, label=TITLES[model],
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [str(value) for value in x])
    axes.minorticks_off()
    axes.grid(color=FAINT)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)


def _accuracy(curve: Curve, protocol: Protocol) -> str:
    if curve.held_out:
        return "accuracy on held-out labels (%)"
    return AXES["hm" if protocol is Protocol.BASE_TO_NOVEL else "accuracy"]


def _seeds(curve: Curve) -> int:
    return len(curve.accuracies[curve.by_labels[-1]]["student"])


def _cell(values: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(values)
    return with_deviation(f"{mean:.1f}", deviation, digits=1)
