"""Numerics: precision, CPU threads, deterministic kernels."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from pd_core.core.errors import BadParams
from pd_core.core.options import Precision

_INSTRUCTIONS = {  # as torch names them: x86 matrices and vectors, ARM
    Precision.BF16: ("amx_bf16", "avx512_bf16", "bf16"),
    Precision.FP16: ("amx_fp16", "avx512_fp16", "fp16_arith"),
}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the autocast context of a precision."""
    dtype = torch.float16 if precision is Precision.FP16 else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision is not Precision.FP32)


def is_emulated(
    device: torch.device, precision: Precision, capabilities: Mapping[str, Any] | None = None
) -> bool:
    """Return True if a CPU has no instructions for a precision, which is then slower than fp32.

    Args:
        device: of the computation.
        precision: of the towers.
        capabilities: of the processor; None for those of this one.
    """
    if device.type != "cpu" or precision is Precision.FP32:
        return False
    found = torch.cpu.get_capabilities() if capabilities is None else capabilities
    return not any(found.get(name) for name in _INSTRUCTIONS[precision])


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device; to a GPU asynchronously, from pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def set_threads(threads: int) -> None:
    """Set the number of CPU threads and deterministic kernels; BadParams if it is below 1.

    Sums are split among the threads, so their number changes the last bits of results.
    """
    if threads < 1:
        raise BadParams(f"threads = {threads}; give a number from 1 upwards")
    torch.set_num_threads(threads)
    # cuBLAS is only deterministic with a fixed workspace, set before its first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True)
    # Otherwise it also fills every new buffer, which takes time.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False
