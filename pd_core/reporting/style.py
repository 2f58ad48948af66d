"""Common look of all reports: PNG figures, Markdown tables and tables for the terminal."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

# Okabe and Ito's blue and vermilion, which colour-blind readers tell apart; ink for the rest
BLUE, VERMILION, INK, FAINT = "#0072B2", "#D55E00", "#333333", "#DDDDDD"

_GAIN: dict[str, Any] = {"textcoords": "offset points", "color": BLUE, "fontsize": 10}


def png(draw: Callable[[Figure], None], *, height: float, gap: float = 0.1) -> bytes:
    """Draw a figure of ten inches' width.

    Args:
        draw: fills the figure.
        height: of the figure, inches.
        gap: above and below its axes, inches.

    Returns:
        A PNG image, the same bytes whatever the user's matplotlibrc.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        picture = Figure(figsize=(10, height), dpi=150)
        FigureCanvasAgg(picture)
        picture.set_layout_engine("constrained", h_pad=gap, w_pad=0.1)
        draw(picture)
        data = io.BytesIO()
        picture.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def bare(axes: Axes, **grid: Any) -> None:
    """Leave vertical grid lines and labels alone of the axes."""
    axes.grid(axis="x", color=FAINT, **grid)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)


def name_rows(axes: Axes, names: Sequence[str], *, average: bool = True) -> None:
    """Name the rows of a figure of results, top to bottom, the last being the average, if any."""
    last = len(names) - 1
    axes.set_yticks(range(len(names)), names, fontsize=10.5, color=INK)
    if average:
        axes.get_yticklabels()[last].set_fontweight("bold")
        axes.axhline(last - 0.5, color=INK, linewidth=0.8)
    axes.set_ylim(last + 0.5, -0.5)
    bare(axes, zorder=0)
    axes.annotate("gain", (1.0, 1.0), (8, 2), xycoords="axes fraction", va="bottom", **_GAIN)


def write_gain(axes: Axes, place: int, points: float) -> None:
    """Write right of a row by how much distilling raised the student's number."""
    beside: Any = ("axes fraction", "data")
    axes.annotate(f"{points:+.1f}", (1.0, place), (8, 0), xycoords=beside, va="center", **_GAIN)


def markdown_table(heads: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return a table's lines; all columns but the first are flush right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def terminal_table(name: str, width: int, **options: Any) -> Table:
    """Return an empty table for the terminal, with options of `rich.table.Table`.

    Its first column has the name and at least the width, which leaves the caption room.
    """
    from rich.box import HORIZONTALS
    from rich.table import Table

    table = Table(box=HORIZONTALS, show_edge=False, padding=0, **options)
    table.add_column(name, min_width=width)
    return table
