"""Tables and sentences of the report page, and its rendering to HTML and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from pd_core.core.artifacts import write_json, write_text
from pd_core.core.options import TITLES
from pd_core.core.scores import LEGEND, headline, is_worse, mark, sign
from pd_core.data.loading.splits import Protocol
from pd_core.reporting import page_classes, page_figures
from pd_core.reporting.page import AVERAGE, NOT_RUN, Beside, Page, paper
from pd_core.reporting.page_dataset import DatasetPage
from pd_core.reporting.page_models import TRAINED, Cost, Speed
from pd_core.reporting.protocol_report import findings
from pd_core.reporting.report import cautions, estimates, models_of, rows_of
from pd_core.reporting.results import (
    MODELS,
    PROTOCOLS,
    Evaluation,
    Scores,
    heading,
    keys_of,
    title,
    titles_of,
)
from pd_core.reporting.tables import NONE, Column, Kind, Row, Table

_NAMES = {
    "base": "base classes", "novel": "novel classes", "hm": "harmonic mean",
    "accuracy": "accuracy",
}  # fmt: skip
_COSTS = (
    "model", "parameters, million", "trained, million", "GFLOPs an image", "images a second",
    "memory, MiB",
)  # fmt: skip


def write(page: Page, folder: Path) -> Path:
    """Write `report.html`, `report.md` and `report.json`; return the first.

    Raises:
        PdError: the folder cannot be written.
    """
    path = folder / "report.html"
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
    """Return the templates, which call this module's functions."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    own = {name: value for name, value in globals().items() if not name.startswith("_")}
    imported = {
        "figures": page_figures,
        "heading": heading,
        "keys_of": keys_of,
        "PROTOCOLS": PROTOCOLS,
    }
    of_classes = (
        page_classes.accuracy_table,
        page_classes.confused_table,
        page_classes.class_table,
    )
    environment.globals |= own | imported | {table.__name__: table for table in of_classes}
    return environment


def summary_table(page: Page, key: str) -> Table:
    """Return every model's accuracy on each data set: `base`, `novel` or `hm`."""
    models = models_of(page.summary) or list(MODELS)
    measured = page.summary["datasets"]
    shown = {*measured, *page.summary.get("accuracy_unknown", {})}
    rows = [
        Row((name, *(_score(row, model, key) for model in models)))
        for name, row in rows_of(page.summary, page.titles)
    ]
    averages = [
        Row((f"average of {_averaged(page)}", *row.cells[1:]), Kind.AVERAGE)
        for row in rows[len(measured) :]
    ]
    absent = [
        Row((title(name, page.titles), *[NOT_RUN] * len(models)))
        for name in page.datasets
        if name not in shown
    ]
    heads = ("data set", *(TITLES[model] for model in models))
    return Table(heads, [*rows[: len(measured)], *absent, *averages], f"{_NAMES[key]}, %")


def _score(row: Evaluation, model: str, key: str) -> str:
    scores = row.get(model, {})
    number = headline(scores) if key == "hm" and scores else scores.get(key)
    return NONE if number is None else f"{number:.1f}{mark(model, row, key)}"


def _averaged(page: Page) -> str:
    """Return how many data sets the average is of, and how many there are."""
    rows = page.summary["datasets"].values()
    count = sum(all("hm" in scores for scores in row.values()) for row in rows)
    return f"{count} of {len(page.datasets)}" if count < len(page.datasets) else f"all {count}"


def seeds_table(page: Page, protocol: Protocol, key: str) -> Table:
    """Return every model's mean over seeds on each data set of a protocol, with its spread."""
    part = page.seeds.protocols[protocol]
    named = [(title(name, page.titles), row) for name, row in part["datasets"].items()]
    named.append((f"average of all {len(named)}", part[AVERAGE]))
    kinds = [*[Kind.PLAIN] * (len(named) - 1), Kind.AVERAGE]
    rows = [
        Row((name, *(spread(row[model], key) + mark(model, row, key) for model in MODELS)), kind)
        for (name, row), kind in zip(named, kinds, strict=True)
    ]
    heads = ("data set", *(titles_of(protocol)[model] for model in MODELS))
    return Table(heads, rows, f"{_NAMES[key]}, %")


def paper_tables(page: Page) -> list[Table]:
    """Return our accuracies, the paper's and the differences, a table for each of `PUBLISHED`."""
    count = len(page.beside_seeds)
    ours = f"{count} seeds here" if count > 1 else "this run"
    heads = ("data set", Column("whose", words=True), "base", "novel", "harmonic mean")
    tables = []
    for model, comparisons in page.beside.items():
        rows = []
        for comparison in comparisons:
            own, published, gap = _cells(comparison)
            rows.append(Row((_title(page, comparison), ours, *own)))
            rows.append(Row(("", "paper", *published), Kind.PAPER))
            rows.append(Row(("", "difference", *gap)))
        tables.append(Table(heads, rows, f"{TITLES[model]}, %"))
    return tables


