"""The page's tables, as plain text, for HTML and Markdown alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pd_core.data.loading.splits import Protocol
from pd_core.reporting.page.answers import PEOPLE
from pd_core.reporting.page.build import Page
from pd_core.reporting.page.cost import Cost
from pd_core.reporting.page.dataset import DatasetPage
from pd_core.reporting.page.published import AVERAGE, Beside, cost_in_paper
from pd_core.reporting.page.speed import Speed
from pd_core.reporting.protocol_results import titles_of
from pd_core.reporting.results import TITLES, WHO, Evaluation, Scores, columns, headline, rows_of

NOT_RUN = "not run"
WORDS = frozenset({"taken for", "half", "whose", "MD5", "on this machine", "version"})
"""Heads of the columns that hold words, besides the first one of each table."""

LONG = frozenset({"taken for", "MD5"})
"""Those of them whose words may be wider than a phone."""

_NONE = "–"
_PAIRS = 5  # of confused classes
_COSTS = (
    "model", "parameters, million", "trained, million", "GFLOPs a picture", "pictures a second",
    "memory, MiB",
)  # fmt: skip

NAMES = {
    "base": "base classes", "novel": "novel classes", "hm": "harmonic mean",
    "accuracy": "accuracy",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table, its first column the names of its rows.

    Attributes:
        title: above it, if it has one.
        heads: of the columns.
        rows: cells, as many as heads.
        theirs: rows of these numbers are the paper's.
        theirs_under: what stands under this head is the paper's.
        strong: the last row is a sum of the others.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    theirs: frozenset[int] = frozenset()
    theirs_under: str = ""
    strong: bool = False


def summary(page: Page, key: str) -> Table:
    """Return everybody's accuracy on each data set: `base`, `novel` or `hm`."""
    shown = columns(page.summary) or list(TITLES)[:4]
    run = [(name, row) for name, row in rows_of(page.summary, page.titles) if row]
    rows = [(name, *(_score(row, who, key) for who in shown)) for name, row in run]
    known = {*page.summary["datasets"], *page.summary.get("accuracy_unknown", {})}
    absent = [page.titles.get(name, name) for name in page.datasets if name not in known]
    average = rows[len(page.summary["datasets"]) :]
    rows = rows[: len(page.summary["datasets"])]
    rows += [(name, *[NOT_RUN] * len(shown)) for name in absent]
    rows += [(f"average of {_averaged(page)}", *row[1:]) for row in average]
    heads = ("data set", *(TITLES[who] for who in shown))
    return Table(f"{NAMES[key]}, %", heads, tuple(rows), strong=bool(average))


def seeds(page: Page, protocol: Protocol, key: str) -> Table:
    """Return everybody's mean over seeds on each data set of a protocol, with its spread."""
    measured = page.seeds.protocols[protocol]
    rows = [
        (page.titles.get(name, name), *(spread(row[who], key) for who in WHO))
        for name, row in measured["datasets"].items()
    ]
    average = tuple(spread(measured[AVERAGE][who], key) for who in WHO)
    heads = ("data set", *(titles_of(protocol)[who] for who in WHO))
    rows.append((f"average of all {len(rows)}", *average))
    return Table(f"{NAMES[key]}, %", heads, tuple(rows), strong=True)


def paper(page: Page, who: str) -> Table:
    """Return our accuracies, the paper's, and their difference; empty if none are of the paper."""
    rows: list[tuple[str, ...]] = []
    theirs: set[int] = set()
    count = len(page.beside_seeds)
    ours = f"{count} seeds here" if count > 1 else "this run"
    for one in page.beside.get(who, ()):
        theirs.add(len(rows) + 1)
        rows += _three(one, _title(page, one), ours)
    heads = ("data set", "whose", "base", "novel", "harmonic mean")
    return Table(f"{TITLES[who]}, %", heads, tuple(rows), frozenset(theirs))


def across(page: Page, protocol: Protocol, who: str) -> Table:
    """Return our accuracies in a protocol other than base to novel, the paper's and the gap."""
    rows = tuple(
        (_title(page, one), *(cells[0] for cells in _cells(one)))
        for one in page.across[protocol].get(who, ())
    )
    heads = ("data set", "here", "paper", "difference")
    return Table(f"{titles_of(protocol)[who]}, %", heads, rows, theirs_under="paper")


def accuracies(page: DatasetPage) -> Table:
    """Return accuracy and calibration of teacher and student, all classes compared at once."""
    rows = []
    for who, person in page.people.items():
        error = person.calibration
        rows.append((who, f"{person.accuracy:.1f}", f"{error.error:.1f}" if error else _NONE))
    heads = ("all classes at once", "accuracy, %", "calibration error (ECE), %")
    return Table("", heads, tuple(rows))


