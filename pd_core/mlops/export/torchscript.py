"""TorchScript files of a student, by tracing; int8 by torch's eager quantisation."""

from __future__ import annotations

import copy
import warnings
from io import BytesIO
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pd_core.core.atomic import write_file
from pd_core.core.errors import BadParams
from pd_core.mlops.export.onnx import noise
from pd_core.mlops.export.options import ExportPrecision
from pd_core.models.portable.network import Network, StudentNetwork

_JIT: Any = torch.jit  # without types
_BATCH = 32  # calibration images computed together


def write(
    path: Path, network: StudentNetwork, precision: ExportPrecision, calibration: NDArray[np.uint8]
) -> None:
    """Trace a network from pixels to probabilities and features, in a precision.

    Args:
        path: of the file.
        network: in evaluation mode, on the CPU.
        precision: of weights and matrix products; inputs and outputs are those of fp32.
        calibration: pixels (N, S, S, 3), for int8.

    Raises:
        BadParams: int8 for an image tower that is no plain vision transformer.
    """
    match precision:
        case ExportPrecision.FP32:
            module: nn.Module = network
        case ExportPrecision.FP16:
            module = _Half(network)
        case ExportPrecision.INT8:
            module = _quantised(network, calibration)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch's, about the tracer
        traced = _JIT.trace(module, torch.from_numpy(noise(2, network)))
        archive = BytesIO()
        _JIT.save(traced, archive)
    with write_file(path) as file:
        _copy_without_paths(archive, file)


def _copy_without_paths(archive: IO[bytes], target: IO[bytes]) -> None:
    """Copy a TorchScript file without its debug records, which have paths on this machine."""
    with ZipFile(archive) as old, ZipFile(target, "w") as new:
        for record in old.infolist():
            if not record.filename.endswith(".debug_pkl"):
                new.writestr(record, old.read(record))


class _Half(nn.Module):
    """A network that computes in fp16, from the normalised pixels on."""

    def __init__(self, network: StudentNetwork) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        images = self.network.preprocess.normalise(pixels).half()
        features = self.network.features(images)
        return self.network.compare(features).float(), features.float()


@torch.inference_mode()
def _quantised(network: StudentNetwork, calibration: NDArray[np.uint8]) -> nn.Module:
    """Quantise the linear layers statically, weights by channel and activations by tensor.

    The range of an activation is chosen by its histogram for the calibration images.
    """
    if not isinstance(network, Network):
        raise BadParams(
            "TorchScript in int8 is for CLIP's vision transformers, and this student has another "
            "image tower; use --format onnx"
        )
    from torch.ao import quantization as untyped

    quantization: Any = untyped
    network = copy.deepcopy(network)
    direct = network.blocks[-1].qkv  # the last block multiplies by parts of this weight
    for module in network.modules():
        if isinstance(module, nn.Linear) and module is not direct:
            module.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about torchao
        prepared = quantization.prepare(quantization.add_quant_dequant(network))
        for batch in np.split(calibration, range(_BATCH, len(calibration), _BATCH)):
            prepared(torch.from_numpy(batch))
        quantised: nn.Module = quantization.convert(prepared)
    return quantised