def across_tables(page: Page, protocol: Protocol) -> list[Table]:
    """Return our accuracies in a protocol other than base to novel, the paper's and the gap."""
    return [
        Table(
            ("data set", "here", Column("paper", paper=True), "difference"),
            [(_title(page, row), *(cells[0] for cells in _cells(row))) for row in comparisons],
            f"{titles_of(protocol)[model]}, %",
        )
        for model, comparisons in page.across[protocol].items()
    ]


def _cells(row: Beside) -> tuple[list[str], list[str], list[str]]:
    """Write our accuracies, the paper's, and the differences."""
    published, deviations = [f"{value:.2f}" for value in row.paper.values()], row.spread or {}
    if row.ours is None or row.difference is None:
        return [NOT_RUN] * len(published), published, [NONE] * len(published)
    ours = [f"{row.ours[key]:.2f}{_deviation(deviations.get(key))}" for key in row.paper]
    ours[-1] += sign(row.worse)
    return ours, published, [f"{row.difference[key]:+.2f}" for key in row.paper]


def _title(page: Page, row: Beside) -> str:
    return "average of the paper's" if row.dataset == AVERAGE else title(row.dataset, page.titles)


def spread(scores: Scores, key: str) -> str:
    """Write a number, and its standard deviation if there were several seeds."""
    return f"{scores[key]:.2f}{_deviation(scores.get(f'{key}_std'))}"


def _deviation(value: float | None) -> str:
    return "" if value is None else f" ±\N{NO-BREAK SPACE}{value:.2f}"


def curve_table(page: DatasetPage, stage: str) -> Table:
    """Return the history of a training, epoch by epoch."""
    history = page.curves[stage]
    keys = [key for key in ("loss", "accuracy", "agreement") if history and key in history[0]]
    rows = [
        (str(number), *(f"{row[key]:.4g}" if key in row else "" for key in keys))
        for number, row in enumerate(history, 1)
    ]
    return Table(("epoch", *keys), rows, f"{stage}: training")


def gallery_table(page: DatasetPage) -> Table:
    """Return the images on which teacher and student differ, with the likeliest classes."""
    rows = []
    for image in page.gallery.shown if page.gallery else ():
        top = (", ".join(percent(*best) for best in image.top[model]) for model in TRAINED)
        rows.append((image.path, image.name, *top))
    columns = [Column(head, words=True) for head in ("image", "class", *TRAINED)]
    return Table(columns, rows, "some of these")


def percent(name: str, share: float) -> str:
    """Write a class with its probability."""
    return f"{name} {100 * share:.0f}%"


def cost_table(page: Page) -> Table:
    """Return what an image costs: a column for each model, and one for the paper's student."""
    columns: dict[tuple[str, ...], bool] = {}  # by cells: whether it is the paper's
    for section in page.pages:
        for model, result in section.people.items():
            if result.cost:
                columns[_cost(model, result.cost, page.speed.get(model))] = False
    if page.beside:
        cost = paper()["inference_cost"]
        numbers = (str(cost["gflops"]), str(cost["images_per_second"]))
        columns[f"paper's student, {cost['hardware']}", NONE, NONE, *numbers, NONE] = True
    if not columns:
        return Table(_COSTS[:1], ())
    names, *rows = zip(_COSTS, *columns, strict=True)
    published = (False, *columns.values())
    heads = [Column(name, paper=own) for name, own in zip(names, published, strict=True)]
    return Table(heads, rows)


def _cost(model: str, cost: Cost, speed: Speed | None) -> tuple[str, ...]:
    if speed is not None and speed.model != cost.model:
        speed = None
    return (
        f"{model}, {cost.model}",
        f"{cost.parameters / 1e6:.2f}",
        f"{cost.trained / 1e6:.3f}",
        f"{cost.operations / 1e9:.3g}",
        f"{speed.images_per_second:.0f}" if speed else NONE,
        f"{speed.mebibytes:.0f}" if speed else NONE,
    )


def outputs_table(page: Page) -> Table:
    """Return DVC's record of each stage's outputs."""
    heads = "path", Column("MD5", words=True, long=True), Column("on this machine", words=True)
    rows = [(output.path, output.md5, output.state) for output in page.origin.outputs]
    return Table(heads, rows, "outputs in dvc.lock")


def versions_table(page: Page) -> Table:
    """Return the versions that the page was built with."""
    rows = list(page.origin.versions.items())
    return Table(("package", Column("version", words=True)), rows, "versions")


