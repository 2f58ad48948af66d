"""Contrastive pre-training of the embedded CLIPs, and their zero-shot accuracy."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from pd_core.core.artifacts import write_json, write_text, write_weights
from pd_core.core.errors import missing
from pd_core.core.hooks import OnProgress
from pd_core.core.options import Precision
from pd_core.data.catalog import embedded, glyphs
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, eval_transform
from pd_core.data.loading.prepared import read_prepared
from pd_core.models.class_vectors import best_class, reduced_logits, zero_shot
from pd_core.models.clip import load_clip
from pd_core.models.embedded import build_embedded, embedded_tokenizer
from pd_core.models.precision import set_threads
from pd_core.models.prompts import encode_text
from pd_core.models.text_batching import cut_after_end

_TEMPLATES: tuple[str, ...] = tuple(
    template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES
)
# The benchmark's own prompt, and the name alone, come up more often than any other template.
_COMMON_TEMPLATES = ("a photo of a {}.", "{}")
_DIGIT_NAMES = tuple(glyphs.character_name(digit) for digit in "0123456789")


@dataclass(frozen=True)
class Corpus:
    """All (character, font) pairs of the pre-training.

    Attributes:
        masters: rendered characters, uint8 (P, M, M).
        character_of: index into `names`, (P,).
        names: of the C characters.
        lookalike: group of each character, int64 (C,); characters with equal images share one.
        favoured: indices of the pairs whose character lies in a block of the benchmark.
    """

    masters: Tensor
    character_of: NDArray[np.int64]
    names: tuple[str, ...]
    lookalike: Tensor
    favoured: NDArray[np.int64]


def training_names() -> tuple[str, ...]:
    """Return the names of all characters in the pre-training fonts, sorted."""
    chars = frozenset().union(*(glyphs.characters(font) for font in glyphs.PRETRAINING_FONTS))
    return tuple(sorted(glyphs.character_name(char) for char in chars))


def write_merges(path: Path) -> None:
    """Write the merges of CLIP's tokenizer that the corpus needs, in CLIP's order.

    The file has the format that ``open_clip.SimpleTokenizer`` reads.
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
    """Return the merges that build a vocabulary entry from single characters."""
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
    """Render every character in every pre-training font (about 38,000 masters, 90 MB)."""
    index: dict[str, int] = {}
    masters: list[NDArray[np.uint8]] = []
    character_of: list[int] = []
    favoured: list[int] = []
    blocks = [block for row in embedded.DOMAINS.values() for block in row.blocks]
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
    """Return a group number for each character; two with an equal image share a group."""
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
    """Put each name into a random template, half of the time a common one."""
    return [
        rng.choice(_COMMON_TEMPLATES if rng.random() < 0.5 else _TEMPLATES).format(name)
        for name in names
    ]


def sample_pairs(corpus: Corpus, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw a batch of pairs: half from the benchmark's blocks of characters, half from all."""
    half = size // 2
    favoured = rng.choice(corpus.favoured, half, replace=False)
    everywhere = rng.integers(0, len(corpus.character_of), size - half)
    return np.concatenate([favoured, everywhere])


IMAGE_SIZE = 32
_MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
_STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)


