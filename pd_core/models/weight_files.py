"""Weights of a CLIP in local files: the formats they come in, and whose they are."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pd_core.errors import BadArtifact

# OpenAI's archives carry these beside the weights; no other publisher's files do.
OPENAI_ONLY = ("input_resolution", "context_length", "vocab_size")
_HALF_AT_OPENAI = re.compile(
    r"(conv1|in_proj|out_proj|c_fc|c_proj)[._]weight$|(^|[._])proj(ection)?$"
)


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a state dict; also tell by what sign it is OpenAI's, or nothing.

    OpenAI's own archives say so by extra entries. Copies of them in other
    formats are recognised by their values: OpenAI published its matrices in
    half precision, so that they survive a round trip through it.

    Args:
        path: `.safetensors`, `.pt` with a state dict, or a TorchScript archive.

    Returns:
        The tensors in fp32, and the sign in words.

    Raises:
        BadArtifact: the file cannot be read.
    """
    try:
        content = _read_any(path)
    except Exception as error:  # torch and safetensors raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadArtifact(
            f"weights '{path}' cannot be read ({reason}); give a .pt or .safetensors file"
        ) from None
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
        from safetensors.torch import load_file

        return load_file(path)
    if _is_torchscript(path):  # what OpenAI publishes
        load_archive: Any = torch.jit.load
        with warnings.catch_warnings():  # deprecated, but the files are what they are
            warnings.simplefilter("ignore")
            return dict(load_archive(str(path), map_location="cpu").state_dict())
    content = torch.load(path, map_location="cpu", weights_only=True)
    return dict(content.get("state_dict", content))


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
