"""Tables of results, printed to a terminal, as Markdown and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable

NONE = "–"
"""A number that does not exist."""


class Kind(StrEnum):
    """Role of a row."""

    PLAIN = "plain"
    HEADING = "heading"  # of the rows below it; in a terminal alone
    REFERENCE = "reference"  # that the other rows are compared with
    AVERAGE = "average"  # of the rows above it
    PAPER = "paper"  # figures of the paper


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: above it.
        words: holds words, flush left; numbers are flush right.
        long: its words may be wider than a phone's screen.
        bold: in a terminal.
        paper: holds figures of the paper.
        bar: whose percentages are drawn as bars in HTML, `teacher` or `student`.
    """

    head: str
    words: bool = False
    long: bool = False
    bold: bool = False
    paper: bool = False
    bar: str = ""


@dataclass(frozen=True)
class Row:
    """Cells, as many as columns, and their role."""

    cells: tuple[str, ...]
    kind: Kind = Kind.PLAIN


@dataclass(frozen=True)
class Table:
    """Named rows of words and numbers.

    Attributes:
        columns: a string is a column of numbers, or of words if it is the first.
        rows: cells as strings, or `Row`s.
        title: above the table.
        notes: lines below it, in a terminal.
        name_width: least width of the first column in a terminal, whose long names are cut, not
            broken; None if it fits its names.
    """

    columns: Sequence[str | Column]
    rows: Sequence[Sequence[str] | Row]
    title: str = ""
    notes: Sequence[str] = ()
    name_width: int | None = None

    @property
    def heads(self) -> tuple[Column, ...]:
        """The columns; the first one holds words."""
        first, *rest = (
            Column(column) if isinstance(column, str) else column for column in self.columns
        )
        return (replace(first, words=True), *rest)

    @property
    def body(self) -> tuple[Row, ...]:
        """The rows with their roles."""
        return tuple(row if isinstance(row, Row) else Row(tuple(row)) for row in self.rows)

    def markdown(self) -> str:
        """Return the table's lines, without its title and notes."""
        heads = [column.head for column in self.heads]
        rules = ["---" if column.words else "---:" for column in self.heads]
        rows = (_markdown_cells(row) for row in self.body if row.kind is not Kind.HEADING)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows))

    def __rich__(self) -> TerminalTable:
        """Return the table for the terminal."""
        return self.terminal()

    def terminal(self, *, plain: bool = False) -> TerminalTable:
        """Return the table for the terminal, or for a program that reads: without lines.

        No cell is read as markup.
        """
        from rich.box import HORIZONTALS
        from rich.table import Table as TerminalTable
        from rich.text import Text

        shown = TerminalTable(
            title=self.title or None,
            caption=Text("\n".join(self.notes)) if self.notes else None,
            box=None if plain else HORIZONTALS,
            caption_justify="left",
            show_edge=False,
            padding=(0, 1) if self.name_width is None else 0,
            pad_edge=False,
        )
        for column in self.heads:
            shown.add_column(
                column.head,
                justify="left" if column.words else "right",
                style="bold" if column.bold else "",
                no_wrap=not column.words,
            )
        shown.columns[0].min_width = self.name_width
        body = self.body
        for row, following in zip(body, (*body, Row((), Kind.HEADING))[1:], strict=True):
            name, *cells = (Text(cell) for cell in row.cells)
            if self.name_width is not None and row.kind is not Kind.HEADING:
                name.no_wrap, name.overflow = True, "ellipsis"
            style = {Kind.HEADING: "italic", Kind.REFERENCE: "bold"}.get(row.kind, "")
            ends = following.kind in (Kind.AVERAGE, Kind.HEADING)
            shown.add_row(name, *cells, style=style, end_section=ends)
        return shown


def _markdown_cells(row: Row) -> list[str]:
    cells = [cell.replace("|", r"\|") for cell in row.cells]
    if row.kind is Kind.REFERENCE:
        cells = [cell if cell in ("", NONE) else f"**{cell}**" for cell in cells]
    return cells
