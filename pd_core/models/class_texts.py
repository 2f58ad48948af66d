"""Texts of classes and their tokens, which have to differ from class to class.

Shapes: C classes, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor

from pd_core.core.errors import BadParams
from pd_core.core.names import clashes, listed, printable

TEMPLATE = "a photo of a {}."
_COMPLETE = 4096  # tokens; longer than any class name


class Tokenize(Protocol):
    """A tokenizer of open_clip."""

    def __call__(self, texts: list[str], context_length: int | None = None) -> Tensor:
        """Tokenize C texts: (C, L), truncated at the context length (default: the model's)."""


@dataclass(frozen=True)
class Frame:
    """Tokens around the words of a text.

    Attributes:
        start: position of the first word: 1, or 0 for tokenizers without a start token.
        end: token behind the last word, or `padding`.
        padding: token behind the end.
    """

    start: int
    end: int
    padding: int

    @classmethod
    def of(cls, tokenize: Tokenize) -> Self:
        """Find the tokens of a tokenizer."""
        empty, *words = tokenize(["", "a", "b"]).tolist()
        start = int(words[0][0] == words[1][0])
        return cls(start, empty[start], empty[-1])

    def lengths(self, tokens: Tensor) -> Tensor:
        """Count the tokens (C, L) of each text, start and end included: (C,)."""
        marks = (tokens != self.padding).int()
        count = marks.flip(-1).cummax(dim=-1).values.sum(dim=-1)
        return count + int(self.end == self.padding)

    def words(self, tokens: Tensor) -> Tensor:
        """Select the tokens of the words of a text: (L,) -> (w,)."""
        inside = tokens[self.start : int(self.lengths(tokens))]
        return inside[:-1] if len(inside) and inside[-1] == self.end else inside

    def is_full(self, tokens: Tensor) -> bool:
        """Return whether texts (..., L) have no padding, so that they may be truncated."""
        last = -2 if self.end == self.padding else -1
        return bool((tokens[..., last] != self.padding).all())


def phrase_tokens(tokenize: Tokenize, template: str) -> Tensor:
    """Tokenize the words before the class name, without start and end tokens: (p,)."""
    phrase, mark, _ = template.partition("{}")
    if not mark:
        raise BadParams(f"prompt template '{template}' has no {{}}; put it where the name goes")
    return Frame.of(tokenize).words(tokenize([phrase.strip()])[0])


def class_texts(
    names: Sequence[str], template: str, tokenize: Tokenize, *, prompt_length: int = 0
) -> list[str]:
    """Return the text of each class; underscores become spaces.

    Placeholders replace the words before the class name if there are more prompts than words.
    """
    if prompt_length > len(phrase_tokens(tokenize, template)):
        _, _, after = template.partition("{}")
        template = " ".join(["X"] * prompt_length) + " {}" + after
    return [template.replace("{}", name.replace("_", " ")) for name in names]


def check_distinct(names: Sequence[str], tokens: Tensor, model: str, tokenize: Tokenize) -> None:
    """Check that classes of different names have different tokens.

    The same name twice passes: ImageNet has two classes "missile".

    Args:
        names: of the classes.
        tokens: (C, L), or (C, T, L) for T templates, at the model's context length.
        model: name of the model.
        tokenize: its tokenizer.

    Raises:
        BadParams: different names have the same tokens, so that none can be told from the others.
    """
    same = clashes(names, map(tuple, tokens.flatten(1).tolist()))
    if not same:
        return
    limit, row = tokens.shape[-1], tokens[list(names).index(same[0][0])]
    cut = Frame.of(tokenize).is_full(row)
    reason = f"reads {limit} tokens of a text" if cut else "ignores case, underscores and blanks"
    raise BadParams(
        f"classes {listed(same[0])} have the same text for model '{model}', which {reason}: merge "
        f"them, or {'shorten' if cut else 'rename'} all but one"
    )


def check_classes(
    names: Sequence[str],
    model: str,
    tokenize: Tokenize,
    *,
    template: str = TEMPLATE,
    prompt_length: int = 0,
) -> list[str]:
    """Check the tokens of classes, and return a line for each text that is truncated.

    Raises:
        BadParams: as `check_distinct`.
    """
    texts = class_texts(names, template, tokenize, prompt_length=prompt_length)
    tokens, complete = tokenize(texts), tokenize(texts, context_length=_COMPLETE)
    check_distinct(names, tokens, model, tokenize)
    limit, frame = tokens.shape[1], Frame.of(tokenize)
    rest = (complete[:, limit:] != frame.padding).any(dim=1)
    cut = (rest | (complete[:, :limit] != tokens).any(dim=1)).tolist()
    return [
        f"model '{model}' reads {limit} of the {length} tokens of class '{printable(name)}': the "
        "end of the name has no effect"
        for name, length, is_cut in zip(names, frame.lengths(complete).tolist(), cut, strict=True)
        if is_cut
    ]