class Augmenter:
    """Random augmentation of masters into training images, from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        """Use `generator` for all random draws."""
        self._generator = generator

    def _uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self._generator)

    def _chance(self, n: int, probability: float) -> Tensor:
        """Draw 0 or 1 for each image: (N, 1, 1, 1)."""
        return (self._uniform(n, 1, 1, 1) < probability).float()

    def __call__(self, masters: Tensor, *, difficulty: float) -> Tensor:
        """Augment a batch.

        Args:
            masters: ink, uint8 (B, M, M).
            difficulty: from 0 (black on white, upright) to 1; each image draws its own below it.

        Returns:
            Normalised images, float32 (B, 3, ``IMAGE_SIZE``, ``IMAGE_SIZE``).
        """
        strength = difficulty * self._uniform(len(masters), 1, 1, 1).sqrt()
        ink = self._pose(masters[:, None].float() / 255, strength.flatten())
        ink = ink + strength * (self._strokes(ink) - ink)
        painted = self._dirt(self._paint(ink))
        image = (1 - ink) + strength * (painted - (1 - ink))
        return (image.clamp(0, 1) - _MEAN) / _STD

    def _pose(self, ink: Tensor, strength: Tensor) -> Tensor:
        n = len(ink)
        angle = strength * self._uniform(n, low=-0.3, high=0.3)
        zoom = 1 / (1 + strength * self._uniform(n, low=-0.25, high=0.4))
        aspect = 1 + strength * self._uniform(n, low=-0.2, high=0.25)
        shear = strength * self._uniform(n, low=-0.2, high=0.2)
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        shift = strength[:, None] * self._uniform(n, 2, low=-0.15, high=0.15)
        top = torch.stack([cos * aspect, cos * shear - sin, shift[:, 0]], dim=1)
        bottom = torch.stack([sin * aspect, sin * shear + cos, shift[:, 1]], dim=1)
        size = [n, 1, IMAGE_SIZE, IMAGE_SIZE]
        grid = F.affine_grid(torch.stack([top, bottom], dim=1), size, align_corners=False)
        return F.grid_sample(ink, grid, mode="bilinear", align_corners=False)

    def _strokes(self, ink: Tensor) -> Tensor:
        """Vary the strokes: thicker, thinner, softer, broken up."""
        n = len(ink)
        thick = F.max_pool2d(ink, 3, 1, 1)
        thin = -F.max_pool2d(-ink, 3, 1, 1)
        amount = self._uniform(n, 1, 1, 1)
        ink = ink + self._chance(n, 0.2) * amount * (thick - ink)
        ink = ink + self._chance(n, 0.15) * 0.6 * amount * (thin - ink)
        soft = F.avg_pool2d(F.avg_pool2d(ink, 3, 1, 1), 3, 1, 1)
        ink = ink + self._chance(n, 0.4) * self._uniform(n, 1, 1, 1) * (soft - ink)
        crumbs = (self._uniform(*ink.shape) < self._uniform(n, 1, 1, 1, low=0.4)).float()
        return ink * (1 - self._chance(n, 0.25) * (1 - crumbs))

    def _paint(self, ink: Tensor) -> Tensor:
        """Give ink and paper colours that differ in lightness, and uneven light."""
        n = len(ink)
        paper = self._uniform(n, 3, 1, 1)
        lightness = paper.mean(dim=1, keepdim=True)
        contrast = self._uniform(n, 1, 1, 1, low=0.2, high=0.9)
        darker = (self._uniform(n, 1, 1, 1) < lightness).float() * 2 - 1
        target = (lightness - darker * contrast).clamp(0, 1)
        tint = self._uniform(n, 3, 1, 1, low=-0.2, high=0.2)
        paint = (target + tint).clamp(0, 1)
        image = paper * (1 - ink) + paint * ink
        coarse = self._uniform(n, 3, 4, 4, low=-1, high=1)
        light = F.interpolate(coarse, IMAGE_SIZE, mode="bilinear", align_corners=False)
        return image + self._chance(n, 0.6) * self._uniform(n, 1, 1, 1, high=0.25) * light

    def _dirt(self, image: Tensor) -> Tensor:
        """Add ruled lines, specks and noise."""
        n = len(image)
        position = torch.arange(IMAGE_SIZE)
        for shape in ((n, 1, IMAGE_SIZE, 1), (n, 1, 1, IMAGE_SIZE)):
            pitch = torch.randint(5, 33, (n, 1, 1, 1), generator=self._generator)
            start = torch.randint(0, 32, (n, 1, 1, 1), generator=self._generator)
            line = ((position.view(1, *shape[1:]) + start) % pitch == 0).float()
            strength = self._chance(n, 0.25) * self._uniform(n, 1, 1, 1, high=0.7)
            image = image + strength * line * (self._uniform(n, 3, 1, 1) - image)
        specks = (self._uniform(n, 1, IMAGE_SIZE, IMAGE_SIZE) < 0.04).float()
        speck = self._chance(n, 0.2) * specks
        image = image + speck * (self._uniform(n, 3, 1, 1) - image)
        noise = torch.randn(image.shape, generator=self._generator)
        return image + self._uniform(n, 1, 1, 1, high=0.12) * noise


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, owner: Tensor, lookalike: Tensor, scale: Tensor
) -> Tensor:
    """Compute the symmetric contrastive loss over a batch's distinct captions.

    Args:
        image_features: unit length (B, D).
        text_features: unit length (U, D), one for each distinct caption.
        owner: index of each image's caption, (B,) in 0..U-1.
        lookalike: group of each caption, (U,); captions of one group are no negatives.
        scale: factor of the cosine similarities, ().

    Returns:
        The mean of both directions, ().
    """
    logits = scale * image_features @ text_features.T
    positive = F.one_hot(owner, len(text_features)).bool()
    contradictory = (lookalike[owner][:, None] == lookalike[None, :]) & ~positive
    logits = logits.masked_fill(contradictory, -torch.inf)
    to_text = F.cross_entropy(logits, owner)
    log_share = logits.T.log_softmax(dim=1).masked_fill(~positive.T, 0)
    to_image = -(log_share.sum(dim=1) / positive.sum(dim=0)).mean()
    return (to_text + to_image) / 2


def encode_texts(model: open_clip.CustomTextCLIP, texts: Sequence[str]) -> Tensor:
    """Encode texts, truncated after the longest one's end: (U, D), unit length."""
    tokens = cut_after_end(embedded_tokenizer()(list(texts)))
    return F.normalize(encode_text(model.text, tokens), dim=-1)


