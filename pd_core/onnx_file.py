"""The student as an ONNX file, for every runtime that is not torch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pd_core.atomic import write_bytes
from pd_core.errors import PdError
from pd_core.portable.network import Network

FILE = "student.onnx"
INPUT = "pixels"
OUTPUTS = ("probabilities", "features")

_TOLERANCE = 1e-4


def write(path: Path, network: Network) -> None:
    """Write a network as ONNX and see that it answers as torch does.

    Its input is `pixels`, (B, S, S, 3) of uint8 for any B; its outputs are `probabilities` (B, C)
    and `features` (B, D). CLIP's normalisation is inside.

    Args:
        path: the file.
        network: in evaluation mode, on the CPU.

    Raises:
        PdError: the file answers otherwise.
    """
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")  # torch's exporter about its own parts
        program = torch.onnx.export(
            network,
            (torch.from_numpy(_noise(2, network)),),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is, unless a file is given
    model = program.model_proto
    _forget_sources(model)
    write_bytes(path, model.SerializeToString(deterministic=True))
    _check(path, network)


def _forget_sources(model: Any) -> None:
    """Take out where in which file of this machine each node was made."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _check(path: Path, network: Network) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = _noise(3, network)
    answers = session.run(list(OUTPUTS), {INPUT: pixels})
    with torch.inference_mode():
        wanted = network(torch.from_numpy(pixels))
    for name, answer, right in zip(OUTPUTS, answers, wanted, strict=True):
        off = float(np.abs(answer - right.numpy()).max())
        if not off < _TOLERANCE:
            raise PdError(
                f"the student's {name} differ by {off:.1e} between ONNX and torch; use the "
                f"versions of constraints.txt"
            )


def _noise(count: int, network: Network) -> NDArray[np.uint8]:
    size = network.sizes.image_size
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


class _quiet:  # noqa: N801  reads as what it does
    """Let only errors of some loggers through."""

    def __init__(self, *names: str) -> None:
        self._loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
