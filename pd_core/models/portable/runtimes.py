"""Runtimes that compute a student's predictions, one class for each format of its model.

Shapes: B images, S their side in pixels, C classes, D features.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from .network import StudentNetwork

_JIT: Any = torch.jit  # without types

INPUT = "pixels"
FEATURES = "features"
OUTPUTS = ("probabilities", FEATURES)

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Probabilities (B, C), and features (B, D) of unit length."""


class Runtime:
    """Computation of probabilities and features."""

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Compute the outputs for pixels (B, S, S, 3)."""
        raise NotImplementedError

    def use_threads(self, count: int) -> None:
        """Compute with so many threads."""
        torch.set_num_threads(count)


class TorchRuntime(Runtime):
    """The network in torch, on its device."""

    def __init__(self, network: StudentNetwork) -> None:
        """Take a network, in evaluation mode from now on."""
        self.network = network.eval().requires_grad_(requires_grad=False)

    @torch.inference_mode()
    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """See `Runtime.run`."""
        batch = torch.from_numpy(pixels).to(self.network.class_vectors.device)
        probabilities, features = self.network(batch)
        return probabilities.cpu().numpy(), features.cpu().numpy()


class ExportedRuntime(Runtime):
    """An exported student on the CPU.

    Attributes:
        files: of the model; they have to stay while it is used.
    """

    FILES: ClassVar[tuple[str, ...]]
    """Names of the files."""

    def __init__(self, folder: Path) -> None:
        """Load the files of a folder."""
        self.files = tuple(folder / name for name in self.FILES)


class OnnxRuntime(ExportedRuntime):
    """An ONNX file, computed by onnxruntime."""

    FILES = ("student.onnx",)

    def __init__(self, folder: Path) -> None:
        """Load the file of a folder."""
        super().__init__(folder)
        self.use_threads(torch.get_num_threads())

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """See `Runtime.run`."""
        probabilities, features = self._session.run(list(OUTPUTS), {INPUT: pixels})
        return probabilities, features

    def use_threads(self, count: int) -> None:
        """Start a new session with so many threads."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count
        # Threads that wait leave the cores to those that decode images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(self.files[0]), options, providers=["CPUExecutionProvider"]
        )


class TorchScriptRuntime(ExportedRuntime):
    """A TorchScript file, computed by torch."""

    FILES = ("student.pt",)

    def __init__(self, folder: Path) -> None:
        """Load the file of a folder."""
        super().__init__(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about newer formats
            self._module = _JIT.load(str(self.files[0]), map_location="cpu")

    @torch.inference_mode()
    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """See `Runtime.run`."""
        probabilities, features = self._module(torch.from_numpy(pixels))
        return probabilities.numpy(), features.numpy()


class OpenVinoRuntime(ExportedRuntime):
    """An OpenVINO model, computed by OpenVINO on the CPU."""

    FILES = ("student.xml", "student.bin")

    def __init__(self, folder: Path) -> None:
        """Load the files of a folder; ImportError without the package openvino."""
        super().__init__(folder)
        self.use_threads(torch.get_num_threads())

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """See `Runtime.run`."""
        outputs = self._model(pixels)
        return outputs[OUTPUTS[0]], outputs[OUTPUTS[1]]

    def use_threads(self, count: int) -> None:
        """Compile the model for so many threads."""
        options = {
            "INFERENCE_NUM_THREADS": count,
            "INFERENCE_PRECISION_HINT": "f32",  # not bf16, the default of some processors
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._model = import_openvino().Core().compile_model(str(self.files[0]), "CPU", options)


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which would report each import; or ImportError."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


RUNTIMES: Mapping[str, type[ExportedRuntime]] = {
    "onnx": OnnxRuntime,
    "torchscript": TorchScriptRuntime,
    "openvino": OpenVinoRuntime,
}
"""Runtimes of exported students, by format."""


def load(folder: Path, description: Mapping[str, Any]) -> ExportedRuntime:
    """Load a student by the `format` of its description; KeyError for an unknown one."""
    return RUNTIMES[description["format"]](folder)
