"""Verbs of labels: images to label next, their labels, and what more of them would bring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pd_core.cli.common import Reporter, note, print_table, say, setting_of
from pd_core.core.hooks import Hooks
from pd_core.labelling.selection import Method
from pd_core.pipeline import processes
from pd_core.pipeline.settings import compute_with
from pd_core.pipeline.stages.params import DATA, PARAMS

LISTS = DATA / "suggest"
"""Folder of the lists and contact sheets, one a data set."""

REPORTS = Path("reports") / "curves"

Name = Annotated[str, typer.Argument(help="Data set in params.yaml.", show_default=False)]


def suggest(
    name: Name,
    count: Annotated[
        int, typer.Option(min=1, help="Number of images to label.", show_default=False)
    ],
    method: Annotated[
        Method, typer.Option(help="Criterion of the choice; docs/labelling.md describes them.")
    ] = Method.BADGE,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Random seed of the stages and the choice (default: run.seed).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Choose the unlabelled images to label next; write a list and a contact sheet.

    Images are uncertain to teacher and student, different from each other, and balanced over the
    predicted classes. Fill in the column `label`; `promptkd data label` takes the labels in.
    """
    setting = setting_of(name, seed)
    job = setting.job
    compute_with(job.params.run.threads)
    from pd_core.data.loading.prepared import image_root
    from pd_core.labelling import suggest as labelling

    stem = job.prepared.name
    file, sheet = (LISTS / f"{stem}{suffix}" for suffix in (".csv", ".jpg"))
    with Reporter(f"suggest {stem}", "images") as report:
        hooks = Hooks(on_progress=report.progress, on_note=note)
        rows = labelling.suggest(job, method, count, file, hooks)
    images = image_root(job.prepared, data_root=job.data_root)
    is_complete = labelling.write_sheet(rows, images, sheet)
    classes = len({row.predicted for row in rows})
    say(f"{stem}: {len(rows)} images to label, predicted as {classes} classes, by {method}")
    if len(rows) < count:
        say(f"  {count - len(rows)} fewer than asked for: the others are copies of these")
    say(f"  list: {file}, files are below {images}")
    say(f"  contact sheet: {sheet}" + ("" if is_complete else ", the first images"))


def label(
    name: Name,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="LIST",
            help="List with columns of paths and labels, such as that of `promptkd suggest`.",
            show_default=False,
        ),
    ],
) -> None:
    """Take in labels of unlabelled images of your own; then run `dvc repro`.

    The teacher is tuned on them beside the labels that it has. Labels of test images are refused.
    """
    from pd_core.cli.data import places
    from pd_core.labelling.labels import take_labels

    taken = take_labels(PARAMS, places(None)[1], name, file)
    say(f"{name}: {taken.new} new labels, {taken.total} added in all")
    say(f"  commit {PARAMS} and {taken.file}, then `dvc repro evaluate@{name}`")


def curve(
    name: Name,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from run.seed on.")] = 3,
) -> None:
    """Measure accuracy against the number of labels and of unlabelled images.

    Trains teacher and student some ten times for each seed, on parts of both; writes a table and a
    figure. Finished trainings are kept: the same command goes on, or computes nothing.
    """
    setting = setting_of(name)
    job = setting.job
    compute_with(job.params.run.threads)
    from pd_core.labelling.curve import measure
    from pd_core.reporting import curve as report

    numbers = range(job.seed, job.seed + seeds)
    with (
        processes.postponed() as interrupted,
        Reporter(f"curve {name}", "steps of a training") as reporter,
    ):
        hooks = Hooks(interrupted, on_progress=reporter.progress, on_note=note)
        result = measure(job, DATA / "curve" / name, numbers, hooks)
    page = report.write(result, job.params.prepare.protocol, name, REPORTS)
    print_table(report.table(result))
    for line in report.gains(result):
        say(line)
    say(f"Report   {page}, {page.with_suffix('.png')}")
