"""Deep prompts, and the forward passes of frozen towers with prompts."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pd_core.core.hooks import OnProgress
from pd_core.models import towers
from pd_core.models.text_batching import TextBatch, TextPlan


class DeepPrompts(nn.Module):
    """Learnable tokens for the first layers of a tower.

    Row 0 is inserted at the tower's input, row i at block i (paper, section 3.2: "vision-language
    prompts" of PromptSRC and MaPLe).

    Attributes:
        tokens: (depth, n, W), always fp32.
        first: position of the first prompt in a text, behind the start token if there is one.
    """

    def __init__(
        self,
        depth: int,
        length: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
        first: int = 1,
    ) -> None:
        """Draw the tokens (depth, length, width) from N(0, 0.02^2), or zeros without generator."""
        super().__init__()
        self.first = first
        tokens = torch.zeros(depth, length, width)
        if generator is not None:
            tokens.normal_(std=0.02, generator=generator)
        self.tokens = nn.Parameter(tokens)

    @classmethod
    def of(cls, tokens: Tensor, *, first: int = 1) -> Self:
        """Create prompts with a copy of tokens (depth, n, W)."""
        prompts = cls(*tokens.shape, first=first)
        prompts.tokens.data.copy_(tokens)
        return prompts

    @property
    def depth(self) -> int:
        """Number of layers with prompts."""
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
        """Draw the couplings of the first `depth` rows; the global generator is not changed.

        Args:
            source: text prompts.
            width: W of the image tower.
            depth: number of coupled rows.
            generator: draws the seed of the couplings.
        """
        super().__init__()
        self._source = (source,)  # a tuple, so that its parameters are not registered here too
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
        """Number of layers with prompts."""
        return len(self.couplings)

    @property
    def length(self) -> int:
        """Number of prompts per layer."""
        return self._source[0].length

    @torch.no_grad()
    def folded(self) -> DeepPrompts:
        """Return the current values as independent prompts."""
        return DeepPrompts.of(self.tokens.float().cpu())


ImagePrompts = DeepPrompts | CoupledPrompts


def encode_image(tower: Any, images: Tensor, prompts: ImagePrompts | None = None) -> Tensor:
    """Encode images, with prompts behind the patch tokens of the first layers.

    Args:
        tower: an image tower of open_clip; one without `towers.blocks` has no prompts.
        images: normalised for the tower, (B, 3, H, W).
        prompts: of the tower's width; each row replaces the previous one.

    Returns:
        Features (B, D), not normalised.
    """
    if images.shape[0] == 0:  # open_clip needs an image
        return encode_image(tower, images.new_zeros(1, *images.shape[1:]), prompts)[:0]
    images = images.to(towers.dtype(tower))
    rows = None if prompts is None else prompts.tokens  # (depth, n, W)
    if not towers.is_plain_image(tower):
        if rows is None:
            return towers.features(tower, images)
        return towers.with_image_prompts(tower, images, rows)
    x = tower._embeds(images)  # (B, 1 + P, W), after ln_pre
    kept = x.shape[1]
    blocks = tower.transformer.resblocks
    for layer, block in enumerate(blocks):
        if prompts is not None and rows is not None and layer < prompts.depth:
            row = rows[layer].to(x.dtype)  # (n, W)
            if layer == 0:
                # The published model inserts row 0 before ln_pre.
                row = tower.ln_pre(row)
            row = row.expand(x.shape[0], -1, -1)
            x = torch.cat([x[:, :kept], row], dim=1)  # (B, 1 + P + n, W)
        keys = queries = block.ln_1(x)
        if layer == len(blocks) - 1 and tower.pool_type == "tok":
            x, queries = x[:, :1], keys[:, :1]  # only the class token is used
        elif prompts is not None and layer + 1 < prompts.depth:
            x = x[:, :kept]  # the next row replaces the prompts
        x = advance(block, x, queries, keys)
    pooled, _ = tower._pool(x[:, :kept])  # (B, W)
    return _project(pooled, tower.proj)


def encode_text(
    tower: Any, texts: Tensor | TextBatch, prompts: DeepPrompts | None = None
) -> Tensor:
    """Encode texts, with prompts in place of the tokens before the class name.

    Row 0 replaces word embeddings, so the positional embedding is added; deeper rows replace hidden
    states. In a plain tower (`towers.is_plain_text`) a prefix shared by all texts is computed once.

    Args:
        tower: a text tower of open_clip; one without `towers.blocks` has no prompts.
        texts: tokens (C, L), or their batch for prompts of this length.
        prompts: of the tower's width, n < L - 1.

    Returns:
        Features (C, D), not normalised.

    Raises:
        BadParams: a text ends within the prompts.
    """
    if not towers.is_plain_text(tower):
        tokens = texts.tokens if isinstance(texts, TextBatch) else texts
        if prompts is None:
            return towers.features(tower, tokens)
        return towers.with_text_prompts(tower, tokens, prompts.tokens, prompts.first)
    length = 0 if prompts is None else prompts.length
    batch = texts if isinstance(texts, TextBatch) else TextBatch.of(texts, length)
    embedded, mask = tower._embeds(batch.tokens)  # (C, L, W)
    front, x = embedded[:1, : batch.shared], embedded[:, batch.shared :]
    size, total = batch.shared, embedded.shape[1]
    blocks = tower.transformer.resblocks
    for layer, block in enumerate(blocks):
        if prompts is not None and layer < prompts.depth:
            row = prompts.tokens[layer].to(x.dtype)  # (n, W)
            if layer == 0:
                row = row + tower.positional_embedding[1 : 1 + length].to(x.dtype)
            front = torch.cat([front[:, :1], row[None], front[:, 1 + length :]], dim=1)
        before, queries = block.ln_1(front), block.ln_1(x)
        keys = torch.cat([before.expand(len(x), -1, -1), queries], dim=1)  # (C, L, W)
        if layer < len(blocks) - 1:
            x = advance(block, x, queries, keys, mask[size:total, :total])
            front = advance(block, front, before, before, mask[:size, :size])
        else:  # only end-of-text is used
            x, queries = batch.at_end(x), batch.at_end(queries)
            x = advance(block, x, queries, keys, mask[batch.end, :total][:, None, None])
    pooled = tower.ln_final(x[:, 0])  # (C, W)
    return _project(pooled, tower.text_projection)


def encode_texts(
    tower: Any,
    plan: TextPlan,
    prompts: DeepPrompts | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """Encode the texts of a plan with exact gradients: (C, D), in their order, not normalised.

    Batches beyond `plan.kept` are checkpointed: they are computed again for their gradients.
    """
    features: list[Tensor] = []
    for number, batch in enumerate(plan.batches):
        if on_progress is not None:
            on_progress(sum(map(len, features)), len(plan.place))
        if number < plan.kept:
            features.append(encode_text(tower, batch, prompts))
        else:
            again: Tensor = checkpoint(
                encode_text, tower, batch, prompts, use_reentrant=False, preserve_rng_state=False
            )
            features.append(again)
    return torch.cat(features)[plan.place]


@torch.no_grad()
def encode_many_texts(
    tower: Any,
    tokens: Tensor,
    prompts: DeepPrompts | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """Encode tokens (C, L) without gradients, in batches: (C, D), not normalised, fp32."""
    plan = TextPlan.of(tower, tokens, 0 if prompts is None else prompts.length)
    return encode_texts(tower, plan, prompts, on_progress=on_progress).float()


def _project(pooled: Tensor, projection: Any) -> Tensor:
    if projection is None:
        return pooled
    linear = isinstance(projection, nn.Linear)
    product: Tensor = projection(pooled) if linear else pooled @ projection
    return product


_compiled: Any = None

_VARIANTS = 64
"""Compilations of a block at most: for towers and their widths, masks, positions, gradients.

