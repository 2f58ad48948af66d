"""Verbs of labels: which images to label next."""

from __future__ import annotations

from typing import Annotated

import typer

from pd_core.cli.common import Reporter, note, say, setting_of
from pd_core.core.hooks import Hooks
from pd_core.labelling.selection import Method
from pd_core.pipeline.settings import compute_with
from pd_core.pipeline.stages.params import DATA

LISTS = DATA / "suggest"
"""Folder of the lists and contact sheets, one a data set."""

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