def facts(page: Page) -> list[str]:
    """Return data sets, seed and commit in a few words."""
    changed = " and changes" if page.origin.changed else ""
    run = len(page.summary["datasets"]) + len(page.summary.get("accuracy_unknown", {}))
    return [
        f"{run} of {len(page.datasets)} data sets run",
        f"seed {page.seed}",
        f"commit {page.origin.commit[:10]}{changed}",
    ]


def about_summary(page: Page) -> list[str]:
    """Return how to read the accuracies of the summary."""
    return [
        "Accuracy on test images: base classes among base classes, novel ones among novel ones. "
        "One seed. The average's harmonic mean is that of the averaged halves, as in the paper.",
        *cautions(page.summary, page.titles),
        *estimates(page.summary, page.titles),
        *page.notes,
    ]


def about_seeds(page: Page) -> list[str]:
    """Return how to read the numbers of several seeds."""
    run = page.seeds.seeds
    if not run:
        return [page.seeds.note]
    several = len(run) > 1
    count = f"{len(run)} seeds" if several else "One seed"
    shown = "Shown are mean ± sample standard deviation over them. " if several else ""
    return [
        f"{count}: {', '.join(map(str, run))}. {shown}Averages are over the data sets within each "
        "seed.",
        "p is the chance of differences at least as clear as these if neither method were better "
        "(Wilcoxon's signed-rank test over data sets, each with the mean of its seeds); below 0.05 "
        "chance is no good explanation. With n data sets, at least three, it is 2 / 2^n or more.",
    ]


def about_protocol(page: Page, protocol: Protocol) -> list[str]:
    """Return a protocol's differences between methods, and its outliers."""
    lines = findings(protocol, page.seeds.protocols[protocol], page.titles)
    return [f"{line[0].upper()}{line[1:]}." for line in lines]


def about_paper(page: Page) -> str:
    """Return how to compare with the paper's numbers."""
    if not page.beside:
        return "None of this profile's data sets is one of the paper's: nothing to compare."
    return (
        "The paper's numbers are the mean of three seeds, as published (CVPR 2024, arXiv "
        "2403.02781), for a ViT-L/14 teacher and a ViT-B/16 student. From base to novel classes, "
        f"ours are {_ours(page.beside_seeds)}. The paper's zero-shot student is CLIP."
        f"{_follow_up(page.profile)}{_legend(page.beside)}"
    )


def _follow_up(profile: str) -> str:
    """Return the published numbers of a follow-up whose setting a profile has."""
    sentence = paper()["follow_ups"].get(profile)
    return f" {sentence}." if sentence else ""


def about_across(page: Page, protocol: Protocol) -> str:
    """Return how to compare accuracies on other data sets than the teacher's."""
    source = paper()["source_dataset"]
    ours = f" Ours are {_ours(page.seeds.seeds)}." if page.seeds.source == source else ""
    tuned_on = title(source, page.titles)
    return (
        f"Accuracy over all classes; the teacher was tuned on {tuned_on} alone.{ours}"
        f"{_legend(page.across[protocol])}"
    )


def _legend(models: Mapping[str, Sequence[Beside]]) -> str:
    """Return a sentence if a student beside the paper's is worse than the zero-shot one."""
    marked = any(row.worse for rows in models.values() for row in rows)
    return f" {LEGEND}." if marked else ""


def _ours(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"of seed {seeds[0]} alone"
    return f"the mean ± standard deviation of seeds {', '.join(map(str, seeds))}"


def about_dataset(page: DatasetPage) -> str:
    """Return the size of a data set."""
    novel = len(page.classes) - page.base_count
    halves = f", {page.base_count} base and {novel} novel" if novel else ""
    images = f"{sum(page.images)} test images" if page.images else "no labelled test image"
    return f"{page.name}: {len(page.classes)} classes{halves}; {images}."


def about_student(evaluation: Evaluation) -> str:
    """Return a sentence if the student of a data set is worse than the zero-shot one."""
    return f"{LEGEND}." if is_worse(evaluation) else ""


def about_gallery(page: DatasetPage) -> str:
    """Return how often teacher and student differ."""
    gallery = page.gallery
    if gallery is None:
        return ""
    differ = gallery.teacher_right + gallery.student_right + gallery.both_wrong
    return (
        f"They predict different classes on {differ} of {gallery.images} test images: the teacher "
        f"is right on {gallery.teacher_right}, the student on {gallery.student_right}, neither on "
        f"{gallery.both_wrong}."
    )


def about_speed(page: Page) -> str:
    """Return the conditions of the measured times and memory."""
    if not page.speed:
        return "Times and memory: `promptkd page --measure`."
    speed = page.speed["student"]
    device, owner = speed.device, "of the GPU"
    if device == "CPU":
        device, owner = f"CPU, threads: {speed.threads}", "of the whole process"
    return f"Measured on {device}, {speed.batch} images at a time; memory is the peak {owner}."
