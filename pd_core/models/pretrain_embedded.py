"""The recipe behind the embedded CLIPs' weights: contrastive pre-training on drawn characters.

``promptkd embedded pretrain NAME`` runs it. Both models get the same characters
(``pretraining_corpus.py``) in the same kind of pictures (``pretraining_pictures.py``).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from pd_core.artifacts import write_text, write_weights
from pd_core.errors import missing
from pd_core.models import embedded
from pd_core.models.pretraining_corpus import build_corpus, captions, sample_pairs
from pd_core.models.pretraining_pictures import Augmenter
from pd_core.models.prompts import encode_text
from pd_core.models.texts import cut_after_end


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, owner: Tensor, lookalike: Tensor, scale: Tensor
) -> Tensor:
    """Symmetric contrastive loss over a batch's distinct captions.

    Args:
        image_features: unit length (B, D).
        text_features: unit length (U, D), one a distinct caption.
        owner: caption of each image, (B,) in 0..U-1.
        lookalike: (U,) captions whose pictures look alike share a number; they are no negatives.
        scale: factor of the cosines, ().

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
    """Encode texts, cut after the longest one's end: (U, D), unit length."""
    tokens = cut_after_end(embedded.tokenizer()(list(texts)))
    return F.normalize(encode_text(model.text, tokens), dim=-1)


def rate(step: int, steps: int) -> float:
    """Return the learning rate's factor: warm up over 100 steps, then a half cosine to zero."""
    warm = min(1.0, (step + 1) / 100)
    return warm * 0.5 * (1 + float(np.cos(np.pi * step / steps)))


def pretrain(
    name: str,
    *,
    images: int,
    batch_size: int,
    lr: float,
    seed: int,
    threads: int,
    on_report: Callable[[dict[str, float], nn.Module], None],
    start: Path | None = None,
) -> open_clip.CustomTextCLIP:
    """Pre-train an embedded model.

    Without weights to start from, pictures grow harder over the first eighth of the steps: with
    full difficulty at once the loss stays at chance for hundreds of steps.

    Args:
        name: one of ``embedded.NAMES``.
        images: pictures to see in all.
        batch_size: pictures a step.
        lr: AdamW's peak learning rate.
        seed: decides weights, order and augmentation.
        threads: CPU threads; the last bits of the weights depend on it.
        on_report: takes {images, loss, accuracy} and the model every 100 steps; accuracy is that
            of naming a picture among the captions of its batch.
        start: weights to go on from; None for random ones.

    Returns:
        The trained model in eval mode.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = embedded.build(name).train()
    if start is not None:
        model.load_state_dict(load_file(start))
    corpus = build_corpus()
    augment = Augmenter(torch.Generator().manual_seed(seed))
    text_rng, pair_rng = random.Random(seed), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    steps = images // batch_size
    losses: list[float] = []
    hits: list[float] = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * rate(step, steps)
        pairs = sample_pairs(corpus, batch_size, pair_rng)
        distinct, owner = np.unique(corpus.character_of[pairs], return_inverse=True)
        texts = captions([corpus.names[index] for index in distinct], text_rng)
        owners = torch.from_numpy(owner)
        difficulty = 1.0 if start is not None else min(1.0, step * 8 / steps)
        pictures = augment(corpus.masters[pairs], difficulty=difficulty)
        image_features = F.normalize(model.visual(pictures), dim=-1)
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
    name: str,
    out: Path,
    *,
    images: int,
    seed: int,
    threads: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    start: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Pre-train an embedded model; write `<name>.safetensors` and `<name>.log.jsonl`.

    The weights so far are stored with every line of the log.

    Args:
        name: one of ``embedded.NAMES``.
        out: folder to write into.
        images: pictures to see in all.
        seed: decides everything random.
        threads: CPU threads; the last bits of the weights depend on it.
        batch_size: pictures a step.
        lr: AdamW's peak learning rate.
        start: weights to go on from, as an earlier call stored them; None for random ones.
        on_progress: called with pictures seen and pictures in all.

    Raises:
        UnknownName: there is no such embedded model.
        MissingFile: there are no weights to start from.
        PdError: the folder cannot be written.
    """
    if start is not None and not start.is_file():
        raise missing("weights to start from", start, "pre-train without them first")
    lines: list[str] = []

    def keep(report: dict[str, float], model: nn.Module) -> None:
        lines.append(json.dumps({key: round(value, 4) for key, value in report.items()}))
        write_text(out / f"{name}.log.jsonl", "\n".join(lines) + "\n")
        save_weights(model, out / f"{name}.safetensors")
        if on_progress is not None:
            on_progress(int(report["images"]), images)

    model = pretrain(
        name,
        images=images,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        threads=threads,
        on_report=keep,
        start=start,
    )
    save_weights(model, out / f"{name}.safetensors")


def save_weights(model: nn.Module, path: Path) -> None:
    """Store a model's tensors in half precision."""
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    write_weights(path, tensors)
