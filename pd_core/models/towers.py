"""Towers of open_clip's models: their blocks, and prompts in blocks of any tower.

Shapes: B images, C texts, L tokens, n prompts per layer, W the width of a tower.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pd_core.core.options import TeacherMethod, Trained

Insert = Callable[[int, Tensor], Tensor]
"""Function from a block's number and its input (B, L, W) to its input with prompts."""


def blocks(tower: Any) -> Sequence[nn.Module]:
    """Return the residual blocks over tokens of a tower; none if prompts cannot enter it.

    They are those of open_clip's transformers, and of timm's `VisionTransformer` and `Eva` (EVA,
    SigLIP, ViTamin, MobileCLIP-B, PE). Convolutions, ResNets, and text towers of the library
    transformers have none.
    """
    if trunk := getattr(tower, "trunk", None):
        from timm.models.eva import Eva
        from timm.models.vision_transformer import VisionTransformer

        return list(trunk.blocks) if isinstance(trunk, VisionTransformer | Eva) else []
    return list(getattr(getattr(tower, "transformer", None), "resblocks", []))


def width(tower: Any) -> int:
    """Return W of a tower with `blocks`, otherwise 0."""
    if not blocks(tower):
        return 0
    return int(tower.trunk.embed_dim if hasattr(tower, "trunk") else tower.transformer.width)


def norm_before(tower: Any) -> nn.Module:
    """Return the normalisation between an image tower's embedding and its blocks."""
    norm: nn.Module = tower.trunk.norm_pre if hasattr(tower, "trunk") else tower.ln_pre
    return norm


def joint_width(visual: Any) -> int:
    """Return the width D of an image tower's features."""
    if hasattr(visual, "output_dim"):
        return int(visual.output_dim)
    with torch.no_grad():  # timm's heads have many forms
        image = torch.zeros(1, 3, *visual.image_size, device=device(visual), dtype=dtype(visual))
        return int(features(visual, image).shape[-1])


def device(tower: nn.Module) -> torch.device:
    """Return the device of a tower's weights."""
    return next(tower.parameters()).device


def dtype(tower: nn.Module) -> torch.dtype:
    """Return the type of a tower's weights."""
    return next(tower.parameters()).dtype


def features(tower: Any, inputs: Tensor) -> Tensor:
    """Return a tower's features (B, D), without the tokens that CoCa's towers add."""
    output = tower(inputs)
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def is_plain_image(tower: Any) -> bool:
    """Return whether an image tower is open_clip's, with its usual blocks and no attention pool.

    Its last block computes the class token only.
    """
    return getattr(tower, "attn_pool", 0) is None and _has_usual_blocks(tower)


def is_plain_text(tower: Any) -> bool:
    """Return whether a text tower is causal, with the features at the largest token id.

    Features then do not depend on later tokens, and a shared prefix is computed once.
    """
    causal = getattr(tower, "attn_mask", None) is not None
    at_end = getattr(tower, "pool_type", "") == "argmax" and tower.cls_emb is None
    return causal and at_end and _has_usual_blocks(tower)


def _has_usual_blocks(tower: Any) -> bool:
    from open_clip.transformer import ResidualAttentionBlock

    return all(isinstance(block, ResidualAttentionBlock) for block in blocks(tower))


def teacher_methods(visual: Any, text: Any) -> list[TeacherMethod]:
    """Return the methods that a model with these towers can be a teacher of."""
    if not blocks(text):
        return [TeacherMethod.CLIP]
    if not blocks(visual):
        return [TeacherMethod.COOP, TeacherMethod.CLIP]
    return list(TeacherMethod)


def trained_parts(visual: Any) -> list[Trained]:
    """Return the choices of trained parts of a student with this image tower."""
    prompts = bool(blocks(visual))
    return [part for part in Trained if prompts or part is not Trained.PROMPTS_AND_PROJECTOR]


def with_image_prompts(tower: Any, images: Tensor, rows: Tensor) -> Tensor:
    """Encode images by the tower's own forward pass, with prompts behind all other tokens.

    They are removed before the pooling. A rotary position embedding leaves them as they are.

    Args:
        tower: of images, with `blocks`.
        images: (B, 3, H, W).
        rows: prompts of the first layers, (depth, n, W).
    """
    count = rows.shape[1]

    def insert(layer: int, x: Tensor) -> Tensor:
        if layer >= len(rows):
            return x
        row = rows[layer].to(x.dtype)
        if layer == 0:
            row = norm_before(tower)(row)  # as in plain towers
        kept = x.shape[1] - (count if layer else 0)
        return torch.cat([x[:, :kept], row.expand(x.shape[0], -1, -1)], dim=1)

    def remove(_block: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output[:, :-count]

    with _inserted(blocks(tower), insert, rotary=count):
        handle = blocks(tower)[-1].register_forward_hook(remove)
        try:
            return features(tower, images)
        finally:
            handle.remove()


def with_text_prompts(tower: Any, tokens: Tensor, rows: Tensor, first: int) -> Tensor:
    """Encode texts by the tower's own forward pass, with prompts in place of some tokens.

    Args:
        tower: of texts, with `blocks`.
        tokens: (C, L).
        rows: prompts of the first layers, (depth, n, W).
        first: position of the first prompt.
    """
    end = first + rows.shape[1]

    def insert(layer: int, x: Tensor) -> Tensor:
        if layer >= len(rows):
            return x
        row = rows[layer].to(x.dtype)
        if layer == 0:
            row = row + tower.positional_embedding[first:end].to(x.dtype)
        return torch.cat([x[:, :first], row.expand(len(x), -1, -1), x[:, end:]], dim=1)

    with _inserted(blocks(tower), insert):
        return features(tower, tokens)


@contextmanager
def _inserted(stages: Sequence[nn.Module], insert: Insert, *, rotary: int = 0) -> Iterator[None]:
    """Change the inputs of blocks; rotary embeddings get neutral rows for `rotary` more tokens."""

    def enter(layer: int, _block: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if kwargs.get("rope") is not None and rotary:
            kwargs = {**kwargs, "rope": _longer(kwargs["rope"], rotary)}
        return (insert(layer, args[0]), *args[1:]), kwargs

    handles = [
        block.register_forward_pre_hook(partial(enter, layer), with_kwargs=True)
        for layer, block in enumerate(stages)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _longer(rope: Tensor, count: int) -> Tensor:
    """Add rows with sine 0 and cosine 1 to a rotary embedding (..., L, 2 d): (..., L + n, 2 d)."""
    rows = rope.new_zeros(*rope.shape[:-2], count, rope.shape[-1])
    rows[..., rope.shape[-1] // 2 :] = 1
    return torch.cat([rope, rows], dim=-2)
