"""Conversion of a student to another format and precision."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pd_core.core.errors import BadArtifact, BadParams
from pd_core.mlops.export import onnx, openvino, torchscript
from pd_core.mlops.export.options import ExportFormat, ExportPrecision
from pd_core.models.portable import runtimes
from pd_core.models.portable.network import StudentNetwork
from pd_core.models.portable.runtimes import Runtime, TorchRuntime
from pd_core.models.portable.student import PortableStudent

CALIBRATION = 128
"""Training images that the ranges of the activations are measured on."""

_TOLERANCE = 1e-4  # between the outputs in fp32


def convert(
    student: PortableStudent,
    folder: Path,
    form: ExportFormat,
    precision: ExportPrecision,
    *,
    calibration: NDArray[np.uint8],
    source: Path | None = None,
) -> PortableStudent:
    """Write a student's model in another format into a folder, and load it from there.

    Args:
        student: with a network.
        folder: of the new file, which has to stay while the result is used.
        form: of the file.
        precision: of weights and matrix products.
        calibration: training images (N, S, S, 3) for int8; N may be 0 otherwise.
        source: the student's ONNX file in fp32, if there is one.

    Returns:
        The exported student; the entry `export` of its description has format and precision.

    Raises:
        BadParams: int8 without calibration images, or for a tower that the format cannot quantise;
            a format whose package is not installed.
        BadArtifact: the outputs are not finite, or in fp32 not the student's.
    """
    if precision is ExportPrecision.INT8 and not len(calibration):
        raise BadParams("int8 is calibrated with training images, and there are none; use fp16")
    network = copy.deepcopy(student.network).cpu()
    path = folder / runtimes.RUNTIMES[form].FILES[0]
    match form:
        case ExportFormat.ONNX:
            onnx.write(path, network, precision, calibration, source)
        case ExportFormat.TORCHSCRIPT:
            torchscript.write(path, network, precision, calibration)
        case ExportFormat.OPENVINO:
            openvino.write(path, network, precision, calibration, source)
    export = {"format": str(form), "precision": str(precision)}
    runtime = runtimes.load(folder, export)
    _check(runtime, network, form, precision)
    info = {key: value for key, value in student.info.items() if key != "tower"}
    sizes = {"network": asdict(network.sizes), "preprocess": asdict(network.preprocess)}
    return PortableStudent(runtime, {**info, **sizes, "export": export})


def calibration_of(student: PortableStudent, images: Iterable[Image.Image]) -> NDArray[np.uint8]:
    """Crop training images to the student's input: (N, S, S, 3)."""
    size = student.image_size
    crops = [student.crop(image) for image in images]
    return np.array(crops, np.uint8).reshape(-1, size, size, 3)


def _check(
    runtime: Runtime, network: StudentNetwork, form: ExportFormat, precision: ExportPrecision
) -> None:
    """Compare the outputs for another number of images than that of the export."""
    pixels = onnx.noise(3, network)
    for output, wanted in zip(runtime.run(pixels), TorchRuntime(network).run(pixels), strict=True):
        if not np.isfinite(output).all():
            raise BadArtifact(
                f"the student's outputs are not finite in {precision}, whose range is too small "
                f"for it; use fp32"
            )
        error = float(np.abs(output - wanted).max())
        if precision is ExportPrecision.FP32 and error > _TOLERANCE:
            raise BadArtifact(
                f"the student's outputs differ by {error:.1e} after the export to {form}; use "
                f"another format"
            )
