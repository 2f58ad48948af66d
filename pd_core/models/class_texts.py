"""Texts of classes and their tokens, which have to differ from class to class.

Shapes: C classes, L tokens.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from pd_core.core.errors import BadParams
from pd_core.core.names import clashes, listed, printable

TEMPLATE = "a photo of a {}."
_COMPLETE = 4096  # tokens; longer than any class name


class Tokenize(Protocol):
    """A tokenizer of open_clip."""

    def __call__(self, texts: list[str], context_length: int | None = None) -> Tensor:
        """Tokenize C texts: (C, L), truncated at the context length (default: the model's)."""


def phrase_tokens(tokenize: Tokenize, template: str) -> Tensor:
    """Tokenize the words before the class name, without start and end tokens: (p,)."""
    phrase, mark, _ = template.partition("{}")
    if not mark:
        raise BadParams(f"prompt template '{template}' has no {{}}; put it where the name goes")
    tokens = tokenize([phrase.strip()])[0]  # (L,)
    return tokens[1 : int(tokens.argmax())]


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


def check_distinct(names: Sequence[str], tokens: Tensor, model: str) -> None:
    """Check that classes of different names have different tokens.

    The same name twice passes: ImageNet has two classes "missile".

    Args:
        names: of the classes.
        tokens: (C, L), or (C, T, L) for T templates, at the model's context length.
        model: name of the model.

    Raises:
        BadParams: different names have the same tokens, so that none can be told from the others.
    """
    same = clashes(names, map(tuple, tokens.flatten(1).tolist()))
    if not same:
        return
    limit, row = tokens.shape[-1], tokens[list(names).index(same[0][0])]
    cut = bool((row.argmax(dim=-1) == limit - 1).all())
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
    tokens = tokenize(texts)
    check_distinct(names, tokens, model)
    limit = tokens.shape[1]
    lengths = (tokenize(texts, context_length=_COMPLETE).argmax(dim=-1) + 1).tolist()
    return [
        f"model '{model}' reads {limit} of the {length} tokens of class '{printable(name)}': the "
        "end of the name has no effect"
        for name, length in zip(names, lengths, strict=True)
        if length > limit
    ]
