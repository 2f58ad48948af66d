"""Stage `teacher`: tune prompts of a large CLIP with few labels (PromptSRC).

Shapes: B images, C classes, L tokens, D the joint width.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from pd_core import losses
from pd_core.artifacts import write_folder, write_json
from pd_core.class_vectors import template_features
from pd_core.data.images import ImageBatches, ImageStore, train_transform
from pd_core.data.prepared import Prepared, read_prepared
from pd_core.fit import (
    Batches,
    Metrics,
    OnEpoch,
    OnProgress,
    fit,
    gaussian_weights,
)
from pd_core.models.clip import ClipTowers, imagenet_templates, load_clip
from pd_core.models.compute import Precision, autocast, set_threads
from pd_core.models.teacher import TEMPLATE, Teacher, TeacherMethod

FILE = "teacher.safetensors"


@dataclass(frozen=True)
class PromptSRCStep:
    """What one step of PromptSRC computes.

    Attributes:
        loss: the weighted terms; `loss.total` is minimised.
        logits: (B, C) of the prompted model.
        zero_shot_logits: (B, C) of the frozen model on the same views.
        text_features: (C, D) prompted, unit length.
        image_features: (B, D) prompted, unit length.
        frozen_image_features: (B, D), unit length.
    """

    loss: losses.PromptSRCLoss
    logits: Tensor
    zero_shot_logits: Tensor
    text_features: Tensor
    image_features: Tensor
    frozen_image_features: Tensor


class TuneOptions(TypedDict, total=False):
    """The numbers that `tune_teacher` takes, with its defaults for those left out."""

    text_depth: int
    text_length: int
    image_depth: int
    image_length: int
    template: str
    templates: int
    epochs: int
    lr: float
    momentum: float
    weight_decay: float
    warmup_epochs: int
    warmup_lr: float
    text_loss_weight: float
    image_loss_weight: float
    logits_loss_weight: float
    gpa_mean: float
    gpa_std: float


def promptsrc_step(
    teacher: Teacher,
    images: Tensor,
    labels: Tensor,
    *,
    tokens: Tensor,
    frozen_text: Tensor,
    text_loss_weight: float = 25.0,
    image_loss_weight: float = 10.0,
    logits_loss_weight: float = 1.0,
    precision: Precision = Precision.FP32,
) -> PromptSRCStep:
    """Compute PromptSRC's loss for one batch.

    Args:
        teacher: with prompts in both towers.
        images: (B, 3, H, W), augmented views.
        labels: (B,) class numbers.
        tokens: (C, L) of the teacher's own texts.
        frozen_text: (C, D) features of the frozen model, unit length.
        text_loss_weight: weight of the text term.
        image_loss_weight: weight of the image term.
        logits_loss_weight: weight of the divergence.
        precision: what the towers compute in; the loss is always fp32.

    Returns:
        The loss, and the features and logits that it is made of.
    """
    with autocast(images.device, precision):
        frozen_image = teacher.frozen_image_features(images)  # (B, D)
        image = teacher.image_features(images)  # (B, D)
        text = teacher.text_features(tokens)  # (C, D)
    logits = teacher.logit_scale * image @ text.T  # (B, C)
    zero_shot_logits = teacher.logit_scale * frozen_image @ frozen_text.T  # (B, C)
    loss = losses.promptsrc(
        logits,
        labels,
        zero_shot_logits=zero_shot_logits,
        text=text,
        frozen_text=frozen_text,
        image=image,
        frozen_image=frozen_image,
        text_weight=text_loss_weight,
        image_weight=image_loss_weight,
        logits_weight=logits_loss_weight,
    )
    return PromptSRCStep(loss, logits, zero_shot_logits, text, image, frozen_image)


def tune_teacher(
    towers: ClipTowers,
    batches: Batches,
    labels: Tensor,
    names: Sequence[str],
    *,
    text_depth: int = 9,
    text_length: int = 4,
    image_depth: int = 9,
    image_length: int = 4,
    template: str = TEMPLATE,
    templates: int = 60,
    epochs: int = 20,
    lr: float = 0.0025,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup_epochs: int = 1,
    warmup_lr: float = 1e-5,
    text_loss_weight: float = 25.0,
    image_loss_weight: float = 10.0,
    logits_loss_weight: float = 1.0,
    gpa_mean: float = 15.0,
    gpa_std: float = 1.0,
    seed: int = 1,
    precision: Precision = Precision.FP32,
    checkpoint: Path | None = None,
    run_key: str = "",
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Teacher, list[Metrics]]:
    """Tune prompts in both towers with few labels (PromptSRC, arXiv 2307.06948).

    The defaults are the published ones.

    Args:
        towers: the frozen CLIP.
        batches: views of the few labelled images.
        labels: (N,) class number of each image, by its position in the list.
        names: C names of the classes that are taught, by label.
        text_depth: layers of the text tower with prompts.
        text_length: prompts per layer of the text tower.
        image_depth: layers of the image tower with prompts.
        image_length: prompts per layer of the image tower.
        template: the text of a class, with `{}` for its name.
        templates: how many of OpenAI's templates the frozen text features average.
        epochs: number of epochs.
        lr: peak learning rate.
        momentum: of SGD.
        weight_decay: of SGD.
        warmup_epochs: epochs at `warmup_lr`.
        warmup_lr: learning rate of those.
        text_loss_weight: weight of the text term.
        image_loss_weight: weight of the image term.
        logits_loss_weight: weight of the divergence.
        gpa_mean: epoch that counts most in the final average.
        gpa_std: how fast the others count less, in epochs.
        seed: of the random prompts.
        precision: what the towers compute in.
        checkpoint: as in `fit`.
        run_key: as in `fit`.
        on_epoch: as in `fit`; the scalars are "loss", "cross_entropy", "text",
            "image", "logits" (they add up to the loss) and "accuracy" (percent,
            on the training views).
        on_progress: as in `fit`.

    Returns:
        The tuned teacher, in evaluation mode, and the metrics of each epoch.

    Raises:
        BadParams: a number is out of range, or training diverged.
    """
    teacher = Teacher.untrained(
        towers,
        text_depth=text_depth,
        text_length=text_length,
        image_depth=image_depth,
        image_length=image_length,
        template=template,
        seed=seed,
    )
    labels = labels.to(towers.device)
    tokens = teacher.tokens(names)
    frozen_text = F.normalize(
        template_features(teacher, names, imagenet_templates(templates)), dim=-1
    )

    def step(indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        chosen = labels[indices]
        result = promptsrc_step(
            teacher,
            images,
            chosen,
            tokens=tokens,
            frozen_text=frozen_text,
            text_loss_weight=text_loss_weight,
            image_loss_weight=image_loss_weight,
            logits_loss_weight=logits_loss_weight,
            precision=precision,
        )
        return {
            "loss": result.loss.total,
            "cross_entropy": result.loss.cross_entropy,
            "text": result.loss.text,
            "image": result.loss.image,
            "logits": result.loss.logits,
            "accuracy": 100 * (result.logits.argmax(dim=1) == chosen).float().mean(),
        }

    history = fit(
        teacher,
        step,
        batches,
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        warmup_lr=warmup_lr,
        averaging=gaussian_weights(epochs, mean=gpa_mean, deviation=gpa_std),
        device=towers.device,
        precision=precision,
        checkpoint=checkpoint,
        run_key=run_key,
        on_epoch=on_epoch,
        on_progress=on_progress,
    )
    return teacher, history


def run(
    prepared: Path,
    out: Path,
    *,
    model: str,
    weights: Path | str | None = None,
    data_root: Path = Path(),
    method: TeacherMethod = TeacherMethod.PROMPTSRC,
    batch_size: int = 4,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    flip: bool = True,
    seed: int = 1,
    threads: int = 1,
    workers: int = 0,
    device: torch.device | str = "cpu",
    precision: Precision = Precision.FP32,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
    **options: Unpack[TuneOptions],
) -> Teacher:
    """Stage `teacher`: read a prepared data set, make its teacher, store it.

    Of the pictures only the few-shot ones are read; in the protocol
    base-to-novel they are all of base classes.

    Args:
        prepared: folder written by the stage `prepare`.
        out: folder to write `teacher.safetensors` and `history.json` into.
        model: name of the teacher's CLIP.
        weights: of that CLIP.
        data_root: folder that holds the photo data sets.
        method: how the teacher comes about.
        batch_size: images per step.
        crop_scale: least and largest part of a picture that a view shows.
        flip: whether half of the views are mirrored.
        seed: of prompts, order and views.
        threads: CPU threads; they decide the last bits.
        workers: processes that decode pictures; they change nothing.
        device: where to compute.
        precision: what the towers compute in.
        checkpoint: file outside `out` that makes an interrupted run resumable.
        on_epoch: called after each epoch with its metrics.
        on_progress: called after each step with steps done and steps in all.
        **options: further numbers of `tune_teacher`.

    Returns:
        The teacher that was stored.

    Raises:
        MissingFile: pictures, weights or an earlier stage are missing.
        BadParams: a number is out of range, or training diverged.
    """
    set_threads(threads)
    split = read_prepared(prepared, data_root=data_root)
    towers = load_clip(model, weights, device=device)
    match method:
        case TeacherMethod.CLIP:
            template = options.get("template", TEMPLATE)
            teacher = Teacher(towers, template=template).eval()
            history: list[Metrics] = []
        case TeacherMethod.PROMPTSRC:
            batches = ImageBatches(
                ImageStore(split.images),
                [path for path, _ in split.few_shot],
                train_transform(towers.image_size, scale=crop_scale, flip=flip),
                batch_size=batch_size,
                seed=seed,
                workers=workers,
            )
            setting = [model, str(weights), batch_size, crop_scale, flip, seed, threads, precision]
            teacher, history = tune_teacher(
                towers,
                batches,
                torch.tensor([label for _, label in split.few_shot]),
                split.taught,
                seed=seed,
                precision=precision,
                checkpoint=checkpoint,
                run_key=_run_key(split, setting, options),
                on_epoch=on_epoch,
                on_progress=on_progress,
                **options,
            )
    with write_folder(out) as folder:
        teacher.save(folder / FILE)
        write_json(folder / "history.json", history)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return teacher


def _run_key(split: Prepared, setting: list[object], options: TuneOptions) -> str:
    """Hash what decides the weights, so that no checkpoint of another run is taken up."""
    content = [split.dataset, split.taught, split.few_shot, setting, options]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
