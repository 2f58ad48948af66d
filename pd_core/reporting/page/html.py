"""The page as one HTML file that needs nothing besides: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

from pd_core.data.loading.splits import Protocol
from pd_core.reporting.page import figures, tables, words
from pd_core.reporting.page.answers import PEOPLE, Shown
from pd_core.reporting.page.build import Page
from pd_core.reporting.page.dataset import DatasetPage
from pd_core.reporting.page.published import PUBLISHED
from pd_core.reporting.page.tables import Table
from pd_core.reporting.protocol_results import HEADINGS, heading, keys_of

_TEMPLATE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


_SEEDS = "protocols-and-seeds"  # a data set may be called "seeds"


def text(page: Page) -> str:
    """Return the whole page."""
    title = f"PromptKD, {page.profile} profile"
    return _TEMPLATE.substitute(
        title=escape(title),
        facts="".join(f"<li>{escape(fact)}</li>" for fact in words.facts(page)),
        links="".join(_link(anchor, name) for anchor, name in _anchors(page)),
        sections="\n".join([_summary(page), _seeds(page), _paper(page), _cost(page),
                            *map(_dataset, page.pages), _origin(page)]),
    )  # fmt: skip


def _anchors(page: Page) -> list[tuple[str, str]]:
    return [
        ("summary", "Summary"),
        (_SEEDS, "Protocols and seeds"),
        ("paper", "Beside the paper"),
        ("cost", "Cost"),
        *((one.name, one.title) for one in page.pages),
        ("origin", "Provenance"),
    ]


def _summary(page: Page) -> str:
    more = "".join(_table(tables.summary(page, key)) for key in ("base", "novel"))
    return _section(
        "summary", "Summary", *_sentences(words.summary(page)),
        _table(tables.summary(page, "hm")), _folded("Base and novel classes apart", more),
    )  # fmt: skip


def _seeds(page: Page) -> str:
    return _section(
        _SEEDS, "Protocols and seeds", *_sentences(words.seeds(page)),
        *(_protocol(page, name) for name in page.seeds.protocols),
    )  # fmt: skip


def _protocol(page: Page, name: Protocol) -> str:
    headline, *others = (_table(tables.seeds(page, name, key)) for key in reversed(keys_of(name)))
    picture = figures.seeds(page, name) + "".join(_sentences([words.DOTS]))
    lines = _list(words.protocol(page, name))
    return (
        f"<h3 class='part'>{escape(heading(page.seeds.summary, name, page.titles))}</h3>"
        f"{_panels(_panel('Single seeds', picture), _panel('Differences and outliers', lines))}"
        f"{headline}"
        f"{_folded('Base and novel classes apart', ''.join(others)) if others else ''}"
    )


def _paper(page: Page) -> str:
    return _section(
        "paper", "Beside the paper", *_sentences([words.paper(page)]),
        *(_published([tables.paper(page, who) for who in PUBLISHED]) if page.beside else ()),
        *(part for name in page.across for part in _across(page, name)),
    )  # fmt: skip


def _across(page: Page, name: Protocol) -> list[str]:
    shown = [tables.across(page, name, who) for who in PUBLISHED]
    return [
        f"<h3>{escape(HEADINGS[name])}</h3>",
        *_sentences([words.across(page)]),
        *_published(shown),
    ]


def _published(shown: list[Table]) -> tuple[str, str]:
    """Show the student's table, and fold the others."""
    first, *rest = (_table(table) for table in shown)
    return first, _folded("Others' accuracies", "".join(rest))


def _cost(page: Page) -> str:
    table = _table(tables.cost(page))
    return _section("cost", "Cost", *_sentences([words.COST, words.measured(page)]), table)


def _origin(page: Page) -> str:
    params = f"<pre>{escape(page.origin.params)}</pre>"
    return _section(
        "origin", "Provenance", _table(tables.versions(page)),
        _folded("Outputs and their hashes", _table(tables.outputs(page))),
        _folded("params.yaml", params),
    )  # fmt: skip


