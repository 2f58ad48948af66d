"""Show a page as HTML and Markdown: its tables and sentences, which the templates put together.

The HTML file needs nothing besides: no script, no font, no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import (
    Environment,
    FileSystemLoader,
    StrictUndefined,
    pass_eval_context,
    select_autoescape,
)
from jinja2.nodes import EvalContext
from markupsafe import Markup

from pd_core.core.artifacts import write_json, write_text
from pd_core.core.options import TITLES
from pd_core.data.loading.splits import Protocol
from pd_core.reporting.page import figures
from pd_core.reporting.page.build import AVERAGE, Beside, Page, paper
from pd_core.reporting.page.dataset import DatasetPage
from pd_core.reporting.page.models import PEOPLE, Cost, Speed
from pd_core.reporting.protocol_report import findings
from pd_core.reporting.report import cautions, estimates, models_of, rows_of
from pd_core.reporting.results import (
    MODELS,
    PROTOCOLS,
    Evaluation,
    Scores,
    heading,
    headline,
    keys_of,
    title,
    titles_of,
)

NAME = "report"  # of the three files

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

COST = (
    "To classify a decoded picture; class vectors are stored, so no text tower is at work. A "
    "multiplication and an addition are two operations."
)
DOTS = "A dot is a seed, a stroke the mean of all."
CALIBRATION = (
    "On the diagonal an answer is right as often as its confidence says; below it the model is too "
    "sure. ECE: expected calibration error, 15 bins."
)


def write(page: Page, folder: Path) -> Path:
    """Write `report.html`, `report.md` and `report.json`; return the first.

    Raises:
        PdError: the folder cannot be written.
    """
    path = folder / f"{NAME}.html"
    write_json(path.with_suffix(".json"), asdict(page))
    write_text(path.with_suffix(".md"), markdown(page))
    write_text(path, html(page))
    return path


def html(page: Page) -> str:
    """Return the page as HTML."""
    return _templates().get_template("page.html").render(page=page)


def markdown(page: Page) -> str:
    """Return the page as Markdown."""
    return _templates().get_template("page.md").render(page=page)


@cache
def _templates() -> Environment:
    """Return the templates, which call this module's functions and use its constants."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html"]),
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    own = {name: value for name, value in globals().items() if not name.startswith("_")}
    imported = {"figures": figures, "heading": heading, "keys_of": keys_of, "HEADINGS": PROTOCOLS}
    found.globals |= own | imported
    return found


@pass_eval_context
def _escaped(context: EvalContext, value: Any) -> Any:
    """Escape a value for HTML as the standard library does, quotes included."""
    if not context.autoescape or isinstance(value, Markup):
        return value
    return Markup(escape(str(value)))


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


def summary_table(page: Page, key: str) -> Table:
    """Return everybody's accuracy on each data set: `base`, `novel` or `hm`."""
    shown = models_of(page.summary) or list(TITLES)[:4]
    rows = [
        (name, *(_score(row, who, key) for who in shown))
        for name, row in rows_of(page.summary, page.titles)
    ]
    measured = len(page.summary["datasets"])
    if average := rows[measured:]:
        average = [(f"average of {_averaged(page)}", *average[0][1:])]
    known = {*page.summary["datasets"], *page.summary.get("accuracy_unknown", {})}
    absent = [
        (title(name, page.titles), *[NOT_RUN] * len(shown))
        for name in page.datasets
        if name not in known
    ]
    heads = ("data set", *(TITLES[who] for who in shown))
    rows = [*rows[:measured], *absent, *average]
    return Table(f"{NAMES[key]}, %", heads, tuple(rows), strong=bool(average))


def seeds_table(page: Page, protocol: Protocol, key: str) -> Table:
    """Return everybody's mean over seeds on each data set of a protocol, with its spread."""
    measured = page.seeds.protocols[protocol]
    rows = [
        (title(name, page.titles), *(spread(row[who], key) for who in MODELS))
        for name, row in measured["datasets"].items()
    ]
    average = tuple(spread(measured[AVERAGE][who], key) for who in MODELS)
    heads = ("data set", *(titles_of(protocol)[who] for who in MODELS))
    rows.append((f"average of all {len(rows)}", *average))
    return Table(f"{NAMES[key]}, %", heads, tuple(rows), strong=True)


def paper_tables(page: Page) -> list[Table]:
    """Return our accuracies, the paper's and the differences, a table for each of `PUBLISHED`."""
    count = len(page.beside_seeds)
    ours = f"{count} seeds here" if count > 1 else "this run"
    heads = ("data set", "whose", "base", "novel", "harmonic mean")
    tables = []
    for who, found in page.beside.items():
        rows: list[tuple[str, ...]] = []
        for one in found:
            mine, theirs, gap = _cells(one)
            rows += [(_title(page, one), ours, *mine), ("", "paper", *theirs)]
            rows += [("", "difference", *gap)]
        papers = frozenset(range(1, len(rows), 3))
        tables.append(Table(f"{TITLES[who]}, %", heads, tuple(rows), papers))
    return tables


