"""open_clip's architectures by their own configurations, made small, with random weights."""

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import open_clip
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vitamin import VitCfg, VitConvCfg
from torch import Tensor

from pd_core.models import clip
from pd_core.models.clip import ClipTowers

LENGTH = 16  # tokens of a text

_VIT = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16}
_TIMM_VIT = {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2}
_FASTVIT = {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32)}
_VITAMIN = VitCfg(
    embed_dim=(8, 16, 32), depths=(1, 1, 1), stem_width=8, head_type="1d",
    conv_cfg=VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6),
)  # fmt: skip
_TRUNKS: dict[str, dict[str, Any]] = {
    "eva02_base_patch16_clip_224": {**_TIMM_VIT, "embed_dim": 48},
    "vit_pe_core_base_patch16_224": {**_TIMM_VIT, "embed_dim": 48},
    "vit_base_patch16_siglip_224": _TIMM_VIT,
    "vitamin_base_224": {**_TIMM_VIT, "embed_cfg": _VITAMIN},
    "convnext_base": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "fastvit_mci1": _FASTVIT,
    "fastvit_mci3": {"layers": (1, 1, 1, 1, 1), "embed_dims": (16, 16, 32, 32, 32)},
}

VISION: dict[str, dict[str, Any]] = {
    "ViT-B-16": _VIT,
    "ViT-B-16-quickgelu": _VIT,  # also MetaCLIP's
    "ViT-L-14-CLIPA": _VIT,
    "ViT-H-14-worldwide": _VIT,  # MetaCLIP 2's
    "coca_ViT-B-32": {**_VIT, "attn_pooler_heads": 2},
    "RN50": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16},
    "EVA02-B-16": {"image_size": 32},
    "PE-Core-B-16": {"image_size": 32},
    "ViT-B-16-SigLIP": {"image_size": 32},
    "ViT-B-16-SigLIP2": {"image_size": 32},
    "ViTamin-B": {"image_size": 32},
    "convnext_base": {"image_size": 32},
    "MobileCLIP-S1": {"image_size": 64},
    "MobileCLIP2-S3": {"image_size": 64},
}
"""Names of open_clip's models, and what differs in the small model's image tower."""


class Letters:
    """A tokenizer of letters, in the manner of those that cannot be had without a network."""

    def __init__(self, *, start: int | None, end: int | None, fill: int) -> None:
        """Set the tokens before, after and behind a text."""
        self.start, self.end, self.fill = start, end, fill

    def __call__(self, texts: list[str], context_length: int | None = None) -> Tensor:
        """Tokenize C texts: (C, L)."""
        length = context_length or LENGTH
        rows = torch.full((len(texts), length), self.fill)
        for row, text in zip(rows, texts, strict=True):
            start = [] if self.start is None else [self.start]
            end = [] if self.end is None else [self.end]
            words = [10 + crc32(word.encode()) % 30000 for word in text.split()]
            tokens = (start + words)[: length - len(end)] + end
            row[: len(tokens)] = torch.tensor(tokens)
        return rows


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "ViT-B-16-SigLIP": lambda: Letters(start=None, end=1, fill=1),
    "ViT-B-16-SigLIP2": lambda: Letters(start=None, end=1, fill=0),
    "ViT-L-14-CLIPA": lambda: Letters(start=5, end=None, fill=0),
    "ViT-H-14-worldwide": lambda: Letters(start=0, end=2, fill=1),
}
"""Tokenizers in the manner of SentencePiece's, BERT's and XLM-V's."""


@cache
def model(name: str) -> Any:
    """Build the small model, as open_clip's `CustomTextCLIP`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.CustomTextCLIP(**_config(name)).eval()


def stored(name: str, folder: Path) -> tuple[str, Path]:
    """Register the small model with open_clip, store its weights, and return its name and them."""
    small = f"small-{name}"
    config = folder / "configs" / f"{small}.json"
    config.parent.mkdir(exist_ok=True)
    config.write_text(json.dumps(_config(name)))
    open_clip.add_model_config(config)
    save_file(model(name).state_dict(), folder / f"{small}.safetensors")
    return small, folder / f"{small}.safetensors"


def _config(name: str) -> dict[str, Any]:
    config = copy.deepcopy(open_clip.get_model_config(name))
    config["vision_cfg"] |= VISION[name]
    config["text_cfg"] |= {"context_length": LENGTH, "width": 32, "heads": 2, "layers": 3}
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_name"] = _registered(
            config["vision_cfg"]["timm_model_name"]
        )
    config = {key: config[key] for key in config if key not in {"custom_text", "multimodal_cfg"}}
    return {**config, "embed_dim": 48 if name == "PE-Core-B-16" else 32}


def tokenizer(name: str) -> Any:
    """Return the small model's tokenizer."""
    if name in TOKENIZERS:
        return TOKENIZERS[name]()
    return open_clip.SimpleTokenizer(context_length=LENGTH)


@cache
def towers(name: str) -> ClipTowers:
    """Freeze the small model."""
    return clip.freeze(name, copy.deepcopy(model(name)), tokenizer(name))


@cache
def _registered(trunk: str) -> str:
    """Register the small form of a model of timm, and return its name."""

    def make(pretrained: bool = False, **options: Any) -> Any:  # noqa: FBT001, FBT002  timm's
        return timm.create_model(trunk, pretrained=pretrained, **{**_TRUNKS[trunk], **options})

    make.__name__ = f"small_{trunk}"
    register_model(make)
    return make.__name__
