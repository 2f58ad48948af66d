"""ONNX files of a student: fp32 by torch's exporter, fp16 and int8 by onnxruntime's tools."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from pd_core.core.atomic import write_bytes
from pd_core.core.errors import PdError
from pd_core.mlops.export.options import ExportPrecision
from pd_core.models.portable.network import StudentNetwork
from pd_core.models.portable.runtimes import FEATURES, INPUT, OUTPUTS

_BATCH = 32  # calibration images computed together
_TOLERANCE = 1e-4  # between the outputs of ONNX and torch
_QUANTISED = ("Conv", "Gemm", "MatMul")  # operations of any image tower


def write(
    path: Path,
    network: StudentNetwork,
    precision: ExportPrecision,
    calibration: NDArray[np.uint8],
    source: Path | None = None,
) -> None:
    """Write an ONNX file in a precision.

    Args:
        path: of the file.
        network: in evaluation mode, on the CPU.
        precision: of weights and matrix products; inputs and outputs are those of fp32.
        calibration: pixels (N, S, S, 3), for int8.
        source: the network's file in fp32; None to make it.
    """
    with TemporaryDirectory() as folder:
        fp32 = source or Path(folder) / path.name
        if source is None:
            write_onnx(fp32, network)
        match precision:
            case ExportPrecision.FP32:
                model = fp32.read_bytes()
            case ExportPrecision.FP16:
                model = _in_fp16(fp32)
            case ExportPrecision.INT8:
                model = _in_int8(fp32, calibration)
    write_bytes(path, model)


def write_onnx(path: Path, network: StudentNetwork) -> None:
    """Export a network (in evaluation mode, on the CPU) to ONNX, and compare it with torch.

    The input is `pixels`, (B, S, S, 3) of uint8 for any B; the outputs are `probabilities` (B, C)
    and `features` (B, D). The normalisation is included.

    Raises:
        PdError: the outputs differ.
    """
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")  # torch's, about its own exporter
        program = torch.onnx.export(
            network,
            (torch.from_numpy(noise(2, network)),),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as no file is given
    model = program.model_proto  # a new one each time
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")  # source locations on this machine
        part.ClearField("doc_string")
    write_bytes(path, model.SerializeToString(deterministic=True))
    _check(path, network)


def _check(path: Path, network: StudentNetwork) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = noise(3, network)
    outputs = session.run(list(OUTPUTS), {INPUT: pixels})
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels))
    for name, output, tensor in zip(OUTPUTS, outputs, expected, strict=True):
        error = float(np.abs(output - tensor.numpy()).max())
        if not error < _TOLERANCE:
            raise PdError(
                f"the student's {name} differ by {error:.1e} between ONNX and torch; use the "
                f"versions of constraints.txt"
            )


def noise(count: int, network: StudentNetwork) -> NDArray[np.uint8]:
    """Make random pixels (count, S, S, 3) for a network, the same each time."""
    size = network.preprocess.size
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Suppress all but errors of some loggers."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _in_fp16(file: Path) -> bytes:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights below fp16's range, which become zero
        model = convert_float_to_float16(onnx.load(file), keep_io_types=True)
    return bytes(model.SerializeToString(deterministic=True))


def _in_int8(file: Path, calibration: NDArray[np.uint8]) -> bytes:
    """Quantise a file statically, weights by channel and activations by tensor.

    Matrix products, those of attention among them, and convolutions are computed in int8;
    normalisation, softmax and the comparison with the class vectors in fp32. The range of an
    activation is that of the calibration images.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as folder, _quiet(""):
        folded, quantised = Path(folder) / "folded.onnx", Path(folder) / "quantised.onnx"
        quant_pre_process(file, folded, skip_symbolic_shape=True)
        nodes = onnx.load(folded).graph.node
        quantize_static(
            folded,
            quantised,
            _Calibration(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED),
            nodes_to_exclude=[node.name for node in nodes if FEATURES in node.input],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return bytes(onnx.load(quantised).SerializeToString(deterministic=True))


class _Calibration:
    """Batches of calibration images, as onnxruntime reads them."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._batches = iter(np.split(pixels, range(_BATCH, len(pixels), _BATCH)))

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}