def across_tables(page: Page, protocol: Protocol) -> list[Table]:
    """Return our accuracies in a protocol other than base to novel, the paper's and the gap."""
    return [
        Table(
            f"{titles_of(protocol)[who]}, %",
            ("data set", "here", "paper", "difference"),
            tuple((_title(page, one), *(cells[0] for cells in _cells(one))) for one in found),
            theirs_under="paper",
        )
        for who, found in page.across[protocol].items()
    ]


def accuracy_table(page: DatasetPage) -> Table:
    """Return accuracy and calibration of teacher and student, all classes compared at once."""
    rows = []
    for who, person in page.people.items():
        error = person.calibration
        rows.append((who, f"{person.accuracy:.1f}", f"{error.error:.1f}" if error else _NONE))
    heads = ("all classes at once", "accuracy, %", "calibration error (ECE), %")
    return Table("", heads, tuple(rows))


def confused_table(page: DatasetPage, who: str) -> Table:
    """Return the most confused pairs of classes."""
    names = page.classes
    rows = tuple(
        (names[one.label], names[one.taken_for], f"{one.count} of {page.images[one.label]}")
        for one in page.people[who].confused[:_PAIRS]
    )
    return Table(f"{who}: most confused", ("class", "taken for", "images"), rows)


def class_table(page: DatasetPage) -> Table:
    """Return each class's accuracy, the student's worst ones first."""
    people = [page.people[who].classes for who in PEOPLE]
    halves = page.base_count < len(page.classes)
    order = sorted(
        (label for label, images in enumerate(page.images) if images),
        key=lambda label: (people[1][label] or 0.0, label),
    )
    rows = []
    for label in order:
        half = ["base" if label < page.base_count else "novel"] if halves else []
        accuracies = (f"{one[label]:.0f}" for one in people)
        rows.append((page.classes[label], *half, str(page.images[label]), *accuracies))
    heads = ("class", *(["half"] if halves else []), "images", *PEOPLE)
    return Table("accuracy of each class, %", heads, tuple(rows))


def curve_table(page: DatasetPage, stage: str) -> Table:
    """Return what a training wrote after each epoch."""
    rows = page.curves[stage]
    keys = [key for key in ("loss", "accuracy", "agreement") if rows and key in rows[0]]
    cells = (
        (str(number), *(f"{row[key]:.4g}" if key in row else "" for key in keys))
        for number, row in enumerate(rows, 1)
    )
    return Table(f"{stage}: training", ("epoch", *keys), tuple(cells))


def gallery_table(page: DatasetPage) -> Table:
    """Return the images on which teacher and student differ, with the likeliest classes."""
    rows = []
    for one in page.gallery.shown if page.gallery else ():
        top = (", ".join(percent(*best) for best in one.top[who]) for who in PEOPLE)
        rows.append((one.path, one.name, *top))
    return Table("some of these", ("picture", "class", *PEOPLE), tuple(rows))


def cost_table(page: Page) -> Table:
    """Return what a picture costs: a column for each model, and one for the paper's student."""
    columns: list[tuple[str, ...]] = []
    theirs = ""
    for one in page.pages:
        for who, person in one.people.items():
            column = _cost(who, person.cost, page.speed.get(who)) if person.cost else ()
            if column and column not in columns:
                columns.append(column)
    if page.beside:
        told = paper()["inference_cost"]
        numbers = (str(told["gflops"]), str(told["images_per_second"]))
        theirs = f"paper's student, {told['hardware']}"
        columns.append((theirs, _NONE, _NONE, *numbers, _NONE))
    heads, *rows = zip(_COSTS, *columns, strict=True)
    return Table("", heads, tuple(rows) if columns else (), theirs_under=theirs)


def outputs_table(page: Page) -> Table:
    """Return what DVC recorded of each stage's outputs."""
    rows = tuple((one.path, one.md5, one.state) for one in page.origin.outputs)
    return Table("outputs in dvc.lock", ("path", "MD5", "on this machine"), rows)


def versions_table(page: Page) -> Table:
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


def _cells(one: Beside) -> tuple[list[str], list[str], list[str]]:
    """Write what is ours, the paper's, and the difference."""
    theirs, deviations = [f"{value:.2f}" for value in one.paper.values()], one.spread or {}
    if one.ours is None or one.difference is None:
        return [NOT_RUN] * len(theirs), theirs, [_NONE] * len(theirs)
    ours = [f"{one.ours[key]:.2f}{_deviation(deviations.get(key))}" for key in one.paper]
    return ours, theirs, [f"{one.difference[key]:+.2f}" for key in one.paper]


