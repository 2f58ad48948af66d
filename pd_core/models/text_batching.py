"""Texts as a causal text tower takes them: without a token that decides nothing.

Shapes: C texts, L tokens, W the width of the tower.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor

from pd_core.core.errors import BadParams

TOGETHER = 64
"""Texts that go through the tower together: more would be padded more."""

LEAST_TOGETHER = 16
"""However little memory there is: fewer take longer to read the tower's weights than to compute."""

_KEPT = 14
"""Numbers per position, layer and unit of width that a block keeps for its gradients.

Its input, query, key, value, their mix, the MLP's input, and the 4 wide MLP twice for QuickGELU.
"""


@dataclass(frozen=True)
class TextBatch:
    """Texts that go through the tower together.

    Attributes:
        tokens: (C, L), cut behind the end of the longest text.
        end: (C,) position of each text's end-of-text.
        shared: so many positions in front are the same in all texts, prompts included; at least
            one position of each text is not among them.
    """

    tokens: Tensor
    end: Tensor
    shared: int

    @classmethod
    def of(cls, tokens: Tensor, prompt_length: int = 0) -> Self:
        """Look at tokens; this waits for the device that they are on.

        Args:
            tokens: (C, L), of the full context length or cut; end-of-text has the largest id.
            prompt_length: so many positions behind the start are replaced by prompts.

        Raises:
            BadParams: a text ends among the prompts.
        """
        cut = cut_after_end(tokens)
        end = tokens.argmax(dim=-1)
        first_end = int(end.min())
        if first_end <= prompt_length:
            raise BadParams(
                f"a text ends at position {first_end}, among prompts of length {prompt_length};"
                " use shorter prompts, or longer texts"
            )
        same = (cut == cut[:1]).all(dim=0)  # (L,)
        same[1 : 1 + prompt_length] = True
        return cls(cut, end, min(int(same.int().cumprod(dim=0).sum()), first_end))

    def at_end(self, x: Tensor) -> Tensor:
        """Take what stands at the end of each text: (C, L - shared, W) -> (C, 1, W)."""
        rows = torch.arange(len(x), device=x.device)
        return x[rows, self.end - self.shared][:, None]

    def memory(self, tower: Any) -> int:
        """Estimate the bytes that a tower keeps for the gradients of this batch, from above."""
        width, layers = int(tower.transformer.width), len(tower.transformer.resblocks)
        return 4 * _KEPT * width * layers * self.tokens.numel()


@dataclass(frozen=True)
class TextPlan:
    """Any number of texts, in batches of like length, and which of them are computed twice.

    Attributes:
        batches: from short texts to long ones.
        place: (C,) where each text is in the batches.
        kept: so many of the batches keep what their gradients need; the others are computed once
            more for them.
    """

    batches: tuple[TextBatch, ...]
    place: Tensor
    kept: int

    @classmethod
    def of(
        cls, tower: Any, tokens: Tensor, prompt_length: int = 0, *, memory: int | None = None
    ) -> Self:
        """Plan how texts go through a tower; this waits for the device that they are on.

        Args:
            tower: open_clip's `TextTransformer`.
            tokens: (C, L); end-of-text has the largest id of each row.
            prompt_length: as in `TextBatch.of`, and so are the errors.
            memory: bytes that may be kept for the gradients of all; None for as many as it takes.
                At least 16 texts at a time are computed, whatever they take.
        """
        order = tokens.argmax(dim=-1).argsort(stable=True)

        def divided(together: int) -> tuple[TextBatch, ...]:
            parts = torch.split(order, together)
            return tuple(TextBatch.of(tokens[chosen], prompt_length) for chosen in parts)

        batches = divided(TOGETHER)
        if memory is None or sum(batch.memory(tower) for batch in batches) <= memory:
            return cls(batches, order.argsort(), len(batches))
        longest = batches[-1].memory(tower) // len(batches[-1].tokens)
        # One batch at a time is computed anew. It gets a quarter of the memory.
        batches = divided(max(LEAST_TOGETHER, min(TOGETHER, memory // (4 * longest))))
        needed = [batch.memory(tower) for batch in batches]
        kept = sum(total + needed[-1] <= memory for total in accumulate(needed))
        return cls(batches, order.argsort(), kept)


def cut_after_end(tokens: Tensor) -> Tensor:
    """Drop the positions behind the last end-of-text, which has the largest id: (C, L) -> (C, L').

    The text tower is causal, so no feature at end-of-text sees them.
    """
    return tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