def rate(step: int, steps: int) -> float:
    """Return the learning rate's factor: warm-up over 100 steps, then a half cosine to zero."""
    warm = min(1.0, (step + 1) / 100)
    return warm * 0.5 * (1 + float(np.cos(np.pi * step / steps)))


@dataclass(frozen=True)
class Recipe:
    """Settings of a pre-training.

    Attributes:
        name: of the model, one of ``models.embedded.EMBEDDED``.
        images: number of training images in all.
        seed: of the weights, the order and the augmentation.
        threads: of the CPU; the last bits of the weights depend on it.
        batch_size: images a step.
        lr: peak learning rate of AdamW.
        start: weights to start from; None for random ones.
    """

    name: str
    images: int
    seed: int
    threads: int
    batch_size: int = 128
    lr: float = 1e-3
    start: Path | None = None


def pretrain(
    recipe: Recipe, on_report: Callable[[dict[str, float], nn.Module], None]
) -> open_clip.CustomTextCLIP:
    """Pre-train an embedded model.

    Without weights to start from, the difficulty of the images grows over the first eighth of the
    steps: at full difficulty the loss stays at chance for hundreds of steps.

    Args:
        recipe: settings.
        on_report: called every 100 steps with {images, loss, accuracy} and the model; accuracy is
            that of choosing an image's caption within its batch.

    Returns:
        The trained model in eval mode.
    """
    torch.set_num_threads(recipe.threads)
    seed, start, batch_size = recipe.seed, recipe.start, recipe.batch_size
    torch.manual_seed(seed)
    model = build_embedded(recipe.name).train()
    if start is not None:
        model.load_state_dict(load_file(start))
    corpus = build_corpus()
    augment = Augmenter(torch.Generator().manual_seed(seed))
    text_rng, pair_rng = random.Random(seed), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, weight_decay=0.05, betas=(0.9, 0.98)
    )
    steps = recipe.images // batch_size
    losses: list[float] = []
    hits: list[float] = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = recipe.lr * rate(step, steps)
        pairs = sample_pairs(corpus, batch_size, pair_rng)
        distinct, owner = np.unique(corpus.character_of[pairs], return_inverse=True)
        texts = captions([corpus.names[index] for index in distinct], text_rng)
        owners = torch.from_numpy(owner)
        difficulty = 1.0 if start is not None else min(1.0, step * 8 / steps)
        images = augment(corpus.masters[pairs], difficulty=difficulty)
        image_features = F.normalize(model.visual(images), dim=-1)
        text_features = encode_texts(model, texts)
        scale = model.logit_scale.clamp(max=np.log(100)).exp()
        loss = contrastive_loss(
            image_features, text_features, owners, corpus.lookalike[distinct], scale
        )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        hits.append(float(((image_features @ text_features.T).argmax(1) == owners).float().mean()))
        if (step + 1) % 100 == 0 or step + 1 == steps:
            report = {"loss": float(np.mean(losses)), "accuracy": float(np.mean(hits))}
            on_report({"images": (step + 1) * batch_size, **report}, model)
            losses.clear()
            hits.clear()
    return model.eval()


