"""Tiny CLIPs of this package, and their tokenizer."""

from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from pd_core.core.artifacts import SUMS, check_sum
from pd_core.core.errors import BadArtifact, missing, unknown

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
MERGES_FILE = WEIGHTS_FOLDER / "merges.txt.gz"
"""Merges of CLIP's tokenizer for the benchmark's words; other words become more tokens."""

_EMBEDDED_CONTEXT = 32
_EMBEDDED_SIZES: dict[str, dict[str, Any]] = {
    "embedded-teacher": {
        "vision": {"image_size": 32, "patch_size": 8, "width": 160, "layers": 6, "head_width": 40},
        "text": {"width": 96, "heads": 3, "layers": 4},
    },
    "embedded-student": {
        "vision": {"image_size": 32, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32},
        "text": {"width": 96, "heads": 3, "layers": 3},
    },
}
EMBEDDED = tuple(_EMBEDDED_SIZES)
"""Tiny CLIPs of this package, pre-trained on images of characters (recipes/embedded_clips.py)."""


@cache
def embedded_tokenizer() -> Any:
    """Return CLIP's tokenizer restricted to the merges in `MERGES_FILE`."""
    import open_clip

    return open_clip.SimpleTokenizer(bpe_path=str(MERGES_FILE), context_length=_EMBEDDED_CONTEXT)


def embedded_weights(name: str) -> Path:
    """Return the file of an embedded model's weights."""
    return WEIGHTS_FOLDER / f"{name}.safetensors"


def build_embedded(name: str) -> Any:
    """Build an embedded model with random weights, as an open_clip `CustomTextCLIP`."""
    import open_clip

    if name not in EMBEDDED:
        raise unknown("embedded model", name, EMBEDDED)
    text = {"context_length": _EMBEDDED_CONTEXT, "vocab_size": embedded_tokenizer().vocab_size}
    return open_clip.CustomTextCLIP(
        embed_dim=128,
        vision_cfg=_EMBEDDED_SIZES[name]["vision"],
        text_cfg={**_EMBEDDED_SIZES[name]["text"], **text},
    )


def load_embedded(name: str, path: Path) -> nn.Module:
    """Load an embedded model with the weights of a file, as an open_clip `CustomTextCLIP`.

    Raises:
        MissingFile: there is no such file.
        BadArtifact: it does not hold this model's weights.
    """
    from safetensors.torch import load_file

    model: nn.Module = build_embedded(name)
    if not path.is_file():
        raise missing(f"weights of '{name}'", path, "give the path of a .safetensors file")
    if (path.parent / SUMS).is_file():
        check_sum(path, what="weights", remedy="restore the file")
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and torch raise many kinds
        raise BadArtifact(
            f"weights '{path}' do not fit '{name}' ({str(error)[:300]}); give that model's file"
        ) from None
    return model