def _dataset(page: DatasetPage) -> str:
    notes = _sentences(page.notes, kind="note")
    about = _sentences([words.dataset(page)])
    curves = _panel("Learning curves", figures.curves(page))
    if not page.people:
        return _section(page.name, page.title, *about, *notes, _panels(curves))
    panels = _panels(
        curves,
        _panel("Confusion, all classes at once", figures.matrices(page)),
        _calibration(page),
    )
    confused = _panels(*(_panel("", _table(tables.confused(page, who))) for who in PEOPLE))
    return _section(
        page.name, page.title, *about, *notes, _table(tables.accuracies(page)), panels, confused,
        _gallery(page), _folded("Accuracy of each class", _table(tables.classes(page), bars=True)),
    )  # fmt: skip


def _calibration(page: DatasetPage) -> str:
    if not any(person.calibration for person in page.people.values()):
        return ""
    return _panel("Calibration", figures.reliability(page), *_sentences([words.CALIBRATION]))


def _gallery(page: DatasetPage) -> str:
    if page.gallery is None:
        return ""
    shown = "".join(map(_shown, page.gallery.shown))
    return (
        f"<h3>Where teacher and student differ</h3>"
        f"{''.join(_sentences([words.gallery(page)]))}<div class='gallery'>{shown}</div>"
    )


def _shown(one: Shown) -> str:
    answers = "".join(f"<dt class='{who}'>{who}</dt>{_ranking(one, who)}" for who in PEOPLE)
    return (
        f"<figure><img src='{one.data}' alt='{escape(one.path)}' decoding='async'>"
        f"<figcaption><b>{escape(one.name)}</b><dl>{answers}</dl></figcaption></figure>"
    )


def _ranking(one: Shown, who: str) -> str:
    lines = zip(one.top[who], tables.percent(one.top[who]), strict=True)
    return "".join(
        f"<dd{' class=right' if name == one.name else ''}>{escape(line)}</dd>"
        for (name, _), line in lines
    )


def _table(table: Table, *, bars: bool = False) -> str:
    """Write a table; with bars, percentages of teacher and student are shown as such, too."""
    if not table.rows:
        return ""
    heads = "".join(
        f"<th scope='col'{_side(table, head)}>{escape(head)}</th>" for head in table.heads
    )
    rows = "".join(
        f"<tr{_kind(table, number)}>{_row(table, row, bars)}</tr>"
        for number, row in enumerate(table.rows)
    )
    return (
        f"<div class='table'><table>{_caption(table.title)}"
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _caption(title: str) -> str:
    return f"<caption>{escape(title)}</caption>" if title else ""


def _kind(table: Table, number: int) -> str:
    if number in table.theirs:
        return " class='paper'"
    return " class='strong'" if table.strong and number == len(table.rows) - 1 else ""


def _row(table: Table, row: Iterable[str], bars: bool) -> str:
    name, *cells = row
    rest = zip(table.heads[1:], cells, strict=True)
    return f"<th scope='row'>{escape(name)}</th>" + "".join(
        f"<td{_look(table, head, cell, bars)}>{escape(cell)}</td>" for head, cell in rest
    )


def _look(table: Table, head: str, cell: str, bars: bool) -> str:
    if bars and head in PEOPLE:
        return f" class='bar {head}' style='--part:{cell}%'"
    return _side(table, head)


def _side(table: Table, head: str) -> str:
    if head == table.theirs_under:
        return " class='theirs'"
    if head in tables.WORDS:
        return " class='word long'" if head in tables.LONG else " class='word'"
    return ""


def _section(anchor: str, title: str, *parts: str) -> str:
    heading = f"<h2 id='{escape(anchor)}'>{escape(title)}</h2>"
    return f"<section aria-labelledby='{escape(anchor)}'>{heading}{''.join(parts)}</section>"


def _panels(*panels: str) -> str:
    return f"<div class='panels'>{''.join(panels)}</div>"


def _panel(title: str, *parts: str) -> str:
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f"<div class='panel'>{heading}{''.join(parts)}</div>"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _sentences(texts: Iterable[str], kind: str = "quiet") -> list[str]:
    return [f"<p class='{kind}'>{escape(one)}</p>" for one in texts if one]


def _list(texts: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in texts)}</ul>"


def _link(anchor: str, name: str) -> str:
    return f"<a href='#{escape(anchor)}'>{escape(name)}</a>"
