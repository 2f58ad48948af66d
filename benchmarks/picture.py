"""The picture of the scaling: cost against size, a panel for each size."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.outcome import Series
from benchmarks.timing import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's, which colour-blind readers tell apart; ink and grey for the rest
_COLOURS, _INK, _FAINT = ("#0072B2", "#D55E00", "#009E73"), "#333333", "#DDDDDD"


def draw(series: Sequence[Series]) -> bytes:
    """Draw all series with the lines through them; return a PNG picture."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys(curve.size for curve in series))
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the picture
        picture = Figure(figsize=(4 * len(sizes), 3.6), dpi=150)
        FigureCanvasAgg(picture)
        picture.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
        for place, size in enumerate(sizes, start=1):
            axes = picture.add_subplot(1, len(sizes), place)
            _panel(axes, size, [curve for curve in series if curve.size == size])
        data = io.BytesIO()
        picture.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def _panel(axes: "Axes", size: str, series: Sequence[Series]) -> None:
    for colour, curve in zip(_COLOURS, series, strict=False):
        sizes, costs = zip(*curve.points, strict=True)
        line = Line.through(sizes, costs)
        ends = [0.0, max(sizes)]
        axes.plot(ends, [line.at(end) for end in ends], color=colour, alpha=0.4, linewidth=2)
        axes.plot(sizes, costs, marker="o", linestyle="none", color=colour, label=curve.name)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0, top=1.3 * max(cost for curve in series for _, cost in curve.points))
    axes.set_xlabel(size, color=_INK)
    axes.set_ylabel("seconds of the processor", color=_INK)
    axes.grid(color=_FAINT)
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
