"""The page as Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from pd_core.data.loading.splits import Protocol
from pd_core.reporting.page import tables, words
from pd_core.reporting.page.answers import PEOPLE
from pd_core.reporting.page.build import Page
from pd_core.reporting.page.dataset import DatasetPage
from pd_core.reporting.page.published import PUBLISHED
from pd_core.reporting.page.tables import Table
from pd_core.reporting.protocol_results import HEADINGS, heading, keys_of


def text(page: Page) -> str:
    """Return the whole page."""
    parts = [
        f"# PromptKD, {page.profile} profile",
        "; ".join(words.facts(page)) + ".",
        "## Summary",
        *(_table(tables.summary(page, key)) for key in ("hm", "base", "novel")),
        *words.summary(page),
        "## Protocols and seeds",
        *words.seeds(page),
        *(part for name in page.seeds.protocols for part in _protocol(page, name)),
        "## Beside the paper",
        words.paper(page),
        *(_table(tables.paper(page, who)) for who in PUBLISHED if page.beside),
        *(part for name in page.across for part in _across(page, name)),
        "## Cost",
        f"{words.COST} {words.measured(page)}",
        _table(tables.cost(page)),
        *(part for one in page.pages for part in _dataset(one)),
        "## Provenance",
        _table(tables.versions(page)),
        _table(tables.outputs(page)),
        f"```yaml\n{page.origin.params.strip()}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _protocol(page: Page, name: Protocol) -> list[str]:
    return [
        f"### {heading(page.seeds.summary, name, page.titles)}",
        *(_table(tables.seeds(page, name, key)) for key in reversed(keys_of(name))),
        "\n".join(f"- {line}" for line in words.protocol(page, name)),
    ]


def _across(page: Page, name: Protocol) -> list[str]:
    rest = (_table(tables.across(page, name, who)) for who in PUBLISHED)
    return [f"### {HEADINGS[name]}", words.across(page), *rest]


def _dataset(page: DatasetPage) -> list[str]:
    parts = [f"## {page.title}", words.dataset(page), *page.notes]
    parts += [_curve(page, stage) for stage in PEOPLE]
    if not page.people:
        return parts
    parts += [_table(tables.accuracies(page))]
    parts += [_table(tables.confused(page, who)) for who in PEOPLE]
    return [*parts, _table(tables.classes(page)), words.gallery(page), _gallery(page)]


def _curve(page: DatasetPage, stage: str) -> str:
    rows = page.curves[stage]
    keys = [key for key in ("loss", "accuracy", "agreement") if rows and key in rows[0]]
    cells = [
        (str(number), *(f"{row[key]:.4g}" if key in row else "" for key in keys))
        for number, row in enumerate(rows, 1)
    ]
    return _table(Table(f"{stage}: training", ("epoch", *keys), tuple(cells)))


def _gallery(page: DatasetPage) -> str:
    shown = page.gallery.shown if page.gallery else ()
    rows = tuple(
        (one.path, one.name, *(", ".join(tables.percent(one.top[who])) for who in PEOPLE))
        for one in shown
    )
    return _table(Table("some of these", ("picture", "class", *PEOPLE), rows))


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    lines = [table.heads, ("---",) * len(table.heads), *table.rows]
    title = [f"**{table.title}**", ""] if table.title else []
    return "\n".join([*title, *map(_line, lines)])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
