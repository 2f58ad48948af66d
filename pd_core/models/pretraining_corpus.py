"""What the embedded CLIPs are pre-trained on: characters, their names, and their pictures.

It holds neither the held-out fonts nor handwriting, nor any of the cameras of the benchmark.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor

from pd_core.data import embedded as benchmark
from pd_core.data import glyphs

_TEMPLATES: tuple[str, ...] = tuple(
    template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES
)
# The benchmark's own prompt, and the name alone, come up more often than any other template.
_COMMON_TEMPLATES = ("a photo of a {}.", "{}")
_DIGIT_NAMES = tuple(glyphs.character_name(digit) for digit in "0123456789")


@dataclass(frozen=True)
class Corpus:
    """All (character, font) pairs of pre-training."""

    masters: Tensor  # uint8 (P, M, M)
    character_of: NDArray[np.int64]  # (P,) index into names
    names: tuple[str, ...]
    lookalike: Tensor  # int64 (C,) characters with equal pictures share a number
    favoured: NDArray[np.int64]  # indices of pairs whose character lies in a benchmark block


def training_names() -> tuple[str, ...]:
    """Return the names of all characters that the pre-training fonts can draw, sorted."""
    chars = frozenset().union(*(glyphs.characters(font) for font in glyphs.PRETRAINING_FONTS))
    return tuple(sorted(glyphs.character_name(char) for char in chars))


def write_merges(path: Path) -> None:
    """Write the merges of CLIP's tokenizer that the corpus's words pass through.

    The file has the form that ``open_clip.SimpleTokenizer`` reads; its order is CLIP's own.
    """
    clip = open_clip.SimpleTokenizer()
    texts = [*training_names(), *_TEMPLATES, *_COMMON_TEMPLATES, *_DIGIT_NAMES, "x"]
    words = {word for text in texts for word in clip.pat.findall(text.lower())}
    needed: set[tuple[str, str]] = set()
    for word in words:
        pieces = clip.bpe("".join(clip.byte_encoder[b] for b in word.encode())).split(" ")
        for piece in pieces:
            needed |= _merges_of(piece, clip.bpe_ranks)
    lines = ["#version: 0.2"] + [" ".join(pair) for pair in clip.bpe_ranks if pair in needed]
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        file.write("\n".join(lines).encode())


def _merges_of(piece: str, ranks: dict[tuple[str, str], int]) -> set[tuple[str, str]]:
    """Return the merges that build one vocabulary entry out of single characters."""
    ending = "</w>" if piece.endswith("</w>") else ""
    word = list(piece.removesuffix("</w>"))
    if word:
        word[-1] += ending
    merges = set()
    while len(word) > 1:
        pairs = list(zip(word, word[1:], strict=False))
        best = min(pairs, key=lambda pair: ranks[pair] if pair in ranks else len(ranks))
        merges.add(best)
        at = pairs.index(best)
        word[at : at + 2] = ["".join(best)]
    return merges


def build_corpus() -> Corpus:
    """Draw every character in every pre-training font (about 38,000 masters, 90 MB)."""
    index: dict[str, int] = {}
    masters: list[NDArray[np.uint8]] = []
    character_of: list[int] = []
    favoured: list[int] = []
    blocks = [block for row in benchmark.DOMAINS.values() for block in row.blocks]
    blocks.append((ord("0"), ord("9")))
    for font in glyphs.PRETRAINING_FONTS:
        for char in sorted(glyphs.characters(font)):
            master = glyphs.render(char, font)
            if not glyphs.has_ink(master):
                continue
            if any(low <= ord(char) <= high for low, high in blocks):
                favoured.append(len(masters))
            character_of.append(index.setdefault(glyphs.character_name(char), len(index)))
            masters.append(master)
    stack = np.stack(masters)
    owners = np.array(character_of)
    return Corpus(
        torch.from_numpy(stack),
        owners,
        tuple(index),
        _lookalikes(stack, owners, len(index)),
        np.array(favoured),
    )


def _lookalikes(masters: NDArray[np.uint8], owners: NDArray[np.int64], count: int) -> Tensor:
    """Number the characters so that any two with an equal picture share a number."""
    group = list(range(count))

    def root(member: int) -> int:
        while group[member] != member:
            member = group[member]
        return member

    first: dict[bytes, int] = {}
    for master, owner in zip(masters, owners.tolist(), strict=True):
        other = first.setdefault(master.tobytes(), owner)
        group[root(owner)] = root(other)
    return torch.tensor([root(member) for member in range(count)])


def captions(names: Sequence[str], rng: random.Random) -> list[str]:
    """Put each name into a template: the common ones half of the time."""
    return [
        rng.choice(_COMMON_TEMPLATES if rng.random() < 0.5 else _TEMPLATES).format(name)
        for name in names
    ]


def sample_pairs(corpus: Corpus, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw a batch: half from the benchmark's blocks of characters, half from everywhere."""
    half = size // 2
    favoured = rng.choice(corpus.favoured, half, replace=False)
    everywhere = rng.integers(0, len(corpus.character_of), size - half)
    return np.concatenate([favoured, everywhere])
