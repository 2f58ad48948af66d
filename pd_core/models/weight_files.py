"""Weights of a CLIP in local files: the formats they come in, and whose they are."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pd_core.errors import BadArtifact
from pd_core.models.torchscript import read_archive
from pd_core.models.unpickle import open_records, read_checkpoint

# OpenAI's archives carry these beside the weights; no other publisher's files do.
OPENAI_ONLY = ("input_resolution", "context_length", "vocab_size")
_WHAT = "weights"
_FP32 = 4  # bytes
_MOST_GROWTH = 16  # from file to memory; bytes become numbers of four, and weights may be tied
_HALF_AT_OPENAI = re.compile(
    r"(conv1|in_proj|out_proj|c_fc|c_proj)[._]weight$|(^|[._])proj(ection)?$"
)


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a state dict; also tell by what sign it is OpenAI's, or nothing.

    OpenAI's own archives say so by extra entries. Copies of them in other
    formats are recognised by their values: OpenAI published its matrices in
    half precision, so that they survive a round trip through it.

    Nothing in the file is executed.

    Args:
        path: `.safetensors`, `.pt` with a state dict, or a TorchScript archive.

    Returns:
        The tensors in fp32, and the sign in words.

    Raises:
        MissingFile: there is no such file.
        BadArtifact: the file cannot be read.
    """
    content = _read_any(path)
    _check_size(path, content)
    state = {
        key.removeprefix("module."): value.float()
        for key, value in content.items()
        if isinstance(value, Tensor) and key not in OPENAI_ONLY
    }
    if any(key in content for key in OPENAI_ONLY):
        return state, "by its entries"
    matrices = [value for key, value in state.items() if _HALF_AT_OPENAI.search(key)]
    halves = bool(matrices) and all(torch.equal(one, one.half().float()) for one in matrices)
    return state, "by its half-precision values; store another publisher's in fp32" * halves


def _read_any(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with open_records(path, what=_WHAT) as records:
        is_program = records.is_program
    if is_program:  # what OpenAI publishes
        return read_archive(path, what=_WHAT)
    content = read_checkpoint(path, what=_WHAT)
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise BadArtifact(f"'state_dict' in {_WHAT} '{path}' is no state dict; save the file again")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)  # which compares shapes with sizes before it takes memory
    except (SafetensorError, OSError, ValueError) as error:
        raise BadArtifact(
            f"{_WHAT} '{path}' cannot be read ({error}); give a .pt or .safetensors file"
        ) from None


def _check_size(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a file that names the same numbers so often that they would fill the memory."""
    count = sum(value.numel() for value in content.values() if isinstance(value, Tensor))
    if _FP32 * count > _MOST_GROWTH * path.stat().st_size:
        raise BadArtifact(
            f"{_WHAT} '{path}' cannot be read: {count} numbers are more than it has bytes for;"
            " copy or save it again"
        )
