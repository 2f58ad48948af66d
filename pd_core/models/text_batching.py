"""Batches of texts; for a plain text tower truncated and grouped by length.

Shapes: C texts, L tokens, W the width of the tower.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor

from pd_core.core.errors import BadParams
from pd_core.models import towers

TOGETHER = 64
"""Texts a batch; larger batches have more padding."""

LEAST_TOGETHER = 16
"""Smallest batch, whatever the memory; in smaller ones reading the tower's weights dominates."""

_KEPT = 14
"""Activations stored for gradients, per position, layer and unit of width.

Input, query, key, value, attention output, input of the MLP, and twice its 4 (QuickGELU).
"""


@dataclass(frozen=True)
class TextBatch:
    """A batch of texts.

    Attributes:
        tokens: (C, L), truncated after the end of the longest text.
        end: position of end-of-text, (C,).
        shared: length of the prefix that all texts share, prompts included; shorter than any text.
    """

    tokens: Tensor
    end: Tensor
    shared: int

    @classmethod
    def of(cls, tokens: Tensor, prompt_length: int = 0) -> Self:
        """Make a batch; synchronises with the device.

        Args:
            tokens: (C, L), truncated or not; end-of-text has the largest id.
            prompt_length: number of positions after the start that prompts replace.

        Raises:
            BadParams: a text ends within the prompts.
        """
        cut = cut_after_end(tokens)
        end = tokens.argmax(dim=-1)
        first_end = int(end.min())
        if first_end <= prompt_length:
            raise BadParams(
                f"a text ends at position {first_end}, within prompts of length {prompt_length};"
                " use shorter prompts, or longer texts"
            )
        same = (cut == cut[:1]).all(dim=0)  # (L,)
        same[1 : 1 + prompt_length] = True
        return cls(cut, end, min(int(same.int().cumprod(dim=0).sum()), first_end))

    @classmethod
    def whole(cls, tokens: Tensor) -> Self:
        """Make a batch of tokens (C, L) for a tower that is not plain, nothing truncated."""
        return cls(tokens, tokens.argmax(dim=-1), 0)

    def at_end(self, x: Tensor) -> Tensor:
        """Select end-of-text of each text: (C, L - shared, W) -> (C, 1, W)."""
        rows = torch.arange(len(x), device=x.device)
        return x[rows, self.end - self.shared][:, None]

    def memory(self, tower: Any) -> int:
        """Return an upper bound of the bytes that a tower stores for the gradients."""
        size = towers.width(tower) * len(towers.blocks(tower))
        return 4 * _KEPT * size * self.tokens.numel()


@dataclass(frozen=True)
class TextPlan:
    """Batches of texts of similar length within a memory budget.

    Attributes:
        batches: from short texts to long ones.
        place: position of each text in the batches, (C,).
        kept: number of batches that store their activations; the others are computed again for the
            gradients.
    """

    batches: tuple[TextBatch, ...]
    place: Tensor
    kept: int

    @classmethod
    def of(
        cls, tower: Any, tokens: Tensor, prompt_length: int = 0, *, memory: int | None = None
    ) -> Self:
        """Divide texts into batches; synchronises with the device.

        Args:
            tower: a text tower of open_clip.
            tokens: (C, L); in a plain tower end-of-text has the largest id of each row.
            prompt_length: as in `TextBatch.of`, and so are the errors.
            memory: bytes for activations, exceeded only by a smallest batch; None for no limit.
        """
        order = tokens.argmax(dim=-1).argsort(stable=True)
        plain = towers.is_plain_text(tower)

        def divided(together: int) -> tuple[TextBatch, ...]:
            parts = [tokens[chosen] for chosen in torch.split(order, together)]
            if not plain:
                return tuple(TextBatch.whole(part) for part in parts)
            return tuple(TextBatch.of(part, prompt_length) for part in parts)

        batches = divided(TOGETHER)
        if memory is None or sum(batch.memory(tower) for batch in batches) <= memory:
            return cls(batches, order.argsort(), len(batches))
        longest = batches[-1].memory(tower) // len(batches[-1].tokens)
        # One batch at a time is computed again, in a quarter of the memory.
        batches = divided(max(LEAST_TOGETHER, min(TOGETHER, memory // (4 * longest))))
        needed = [batch.memory(tower) for batch in batches]
        kept = sum(total + needed[-1] <= memory for total in accumulate(needed))
        return cls(batches, order.argsort(), kept)


def cut_after_end(tokens: Tensor) -> Tensor:
    """Truncate after the last end-of-text, the largest id: (C, L) -> (C, L').

    The text tower is causal, so features at end-of-text do not depend on the rest.
    """
    return tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
