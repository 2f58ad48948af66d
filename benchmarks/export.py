"""Cost of an int8 student against fp32, and the accuracy that int8 loses.

Latency and size are those of a student of random weights; both ONNX files have the same runtime and
the same number of threads. The accuracy is that of the students of the embedded benchmark which the
stages have made here, on their test images.
"""

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from benchmarks import ROOT
from benchmarks.outcome import Outcome, Row
from benchmarks.sizes import SMALL, TINY_SMALL, build, class_names
from benchmarks.timing import Note, Work, check_agreement, take_turns
from pd_core.data.loading.prepared import read_prepared
from pd_core.mlops.export import measure as against
from pd_core.mlops.export import onnx
from pd_core.mlops.export.convert import CALIBRATION, calibration_of, convert
from pd_core.mlops.export.options import ExportFormat, ExportPrecision
from pd_core.mlops.fold import fold
from pd_core.mlops.predictor import load_student
from pd_core.mlops.registry.images import training_images
from pd_core.models.portable.student import PortableStudent
from pd_core.models.student import Student

INT8, FP32, TORCH = "onnxruntime in int8", "onnxruntime in fp32", "torch in fp32"
CLASSES = 100


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmark.

    Attributes:
        model: of the student.
        width: of the teacher's features.
        depth: blocks with prompts.
        images: classified one by one in a round.
        datasets: folder of the stages' outputs, for the accuracy.
    """

    model: str = SMALL
    width: int = 768
    depth: int = 9
    images: int = 5
    calibration: int = 16
    rounds: int = 7
    datasets: Path | None = ROOT / "data"


REAL = Size()
TINY = Size(TINY_SMALL, width=24, depth=2, images=1, calibration=2, rounds=1, datasets=None)


def measure(size: Size, note: Note) -> Outcome:
    """Measure latency in turns, size, and accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        student = _student(size)
        images = _noise(student, size.images)
        int8, fp32 = _exports(student, Path(folder), size, note)
        works = {INT8: int8, FP32: fp32, TORCH: student}
        sides = {name: _one_by_one(each, images) for name, each in works.items()}
        turns = take_turns(sides, rounds=size.rounds, note=note)
        check_agreement({side: turns.values[side] for side in (FP32, TORCH)})
        what = f"latency in int8, {size.model}, one image"
        rows = [
            turns.row(f"{what}, over onnxruntime in fp32", INT8, FP32, most=0.6),
            turns.row(f"{what}, over torch in fp32", INT8, TORCH),
            _size(size.model, int8, student),
            *_accuracy(size.datasets, Path(folder), note),
        ]
    return Outcome(tuple(rows))


def _student(size: Size) -> PortableStudent:
    towers, names = build(size.model), class_names(CLASSES)
    student = Student.untrained(towers, feature_width=size.width, depth=size.depth).eval()
    generator = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(len(names), size.width, generator=generator), dim=-1)
    info = {"names": names, "model": size.model, "vectors": "random"}
    return PortableStudent(fold(student, vectors), info)


def _noise(student: PortableStudent, count: int) -> NDArray[np.uint8]:
    side = student.image_size
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def _exports(
    student: PortableStudent, folder: Path, size: Size, note: Note
) -> list[PortableStudent]:
    """Export the student in int8 and fp32."""
    source = folder / "fp32.onnx"
    onnx.write_onnx(source, student.network)
    note("exported to ONNX")
    exports = []
    for precision in (ExportPrecision.INT8, ExportPrecision.FP32):
        own = folder / precision
        calibration = _noise(student, size.calibration)
        exports.append(
            convert(
                student, own, ExportFormat.ONNX, precision, calibration=calibration, source=source
            )
        )
        note(f"converted to {precision}")
    return exports


def _one_by_one(student: PortableStudent, images: NDArray[np.uint8]) -> Work:
    def work() -> float:
        features = [student.answers(image[None]).features for image in images]
        return float(np.abs(features).sum())

    return work


def _size(model: str, int8: PortableStudent, student: PortableStudent) -> Row:
    first, second = against.megabytes(int8, student)
    note = f"{first:.1f} MB against {second:.1f} MB"
    return Row(
        f"size in int8, {model}, over the weights in fp32", first / second, most=0.3, note=note
    )


def _accuracy(data: Path | None, folder: Path, note: Note) -> Iterator[Row]:
    """Measure what int8 loses on the data sets that have a student here."""
    lost: dict[str, float] = {}
    for path in sorted(data.glob("student/embedded_*/student.safetensors")) if data else ():
        name, prepared = path.parent.name, path.parents[2] / "prepare" / path.parent.name
        student = load_student(path.parent).student
        images = training_images(prepared, most=CALIBRATION)
        int8 = convert(
            student, folder / name, ExportFormat.ONNX, ExportPrecision.INT8,
            calibration=calibration_of(student, images),
        )  # fmt: skip
        accuracy = against.accuracy(int8, student, read_prepared(prepared))
        assert accuracy is not None
        lost[name] = -accuracy.difference
        note(f"{name}: {lost[name]:+.2f} points lost")
    if lost:
        shown = ", ".join(f"{name} {value:+.2f}" for name, value in lost.items())
        yield Row(
            what=f"accuracy lost in int8, mean of {len(lost)} embedded data sets",
            value=statistics.fmean(lost.values()),
            most=0.5,
            unit="points",
            note=shown,
        )