Beyond torch's own limit of 8, blocks of further kinds would not be compiled.
"""


def compile_blocks(*, on: bool) -> None:
    """Turn torch.compile for blocks on or off in this process; it changes the last bits."""
    global _compiled  # noqa: PLW0603  like torch's own settings
    if on:
        torch._dynamo.config.recompile_limit = _VARIANTS
    _compiled = torch.compile(_advance, dynamic=True) if on else None


def advance(
    block: Any, x: Tensor, queries: Tensor, keys: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Compute a residual block, attention and MLP, for some of its positions: (B, Q, W).

    Args:
        block: open_clip's `ResidualAttentionBlock`.
        x: hidden states of the positions to compute, (B, Q, W).
        queries: the same after `block.ln_1`, (B, Q, W); or `keys` itself, if they are its first.
        keys: all positions after `block.ln_1`, (B, K, W).
        mask: added to the attention scores, (Q, K) or (B, 1, Q, K).
    """
    result: Tensor = (_compiled or _advance)(block, x, queries, keys, mask)
    return result


def _advance(block: Any, x: Tensor, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    x = x + block.ls_1(_attention(block.attn, queries, keys, mask, x.shape[1]))
    change: Tensor = block.ls_2(block.mlp(block.ln_2(x)))
    return x + change


def _attention(
    attention: Any, queries: Tensor, keys: Tensor, mask: Tensor | None, count: int
) -> Tensor:
    """Compute the attention of torch's `MultiheadAttention` without its copies: (B, Q, W).

    Queries that are the keys are projected with them in one product; the first `count` are used.
    """
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if queries is keys:
        query, key, value = F.linear(keys, weight, bias).chunk(3, dim=-1)
        query = query[:, :count]
    else:
        width = queries.shape[-1]
        query = F.linear(queries, weight[:width], bias[:width])
        key, value = F.linear(keys, weight[width:], bias[width:]).chunk(2, dim=-1)
    query, key, value = (_split(part, attention.num_heads) for part in (query, key, value))
    mask = mask if mask is None else mask.to(query.dtype)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    output: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return output


def _split(x: Tensor, heads: int) -> Tensor:
    """Split the width into heads: (B, L, W) -> (B, heads, L, W / heads)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)