def _title(page: Page, one: Beside) -> str:
    return "average of the paper's" if one.dataset == AVERAGE else title(one.dataset, page.titles)


def spread(scores: Scores, key: str) -> str:
    """Write a number, and its standard deviation if there were several seeds."""
    return f"{scores[key]:.2f}{_deviation(scores.get(f'{key}_std'))}"


def _deviation(value: float | None) -> str:
    return "" if value is None else f" ±\N{NO-BREAK SPACE}{value:.2f}"


def percent(name: str, share: float) -> str:
    """Write a class with its probability."""
    return f"{name} {100 * share:.0f}%"


def facts(page: Page) -> list[str]:
    """Say in a few words what the page is of."""
    changed = " and changes" if page.origin.changed else ""
    run = len(page.summary["datasets"]) + len(page.summary.get("accuracy_unknown", {}))
    return [
        f"{run} of {len(page.datasets)} data sets run",
        f"seed {page.seed}",
        f"commit {page.origin.commit[:10]}{changed}",
    ]


def about_summary(page: Page) -> list[str]:
    """Say how the accuracies of the summary are to be read."""
    return [
        "Accuracy on test images: base classes among base classes, novel ones among novel ones. "
        "One seed. The average's harmonic mean is that of the averaged halves, as in the paper.",
        *cautions(page.summary, page.titles),
        *estimates(page.summary, page.titles),
        *page.notes,
    ]


def about_seeds(page: Page) -> list[str]:
    """Say how the numbers of several seeds are to be read."""
    run = page.seeds.seeds
    if not run:
        return [page.seeds.note]
    several = len(run) > 1
    count = f"{len(run)} seeds" if several else "One seed"
    spread = "Shown are mean ± sample standard deviation over them. " if several else ""
    return [
        f"{count}: {', '.join(map(str, run))}. {spread}Averages are over the data sets within each "
        "seed.",
        "p is the chance of differences at least as clear as these if neither method were better "
        "(Wilcoxon's signed-rank test over data sets, each with the mean of its seeds); below 0.05 "
        "chance is no good explanation. It cannot be smaller than 2 / 2^n with n data sets.",
    ]


def about_protocol(page: Page, one: Protocol) -> list[str]:
    """Say which methods differ, and which runs lie far off."""
    lines = findings(one, page.seeds.protocols[one], page.titles)
    return [f"{line[0].upper()}{line[1:]}." for line in lines]


def about_paper(page: Page) -> str:
    """Say what stands beside the paper's numbers."""
    if not page.beside:
        return "None of this profile's data sets is one of the paper's: nothing to compare."
    return (
        "The paper's numbers are the mean of three seeds, as published (CVPR 2024, arXiv "
        f"2403.02781). From base to novel classes, ours are {_ours(page.beside_seeds)}. The "
        "paper's zero-shot student is CLIP."
    )


def about_across(page: Page) -> str:
    """Say whose accuracy stands beside the paper's on other data sets than the teacher's."""
    source = paper()["source_dataset"]
    ours = f" Ours are {_ours(page.seeds.seeds)}." if page.seeds.source == source else ""
    tuned_on = title(source, page.titles)
    return f"Accuracy over all classes; the teacher was tuned on {tuned_on} alone.{ours}"


def about_dataset(page: DatasetPage) -> str:
    """Say how large a data set is."""
    novel = len(page.classes) - page.base_count
    halves = f", {page.base_count} base and {novel} novel" if novel else ""
    images = f"{sum(page.images)} test images" if page.images else "no labelled test image"
    return f"{page.name}: {len(page.classes)} classes{halves}; {images}."


def about_gallery(page: DatasetPage) -> str:
    """Say how often teacher and student differ."""
    found = page.gallery
    if found is None:
        return ""
    differ = found.teacher_right + found.student_right + found.both_wrong
    return (
        f"They name different classes on {differ} of {found.images} test images: the teacher is "
        f"right on {found.teacher_right}, the student on {found.student_right}, neither on "
        f"{found.both_wrong}."
    )


def about_speed(page: Page) -> str:
    """Say on what times and memory were measured."""
    if not page.speed:
        return "Times and memory: `promptkd page --measure`."
    one = page.speed["student"]
    where, what = one.device, "of the GPU"
    if where == "CPU":
        where, what = f"CPU, threads: {one.threads}", "of the whole process"
    return f"Measured on {where}, {one.batch} pictures at a time; memory is the peak {what}."


def _ours(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"of seed {seeds[0]} alone"
    return f"the mean ± standard deviation of seeds {', '.join(map(str, seeds))}"
