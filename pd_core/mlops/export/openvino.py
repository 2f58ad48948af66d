"""OpenVINO models of a student, by way of ONNX."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from pd_core.core.errors import BadParams
from pd_core.mlops.export import onnx
from pd_core.mlops.export.options import ExportPrecision
from pd_core.models.portable.network import StudentNetwork
from pd_core.models.portable.runtimes import import_openvino


def write(
    path: Path,
    network: StudentNetwork,
    precision: ExportPrecision,
    calibration: NDArray[np.uint8],
    source: Path | None = None,
) -> None:
    """Write an OpenVINO model in a precision; fp16 is that of the weights only.

    Args:
        path: of the .xml file; the weights are in a .bin file beside it.
        network: in evaluation mode, on the CPU.
        precision: of weights and, for int8, of matrix products.
        calibration: pixels (N, S, S, 3), for int8.
        source: the network's ONNX file in fp32; None to make it.

    Raises:
        BadParams: OpenVINO is not installed.
    """
    if find_spec("openvino") is None:
        raise BadParams(
            "--format openvino needs the package openvino; install it: pip install "
            "'promptkd[openvino]'"
        )
    openvino = import_openvino()
    half = precision is ExportPrecision.FP16
    with TemporaryDirectory() as folder:
        file = Path(folder) / "student.onnx"
        onnx.write(file, network, ExportPrecision.FP32 if half else precision, calibration, source)
        model = openvino.Core().read_model(str(file))
        openvino.save_model(model, str(path), compress_to_fp16=half)