def confused(page: DatasetPage, who: str) -> Table:
    """Return the most confused pairs of classes."""
    rows = tuple(
        (page.classes[one.label], page.classes[one.taken_for], _of(one.count, page, one.label))
        for one in page.people[who].confused[:_PAIRS]
    )
    return Table(f"{who}: most confused", ("class", "taken for", "images"), rows)


def classes(page: DatasetPage) -> Table:
    """Return each class's accuracy, the student's worst ones first."""
    people = [page.people[who].classes for who in PEOPLE]
    halves = page.base_count < len(page.classes)
    order = sorted(
        (label for label, images in enumerate(page.images) if images),
        key=lambda label: (people[1][label] or 0.0, label),
    )
    rows = tuple(
        (
            page.classes[label],
            *(("base" if label < page.base_count else "novel",) if halves else ()),
            str(page.images[label]),
            *(f"{one[label]:.0f}" for one in people),
        )
        for label in order
    )
    return Table(
        "accuracy of each class, %",
        ("class", *(("half",) if halves else ()), "images", *PEOPLE),
        rows,
    )


def cost(page: Page) -> Table:
    """Return what a picture costs: a column for each model, and one for the paper's student."""
    columns: list[tuple[str, ...]] = []
    theirs = ""
    for one in page.pages:
        for who, person in one.people.items():
            column = _cost(who, person.cost, page.speed.get(who)) if person.cost else ()
            if column and column not in columns:
                columns.append(column)
    if page.beside:
        told = cost_in_paper()
        fast = str(told["images_per_second"])
        theirs = f"paper's student, {told['hardware']}"
        columns.append((theirs, _NONE, _NONE, str(told["gflops"]), fast, _NONE))
    heads, *rows = zip(_COSTS, *columns, strict=True)
    return Table("", heads, tuple(rows) if columns else (), theirs_under=theirs)


def outputs(page: Page) -> Table:
    """Return what DVC recorded of each stage's outputs."""
    rows = tuple((one.path, one.md5, one.state) for one in page.origin.outputs)
    return Table("outputs in dvc.lock", ("path", "MD5", "on this machine"), rows)


def versions(page: Page) -> Table:
    """Return the versions that the page was built with."""
    return Table("versions", ("package", "version"), tuple(page.origin.versions.items()))


def _cost(who: str, cost: Cost, speed: Speed | None) -> tuple[str, ...]:
    if speed is not None and speed.model != cost.model:
        speed = None
    return (
        f"{who}, {cost.model}",
        f"{cost.parameters / 1e6:.2f}",
        f"{cost.trained / 1e6:.3f}",
        f"{cost.operations / 1e9:.3g}",
        f"{speed.images_per_second:.0f}" if speed else _NONE,
        f"{speed.mebibytes:.0f}" if speed else _NONE,
    )


def _score(row: Evaluation, who: str, key: str) -> str:
    scores = row.get(who)
    if scores is None:
        return _NONE
    number = headline(scores) if key == "hm" else scores.get(key)
    return _NONE if number is None else f"{number:.1f}"


def _averaged(page: Page) -> str:
    """Say how many data sets the average is of, and how many there are."""
    rows = page.summary["datasets"].values()
    count = sum(all("hm" in scores for scores in row.values()) for row in rows)
    return f"{count} of {len(page.datasets)}" if count < len(page.datasets) else f"all {count}"


def _three(one: Beside, title: str, whose: str) -> list[tuple[str, ...]]:
    ours, theirs, gap = _cells(one)
    return [(title, whose, *ours), ("", "paper", *theirs), ("", "difference", *gap)]


def _cells(one: Beside) -> tuple[list[str], list[str], list[str]]:
    """Write what is ours, the paper's, and the difference."""
    names, deviations = list(one.paper), one.spread or {}
    ours = [NOT_RUN] * len(names)
    if one.ours is not None:
        ours = [f"{one.ours[name]:.2f}{_deviation(deviations.get(name))}" for name in names]
    gap = [_NONE] * len(names)
    if one.difference is not None:
        gap = [f"{one.difference[name]:+.2f}" for name in names]
    return ours, [f"{one.paper[name]:.2f}" for name in names], gap


def _title(page: Page, one: Beside) -> str:
    if one.dataset == AVERAGE:
        return "average of the paper's"
    return page.titles.get(one.dataset, one.dataset)


def spread(scores: Scores, key: str) -> str:
    """Write a number, and its standard deviation if there were several seeds."""
    return f"{scores[key]:.2f}{_deviation(scores.get(f'{key}_std'))}"


def _deviation(value: float | None) -> str:
    return "" if value is None else f" ±\N{NO-BREAK SPACE}{value:.2f}"


def _of(count: int, page: DatasetPage, label: int) -> str:
    return f"{count} of {page.images[label]}"


def percent(top: Sequence[tuple[str, float]]) -> list[str]:
    """Write the likeliest classes with their probabilities."""
    return [f"{name} {100 * share:.0f}%" for name, share in top]