def run(
    recipe: Recipe, out: Path, *, on_progress: Callable[[int, int], None] | None = None
) -> None:
    """Pre-train an embedded model; write `<name>.safetensors` and `<name>.log.jsonl`.

    The current weights are stored with every line of the log.

    Args:
        recipe: settings.
        out: output folder.
        on_progress: called with the number of images seen and of images in all.

    Raises:
        UnknownName: there is no such embedded model.
        MissingFile: the weights to start from do not exist.
        PdError: the folder cannot be written.
    """
    if recipe.start is not None and not recipe.start.is_file():
        raise missing("weights to start from", recipe.start, "pre-train without them first")
    weights = out / f"{recipe.name}.safetensors"
    lines: list[str] = []

    def store(report: dict[str, float], model: nn.Module) -> None:
        lines.append(json.dumps({key: round(value, 4) for key, value in report.items()}))
        write_text(out / f"{recipe.name}.log.jsonl", "\n".join(lines) + "\n")
        save_weights(model, weights)
        if on_progress is not None:
            on_progress(int(report["images"]), recipe.images)

    save_weights(pretrain(recipe, store), weights)


def save_weights(model: nn.Module, path: Path) -> None:
    """Store a model's tensors in half precision."""
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    write_weights(path, tensors)


Table = dict[str, dict[str, float]]  # data set -> model -> accuracy in percent


def zero_shot_table(
    prepared: Path,
    out: Path,
    *,
    datasets: Sequence[str],
    models: Mapping[str, Path | str | None],
    threads: int,
    batch_size: int = 256,
    on_progress: OnProgress | None = None,
) -> Table:
    """Evaluate CLIPs zero-shot on all classes at once; write `zero_shot.json` and `zero_shot.md`.

    Args:
        prepared: folder of the `prepare` stage's outputs.
        out: output folder.
        datasets: names of the data sets, all prepared.
        models: weights by the CLIP's name.
        threads: CPU threads.
        batch_size: images per step.
        on_progress: called with the number of data sets done and of data sets in all.

    Returns:
        Top-1 accuracy in percent by data set and model, and a row `average`.

    Raises:
        MissingFile: a data set is not prepared, or weights are missing.
    """
    set_threads(threads)
    towers = {name: load_clip(name, weights) for name, weights in models.items()}
    table: Table = {}
    for done, dataset in enumerate(datasets, start=1):
        content = read_prepared(prepared / dataset)
        batches = ImageBatches(
            ImageStore(content.images),
            [path for path, _ in content.test],
            eval_transform(*(tower.preprocess for tower in towers.values())),
            batch_size=batch_size,
        )
        classifiers = {name: zero_shot(tower, content.classes) for name, tower in towers.items()}
        device = next(iter(towers.values())).device
        best = reduced_logits(classifiers, batches, device, Precision.FP32, best_class)
        labels = np.array([label for _, label in content.test])
        table[dataset] = {
            name: round(100 * float((predicted == labels).mean()), 2)
            for name, predicted in best.items()
        }
        if on_progress is not None:
            on_progress(done, len(datasets))
    table["average"] = {
        name: round(fmean(row[name] for row in table.values()), 2) for name in towers
    }
    write_json(out / "zero_shot.json", table)
    write_text(out / "zero_shot.md", _markdown(table, list(towers)))
    return table


def _markdown(table: Table, models: list[str]) -> str:
    lines = [
        "Zero-shot accuracy on the test images, all classes at once, percent.",
        "",
        "| data set | " + " | ".join(models) + " |",
        "|---|" + "---:|" * len(models),
    ]
    for dataset, row in table.items():
        lines.append(f"| {dataset} | " + " | ".join(f"{row[name]:.1f}" for name in models) + " |")
    return "\n".join(lines) + "\n"
