"""Command that classifies image files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pd_core.cli.common import Reporter, Student, StudentWeights, device_of, note, student_folder
from pd_core.core.errors import BadParams
from pd_core.mlops.bulk.outputs import Format, format_of, writer
from pd_core.pipeline.settings import compute_with

if TYPE_CHECKING:
    from pd_core.mlops.predictor import Predictor


def predict(
    model: Student,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image files, directories, quoted patterns such as 'photos/**/*.jpg', or - for "
            "paths from standard input.",
            show_default=False,
        ),
    ] = None,
    files_from: Annotated[
        list[str] | None,
        typer.Option(help="File with one path per line.", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option(help="Number of classes per image.", min=1)] = 5,
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format", help="Output format (default: by the suffix of --out, or table).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Output file (default: standard output).", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON; short for --format json.")
    ] = False,
    weights: StudentWeights = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="auto, cpu, mps, cuda or cuda:<number> (default: PD_DEVICE, or auto).",
            show_default=False,
        ),
    ] = None,
) -> None:  # fmt: skip
    """Classify images with a registered student (default: the champion).

    An image that cannot be read has the reason in its row, and the exit status is then 2.
    """
    if not paths and not files_from:
        raise BadParams("no image is named; give files, directories, a pattern, - or --files-from")
    cores = os.cpu_count() or 1
    compute_with(cores)  # before torch is imported
    from pd_core.mlops.bulk.inputs import ImageFiles
    from pd_core.mlops.bulk.predict import Count, classify

    files = ImageFiles(paths or (), files_from or ())
    student = _load(model, weights, device_of(device)).student
    top = min(top, len(student.names))
    chosen = Format.JSON if as_json else format_ or format_of(out)
    count = Count()
    with _progress(out) as report, writer(chosen, out, top) as write:
        for rows in classify(student, files, top=top, workers=cores):
            write(rows)
            count.add(rows)
            if report is not None:
                report.progress(count.images, None)
        if files.left_out:
            kinds = ", ".join(
                f"{number} {suffix}" for suffix, number in files.left_out.most_common()
            )
            note(f"left out, without an image's suffix: {kinds}")
        count.check_any()
    count.check_all()


@contextmanager
def _progress(out: Path | None) -> Iterator[Reporter | None]:
    """Show progress, unless rows are printed to a terminal."""
    if out is None and sys.stdout.isatty():
        yield None
        return
    with Reporter("predict", "images") as report:
        yield report


def _load(model: str, weights: str | None, device: str) -> Predictor:
    """Load a student from a folder, or from the registry: the champion, or else the newest."""
    from pd_core.mlops.predictor import load_student

    with student_folder(model, weights) as folder:
        return load_student(folder, weights=weights, device=device)
