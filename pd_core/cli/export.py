"""Command that exports a student to the format of another runtime."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from pd_core.cli.common import (
    AsJson,
    Student,
    StudentWeights,
    note,
    print_json,
    print_table,
    say,
    student_folder,
)
from pd_core.core.errors import BadParams, MissingFile
from pd_core.mlops.export.options import ExportFormat, ExportPrecision
from pd_core.pipeline.settings import compute_with, load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, load_params

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pd_core.mlops.export.measure import Accuracy, Cost
    from pd_core.models.portable.student import PortableStudent

EXPORTS = DATA / "export"
"""Folder of exported students, one folder for each data set, format and precision."""


def export(
    model: Student,
    form: Annotated[
        ExportFormat, typer.Option("--format", help="Format of the model's file.")
    ] = ExportFormat.ONNX,
    precision: Annotated[
        ExportPrecision,
        typer.Option(help="Precision; int8 is calibrated with training images."),
    ] = ExportPrecision.FP32,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output directory (default: data/export/<data set>/<format>-<precision>).",
            show_default=False,
        ),
    ] = None,
    weights: StudentWeights = None,
    threads: Annotated[int, typer.Option(help="Threads of the latency test.", min=1)] = 1,
    as_json: AsJson = False,
) -> None:
    """Export a registered student (default: the champion) for another runtime.

    Prints accuracy on the test images, size and latency, against the original.
    """
    compute_with(threads)  # before torch is imported
    from pd_core.core.atomic import write_folder
    from pd_core.mlops import bundle
    from pd_core.mlops.export import measure
    from pd_core.mlops.export.convert import convert
    from pd_core.mlops.predictor import load_student

    with student_folder(model, weights) as folder, TemporaryDirectory() as temporary:
        student = load_student(folder, weights=weights).student
        if "export" in student.info:
            raise BadParams(f"'{model}' is exported already; export the original")
        dataset = student.info.get("dataset", folder.resolve().name)
        onnx = folder / bundle.ONNX
        exported = convert(
            student,
            Path(temporary),
            form,
            precision,
            calibration=_calibration(student, dataset, precision),
            source=onnx if onnx.is_file() else None,
        )
        accuracy, cost = _accuracy(exported, student, dataset), measure.cost(exported, student)
        target = out or EXPORTS / dataset / f"{form}-{precision}"
        card = folder / bundle.CARD
        before = card.read_text(encoding="utf-8") if card.is_file() else f"# {dataset}\n"
        with write_folder(target) as new:
            bundle.write_student(new, exported, {"dataset": dataset})
            text = bundle.with_export(before, form, precision, accuracy)
            bundle.complete(new, exported, card=text, reference=None)
    if as_json:
        print_json(_as_dict(target, accuracy, cost, threads))
        return
    print_table(table(accuracy, cost, threads))
    say(f"written to {target}")


def _calibration(
    student: PortableStudent, dataset: str, precision: ExportPrecision
) -> NDArray[np.uint8]:
    """Return the calibration images (N, S, S, 3), none but for int8; MissingFile without them."""
    from pd_core.mlops.export.convert import CALIBRATION, calibration_of
    from pd_core.mlops.registry.images import training_images

    if precision is not ExportPrecision.INT8:
        return calibration_of(student, ())
    prepared, data_root = _data(dataset)
    return calibration_of(student, training_images(prepared, data_root=data_root, most=CALIBRATION))


def _accuracy(
    exported: PortableStudent, original: PortableStudent, dataset: str
) -> Accuracy | None:
    """Measure the accuracy on the test images; None, with a note, where they are not here."""
    from pd_core.data.loading.prepared import read_prepared
    from pd_core.mlops.export import measure

    try:
        prepared, data_root = _data(dataset)
        split = read_prepared(prepared, data_root=data_root)
        accuracy = measure.accuracy(exported, original, split)
        reason = "no test image has a label"
    except MissingFile as error:
        accuracy, reason = None, str(error)
    if accuracy is None:
        note(f"the accuracy is not measured: {reason}")
    return accuracy


def _data(dataset: str) -> tuple[Path, Path]:
    """Return the folder of a prepared data set, and that of the photo data sets."""
    root = load_params(PARAMS).profile.root
    return DATA / "prepare" / dataset, load_settings().data_root or Path(root) / DATA / "raw"


def _as_dict(target: Path, accuracy: Accuracy | None, cost: Cost, threads: int) -> dict[str, Any]:
    """Return the measurements for JSON; of pairs the export's number is the first."""
    return {
        "directory": target.as_posix(),
        "accuracy": None if accuracy is None else _counts(accuracy),
        **asdict(cost),
        "threads": threads,
    }


def _counts(accuracy: Accuracy) -> dict[str, float]:
    hits = accuracy.hits
    return {
        "images": hits.pictures,
        "export": hits.first,
        "original": hits.second,
        "gained": hits.gained,
        "lost": hits.lost,
        "agreement": accuracy.agreement,
    }


def table(accuracy: Accuracy | None, cost: Cost, threads: int) -> Table:
    """Return the measurements of an export beside those of its original."""
    rows = Table("", "export", "original", "", box=None)
    if accuracy is not None:
        hits = accuracy.hits
        rows.add_row(
            "accuracy", f"{100 * hits.first:.2f}%", f"{100 * hits.second:.2f}%",
            f"{accuracy.difference:+.2f} points on {hits.pictures} test images ({hits.gained} "
            f"gained, {hits.lost} lost)",
        )  # fmt: skip
    size, latency = cost.megabytes, cost.milliseconds
    rows.add_row("size", *(f"{value:.2f} MB" for value in size), f"{size[0] / size[1]:.2f}")
    rows.add_row(
        "latency", *(f"{value:.2f} ms" for value in latency),
        f"{latency[0] / latency[1]:.2f} ({threads} thread{'s' if threads > 1 else ''})",
    )  # fmt: skip
    return rows
