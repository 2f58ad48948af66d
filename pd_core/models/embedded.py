"""The two tiny CLIPs that ship with the package: 32x32 pictures of named characters.

Their tokenizer is CLIP's own with only those merges that the benchmark's words need, so that the
token table stays small; every other word falls back to shorter pieces. How the weights were made:
``pretrain_embedded.py``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file

from pd_core.core.artifacts import SUMS, check_sum
from pd_core.core.errors import BadArtifact, missing, unknown
from pd_core.models.clip import ClipTowers, freeze

CONTEXT_LENGTH = 32
WEIGHTS_FOLDER = Path(__file__).parent / "weights"
MERGES_FILE = WEIGHTS_FOLDER / "merges.txt.gz"

_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "embedded-teacher": {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": 160,
            "layers": 6,
            "head_width": 40,
        },
        "text_cfg": {"width": 96, "heads": 3, "layers": 4},
    },
    "embedded-student": {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": 128,
            "layers": 4,
            "head_width": 32,
        },
        "text_cfg": {"width": 96, "heads": 3, "layers": 3},
    },
}

NAMES = tuple(_ARCHITECTURES)


@cache
def tokenizer() -> open_clip.SimpleTokenizer:
    """Return CLIP's tokenizer restricted to the merges in ``MERGES_FILE``."""
    return open_clip.SimpleTokenizer(bpe_path=str(MERGES_FILE), context_length=CONTEXT_LENGTH)


def weights_file(name: str) -> Path:
    """Return where the weights of an embedded model lie."""
    return WEIGHTS_FOLDER / f"{name}.safetensors"


def build(name: str) -> open_clip.CustomTextCLIP:
    """Build an embedded model with random weights.

    Args:
        name: one of ``NAMES``.

    Raises:
        UnknownName: there is no such embedded model.
    """
    if name not in _ARCHITECTURES:
        raise unknown("embedded model", name, NAMES)
    sizes = _ARCHITECTURES[name]
    vocabulary = {"context_length": CONTEXT_LENGTH, "vocab_size": tokenizer().vocab_size}
    return open_clip.CustomTextCLIP(
        embed_dim=sizes["embed_dim"],
        vision_cfg=sizes["vision_cfg"],
        text_cfg=sizes["text_cfg"] | vocabulary,
    )


def load_embedded(
    name: str, weights: Path | None, *, device: torch.device | str, dtype: torch.dtype
) -> ClipTowers:
    """Load an embedded model, frozen.

    Args:
        name: one of ``NAMES``.
        weights: a file in the form of those that ship; None for the one that does.
        device: where to put the towers.
        dtype: of the frozen weights.

    Raises:
        UnknownName: there is no such embedded model.
        MissingFile: the weights are not there.
        BadArtifact: the file does not hold this model's weights.
    """
    model = build(name)
    path = weights or weights_file(name)
    if not path.is_file():
        raise missing(f"weights of '{name}'", path, "give the path of a .safetensors file")
    if (path.parent / SUMS).is_file():
        check_sum(path, what="weights", remedy="restore the file")
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and torch raise many kinds
        reason = " ".join(str(error).split())[:300]
        raise BadArtifact(
            f"weights '{path}' are not those of '{name}' ({reason}); give that model's file"
        ) from None
    return freeze(name, model.to(device=device, dtype=dtype), tokenizer())
