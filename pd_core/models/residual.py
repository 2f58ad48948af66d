"""One residual block of a tower, for some positions only.

open_clip's blocks compute every position that they are given. Often not all are needed: behind
the last block only one is read, and what texts have in common need not be computed for each.

Shapes: B sequences, Q positions that are computed, K positions that are looked at, W the width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_compiled: Any = None


def compile_blocks(*, on: bool) -> None:
    """Let torch compile what blocks compute, for this process: other last bits, often faster."""
    global _compiled  # noqa: PLW0603  as torch's own settings of how things are computed
    _compiled = torch.compile(_advance, dynamic=True) if on else None


def advance(
    block: Any, x: Tensor, queries: Tensor, keys: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Take positions through a block: attention and MLP, each added to what came in.

    Args:
        block: open_clip's `ResidualAttentionBlock`.
        x: (B, Q, W), hidden states of the positions that are computed.
        queries: (B, Q, W), the same behind `block.ln_1`.
        keys: (B, K, W), behind `block.ln_1` too, what they look at; `queries` itself where all
            positions are computed.
        mask: added to the scores, (Q, K) or (B, 1, Q, K).

    Returns:
        (B, Q, W).
    """
    done: Tensor = (_compiled or _advance)(block, x, queries, keys, mask)
    return done


def _advance(block: Any, x: Tensor, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    x = x + block.ls_1(_attention(block.attn, queries, keys, mask))
    change: Tensor = block.ls_2(block.mlp(block.ln_2(x)))
    return x + change


def _attention(attention: Any, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """Compute what torch's `MultiheadAttention` does, without its copies: (B, Q, W)."""
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if queries is keys:
        query, key, value = F.linear(keys, weight, bias).chunk(3, dim=-1)
    else:
        width = queries.shape[-1]
        query = F.linear(queries, weight[:width], bias[:width])
        key, value = F.linear(keys, weight[width:], bias[width:]).chunk(2, dim=-1)
    query, key, value = (_split(part, attention.num_heads) for part in (query, key, value))
    mask = mask if mask is None else mask.to(query.dtype)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    together: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return together


def _split(x: Tensor, heads: int) -> Tensor:
    """Divide the width among heads: (B, L, W) -> (B, heads, L, W / heads)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)
