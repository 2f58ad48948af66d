"""Deep prompts, and the two functions that drive a frozen tower with them.

The towers are open_clip's, untouched: the functions walk through their own
pieces (embedding, residual blocks, pooling, projection) and put the prompts in
between. Without prompts the result is the tower's own.

Shapes: B images, C texts, L tokens, P patches, D the joint width, W the width
of the tower, n prompts per layer.
"""

from typing import Any

import torch
from torch import Tensor, nn


class DeepPrompts(nn.Module):
    """Learnable tokens for the first layers of a tower.

    Row 0 is put in at the tower's input, row i at block i (paper, section 3.2:
    "vision-language prompts" of PromptSRC and MaPLe).

    Attributes:
        tokens: (depth, n, W), always fp32.
    """

    def __init__(
        self,
        depth: int,
        length: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw the tokens from a normal distribution of deviation 0.02.

        Args:
            depth: number of layers that get prompts.
            length: n.
            width: W.
            generator: where the numbers come from; without one all are zero,
                to be filled in by whoever loads them.
        """
        super().__init__()
        tokens = torch.zeros(depth, length, width)
        if generator is not None:
            tokens.normal_(std=0.02, generator=generator)
        self.tokens = nn.Parameter(tokens)

    @property
    def depth(self) -> int:
        """Number of layers that get prompts."""
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        """Number of prompts per layer."""
        return self.tokens.shape[1]


class CoupledPrompts(nn.Module):
    """Image prompts that are linear functions of the text prompts, layer by layer.

    MaPLe (CVPR 2023, arXiv 2210.03117), section 3.2: "vision language prompt coupling".

    Attributes:
        couplings: one linear layer per layer of prompts, from the text tower's width to W.
    """

    def __init__(
        self, source: DeepPrompts, width: int, *, depth: int, generator: torch.Generator
    ) -> None:
        """Draw the couplings; torch's global generator is left as it was.

        Args:
            source: the text prompts.
            width: W of the image tower.
            depth: how many rows of `source` are coupled.
            generator: where the seed of the couplings comes from.
        """
        super().__init__()
        self._source = (source,)  # in a tuple: its parameters belong to the text prompts
        seed = int(torch.randint(2**62, (1,), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.couplings = nn.ModuleList(
                nn.Linear(source.tokens.shape[2], width) for _ in range(depth)
            )

    @property
    def tokens(self) -> Tensor:
        """Compute the prompts: (depth, n, W)."""
        rows = self._source[0].tokens
        return torch.stack([couple(rows[i]) for i, couple in enumerate(self.couplings)])

    @property
    def depth(self) -> int:
        """Number of layers that get prompts."""
        return len(self.couplings)

    @property
    def length(self) -> int:
        """Number of prompts per layer."""
        return self._source[0].length

    @torch.no_grad()
    def folded(self) -> DeepPrompts:
        """Return prompts that are what these compute now."""
        rows = self.tokens.float().cpu()
        prompts = DeepPrompts(*rows.shape)
        prompts.tokens.copy_(rows)
        return prompts


ImagePrompts = DeepPrompts | CoupledPrompts


def encode_image(tower: Any, images: Tensor, prompts: ImagePrompts | None = None) -> Tensor:
    """Encode images, with prompts behind the patch tokens of the first layers.

    Args:
        tower: open_clip's `VisionTransformer`.
        images: (B, 3, H, W), normalised as the tower expects.
        prompts: of the tower's width; every row replaces the one before it.

    Returns:
        (B, D), not normalised.
    """
    x = tower._embeds(images.to(tower.conv1.weight.dtype))  # (B, 1 + P, W), after ln_pre
    kept = x.shape[1]
    rows = None if prompts is None else prompts.tokens  # (depth, n, W)
    for layer, block in enumerate(tower.transformer.resblocks):
        if prompts is not None and rows is not None and layer < prompts.depth:
            row = rows[layer].to(x.dtype)  # (n, W)
            if layer == 0:
                # The published model adds row 0 before ln_pre, which x has behind it.
                row = tower.ln_pre(row)
            row = row.expand(len(x), -1, -1)
            x = torch.cat([x[:, :kept], row], dim=1)  # (B, 1 + P + n, W)
        x = block(x)
    pooled, _ = tower._pool(x)  # (B, W)
    return _project(pooled, tower.proj)


def encode_text(tower: Any, tokens: Tensor, prompts: DeepPrompts | None = None) -> Tensor:
    """Encode texts, with prompts in place of the tokens at positions 1..n.

    Row 0 stands for word embeddings, so it gets the positional embedding; the
    deeper rows replace the hidden states as they are.

    Args:
        tower: open_clip's `TextTransformer`.
        tokens: (C, L), of the full context length or cut by `cut_after_end`.
        prompts: of the tower's width, n < L - 1.

    Returns:
        (C, D), the features at end-of-text, not normalised.
    """
    length = tokens.shape[1]
    x, mask = tower._embeds(tokens)  # (C, L, W)
    mask = mask if mask is None else mask[..., :length, :length]
    for layer, block in enumerate(tower.transformer.resblocks):
        if prompts is not None and layer < prompts.depth:
            row = prompts.tokens[layer].to(x.dtype)  # (n, W)
            if layer == 0:
                row = row + tower.positional_embedding[1 : 1 + prompts.length].to(x.dtype)
            row = row.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], row, x[:, 1 + prompts.length :]], dim=1)
        x = block(x, attn_mask=mask)
    x = tower.ln_final(x)
    pooled = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]  # (C, W)
    return _project(pooled, tower.text_projection)


def cut_after_end(tokens: Tensor) -> Tensor:
    """Drop the positions behind the last end-of-text of a batch.

    The text tower is causal, so no feature at end-of-text sees them.

    Args:
        tokens: (C, L); end-of-text has the largest id of each row.

    Returns:
        (C, L') with L' <= L.
    """
    return tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]


@torch.no_grad()
def encode_many_texts(
    tower: Any, tokens: Tensor, prompts: DeepPrompts | None = None, *, batch_size: int = 256
) -> Tensor:
    """Encode any number of texts without gradients, short ones with short ones.

    Args:
        tower: open_clip's `TextTransformer`.
        tokens: (C, L).
        prompts: as in `encode_text`.
        batch_size: texts at a time.

    Returns:
        (C, D), in the order of `tokens`, not normalised, fp32.
    """
    order = tokens.argmax(dim=-1).argsort(stable=True)
    features = [
        encode_text(tower, cut_after_end(tokens[chosen]), prompts).float()
        for chosen in torch.split(order, batch_size)
    ]
    return torch.cat(features)[order.argsort()]


def _project(pooled: Tensor, projection: Any) -> Tensor:
    if projection is None:
        return pooled
    product: Tensor = (
        projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
    )
    return product
