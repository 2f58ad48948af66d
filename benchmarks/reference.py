"""The plain path: what the original does, step by step, with open_clip's own modules.

Every text has 77 tokens, every position of every text goes through every block, class vectors are
computed at every step, and both towers are online. Each tower has the faster of the two layouts
that torch's attention takes, so that no ratio is one of layouts: texts (C, L, W), where the
original's (L, C, W) is no faster; images (L, B, W), as the original, where the backward pass of (B,
L, W) takes a third longer.

Shapes: B images, C classes, L tokens, P patches, W the width of a tower, D the joint width, n
prompts per layer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pd_core.models.clip import ClipTowers
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher


def encode_text(tower: Any, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
    """Encode texts.

    Args:
        tower: open_clip's `TextTransformer`.
        tokens: (C, L), of the full context length.
        prompts: (depth, n, W), in place of the tokens 1 to n; every row replaces the one before.

    Returns:
        (C, D), the features at end-of-text, not normalised.
    """
    x, mask = tower._embeds(tokens)  # (C, L, W)
    for layer, block in enumerate(tower.transformer.resblocks):
        if prompts is not None and layer < len(prompts):
            row = prompts[layer]  # (n, W)
            if layer == 0:
                row = row + tower.positional_embedding[1 : 1 + len(row)]
            x = torch.cat([x[:, :1], row.expand(len(x), -1, -1), x[:, 1 + len(row) :]], dim=1)
        x = block(x, attn_mask=mask)
    x = tower.ln_final(x)
    ends: Tensor = x[torch.arange(len(x)), tokens.argmax(dim=-1)]  # (C, W)
    features: Tensor = ends @ tower.text_projection
    return features


def encode_image(tower: Any, images: Tensor, prompts: Tensor | None = None) -> Tensor:
    """Encode images.

    Args:
        tower: open_clip's `VisionTransformer`.
        images: (B, 3, H, W).
        prompts: (depth, n, W), behind the patches; every row replaces the one before.

    Returns:
        (B, D), not normalised.
    """
    x = tower._embeds(images).transpose(0, 1)  # (1 + P, B, W), after ln_pre
    kept = len(x)
    with _sequence_first(tower):
        for layer, block in enumerate(tower.transformer.resblocks):
            if prompts is not None and layer < len(prompts):
                row = tower.ln_pre(prompts[layer]) if layer == 0 else prompts[layer]  # (n, W)
                x = torch.cat([x[:kept], row[:, None].expand(-1, len(images), -1)])
            x = block(x)
    features: Tensor = tower.ln_post(x.transpose(0, 1))[:, 0] @ tower.proj  # (B, D)
    return features


def tokenize(towers: ClipTowers, texts: Sequence[str]) -> Tensor:
    """Tokenize texts at the full context length: (C, L)."""
    return towers.tokenize(list(texts))


def class_vectors(teacher: Teacher, tokens: Tensor) -> Tensor:
    """Encode the text of each class with the teacher's prompts: (C, D), unit length."""
    return _unit(encode_text(teacher.towers.text, tokens, _rows(teacher.text_prompts)))


def distillation_loss(
    teacher: Teacher, student: Student, images: Tensor, tokens: Tensor, *, weight: float = 1000.0
) -> Tensor:
    """Compute the loss of a step of distillation, from nothing but images and texts.

    Args:
        teacher: with its prompts.
        student: whose prompts and projector are trained.
        images: (B, 3, H, W).
        tokens: (C, L) of the teacher's texts.
        weight: of the loss.

    Returns:
        Weighted divergence over all B x C elements, a scalar.
    """
    with torch.no_grad():
        text = class_vectors(teacher, tokens)  # (C, D)
        seen = encode_image(teacher.towers.visual, images, _rows(teacher.image_prompts))
        wanted = teacher.logit_scale * _unit(seen) @ text.T  # (B, C)
    features = encode_image(student.towers.visual, images, _rows(student.image_prompts))
    logits = student.logit_scale * _unit(student.projector(features)) @ text.T  # (B, C)
    divergence = F.kl_div(logits.log_softmax(dim=1), wanted.softmax(dim=1), reduction="sum")
    return weight * divergence / logits.numel()


def promptsrc_loss(
    teacher: Teacher,
    images: Tensor,
    labels: Tensor,
    tokens: Tensor,
    frozen_text: Tensor,
    *,
    text_weight: float = 25.0,
    image_weight: float = 10.0,
) -> Tensor:
    """Compute the loss of a step of PromptSRC.

    Args:
        teacher: whose prompts are tuned.
        images: (B, 3, H, W).
        labels: (B,) class numbers.
        tokens: (C, L) of the teacher's texts.
        frozen_text: (C, D) of the frozen model, computed once, unit length.
        text_weight: of the text term.
        image_weight: of the image term.

    Returns:
        Cross entropy and the three regularising terms, a scalar.
    """
    towers, scale = teacher.towers, teacher.logit_scale
    text = class_vectors(teacher, tokens)  # (C, D)
    image = _unit(encode_image(towers.visual, images, _rows(teacher.image_prompts)))  # (B, D)
    with torch.no_grad():
        frozen_image = _unit(encode_image(towers.visual, images))  # (B, D)
        zero_shot = scale * frozen_image @ frozen_text.T  # (B, C)
    logits = scale * image @ text.T  # (B, C)
    divergence = F.kl_div(
        logits.log_softmax(dim=1), zero_shot.log_softmax(dim=1), reduction="sum", log_target=True
    )
    return (
        F.cross_entropy(logits, labels)
        + text_weight * F.l1_loss(text, frozen_text)
        + image_weight * F.l1_loss(image, frozen_image)
        + divergence / logits.numel()
    )


@torch.no_grad()
def frozen_text(towers: ClipTowers, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Average the frozen text features over templates, one template after the other.

    Returns:
        (C, D), unit length.
    """
    features = []
    for template in templates:
        texts = [template.replace("{}", name.replace("_", " ")) for name in names]
        features.append(encode_text(towers.text, tokenize(towers, texts)))
    return _unit(torch.stack(features).mean(dim=0))


def step(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> float:
    """Take one step of an optimiser; return the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    value = loss()
    torch.autograd.backward(value)
    optimizer.step()
    return float(value.detach())


@contextmanager
def _sequence_first(tower: Any) -> Iterator[None]:
    """Let the blocks take (L, B, W), as the original's do."""
    modules = [block.attn for block in tower.transformer.resblocks]
    for module in modules:
        module.batch_first = False
    yield
    for module in modules:
        module.batch_first = True


def _rows(prompts: nn.Module | None) -> Tensor | None:
    """Return the tokens of prompts, (depth, n, W)."""
    if prompts is None:
        return None
    tokens: Any = prompts.tokens
    rows: Tensor = tokens
    return rows


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=-1)
