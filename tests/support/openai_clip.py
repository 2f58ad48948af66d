"""CLIPs of any size, from weights with the keys of OpenAI's release."""

from collections.abc import Mapping

import open_clip
from torch import Tensor

from pd_core.models import clip
from pd_core.models.clip import ClipTowers


def towers(state: Mapping[str, Tensor]) -> ClipTowers:
    """Make fp32 towers with QuickGELU and 64 units a head, of the sizes of the weights."""
    width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    text_width = len(state["ln_final.weight"])
    context_length = len(state["positional_embedding"])
    model = open_clip.CustomTextCLIP(
        state["text_projection"].shape[1],
        vision_cfg={
            "layers": _blocks(state, "visual."), "width": width, "patch_size": patch,
            "image_size": patch * grid,
        },
        text_cfg={
            "context_length": context_length, "vocab_size": len(state["token_embedding.weight"]),
            "width": text_width, "heads": text_width // 64, "layers": _blocks(state, ""),
        },
        quick_gelu=True,
    )  # fmt: skip
    clip._load_strictly(model, state, "OpenAI's weights")
    tokenize = open_clip.SimpleTokenizer(context_length=context_length)
    return clip.freeze("openai", model, tokenize)


def _blocks(state: Mapping[str, Tensor], tower: str) -> int:
    start = f"{tower}transformer.resblocks."
    return len({key[len(start) :].split(".")[0] for key in state if key.startswith(start)})
