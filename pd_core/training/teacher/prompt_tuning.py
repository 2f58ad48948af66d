"""Tuning a teacher's prompts with few labels: PromptSRC, and the methods it is compared with.

Shapes: B images, C classes, L tokens, D the joint width. Of processes that train together each
sends its part of the images and of the classes through the towers; losses are those of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch.nn.functional as F
from torch import Tensor

from pd_core.core.errors import BadParams
from pd_core.core.options import OnNonFinite, Precision, TeacherMethod
from pd_core.models.class_vectors import template_features
from pd_core.models.clip import ClipTowers, imagenet_templates
from pd_core.models.precision import autocast
from pd_core.models.teacher import TEMPLATE, Teacher
from pd_core.models.text_batching import TextPlan
from pd_core.training.loop import losses
from pd_core.training.loop.checkpoints import Checkpoints, Metrics
from pd_core.training.loop.distributed import count, gathered, part
from pd_core.training.loop.fit import Batches, OnEpoch, OnLoss, OnProgress, fit
from pd_core.training.loop.schedule import gaussian_weights
from pd_core.training.loop.views import RecordedViews, Views

EPOCHS = 20  # PromptSRC, implementation details
TEMPLATES = 60  # the published code: the first 60 of OpenAI's 80


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
    accumulate: int
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
    text_memory_gb: float
    view_epochs: int | None
    max_grad_norm: float | None
    on_non_finite: OnNonFinite


def promptsrc_step(
    teacher: Teacher,
    images: Tensor,
    labels: Tensor,
    *,
    tokens: Tensor | TextPlan,
    frozen_text: Tensor,
    frozen_image: Tensor | None = None,
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
        tokens: (C, L) of the teacher's own texts, or a plan of them.
        frozen_text: (C, D) features of the frozen model, unit length.
        frozen_image: (B, D) the same of these views; computed here if not given.
        text_loss_weight: weight of the text term.
        image_loss_weight: weight of the image term.
        logits_loss_weight: weight of the divergence.
        precision: what the towers compute in; the loss is always fp32.

    Returns:
        The loss, and the features and logits that it is made of.
    """
    with autocast(images.device, precision):
        if frozen_image is None:
            frozen_image = teacher.frozen_image_features(images)  # (B, D)
        image = gathered(teacher.image_features(images))  # (B, D)
        text = gathered(teacher.text_features(tokens))  # (C, D)
    frozen_image = gathered(frozen_image)
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


def cross_entropy_step(
    teacher: Teacher,
    images: Tensor,
    labels: Tensor,
    *,
    tokens: Tensor | TextPlan,
    precision: Precision = Precision.FP32,
) -> tuple[Tensor, Tensor]:
    """Compute the loss of the methods without regularisation for one batch.

    Args:
        teacher: with its prompts.
        images: (B, 3, H, W), augmented views.
        labels: (B,) class numbers.
        tokens: (C, L) of the teacher's own texts, or a plan of them.
        precision: what the towers compute in; the loss is always fp32.

    Returns:
        The cross entropy, a scalar, and the logits (B, C).
    """
    with autocast(images.device, precision):
        image = gathered(teacher.image_features(images))  # (B, D)
        text = gathered(teacher.text_features(tokens))  # (C, D)
    logits = teacher.logit_scale * image @ text.T  # (B, C)
    return F.cross_entropy(logits, labels), logits


def tune_teacher(
    towers: ClipTowers,
    batches: Batches,
    labels: Tensor,
    names: Sequence[str],
    *,
    method: TeacherMethod = TeacherMethod.PROMPTSRC,
    text_depth: int = 9,
    text_length: int = 4,
    image_depth: int = 9,
    image_length: int = 4,
    template: str = TEMPLATE,
    templates: int = TEMPLATES,
    epochs: int = EPOCHS,
    accumulate: int = 1,
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
    text_memory_gb: float = 4.0,
    view_epochs: int | None = None,
    frozen_text: Tensor | None = None,
    frozen_images: RecordedViews | None = None,
    max_grad_norm: float | None = None,
    on_non_finite: OnNonFinite = OnNonFinite.FAIL,
    seed: int = 1,
    precision: Precision = Precision.FP32,
    checkpoints: Checkpoints | None = None,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
    on_loss: OnLoss | None = None,
) -> tuple[Teacher, list[Metrics]]:
    """Tune prompts with few labels.

    PromptSRC (arXiv 2307.06948) by default, with its published numbers. The
    other methods minimise the cross entropy alone and keep the last epoch:
    IVLP (PromptSRC, section 3.1), MaPLe (arXiv 2210.03117), CoOp (arXiv
    2109.01134).

    Args:
        towers: the frozen CLIP.
        batches: views of the few labelled images.
        labels: (N,) class number of each image, by its position in the list.
        names: C names of the classes that are taught, by label.
        method: which prompts there are and what regularises them.
        text_depth: layers of the text tower with prompts.
        text_length: prompts per layer of the text tower.
        image_depth: layers of the image tower with prompts.
        image_length: prompts per layer of the image tower.
        template: the text of a class, with `{}` for its name.
        templates: how many of OpenAI's templates the frozen text features average.
        epochs: number of epochs.
        accumulate: as in `fit`.
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
        text_memory_gb: GiB that the text tower may keep for its gradients, in each
            process; what takes more is computed twice. The gradients are exact in any case.
        view_epochs: after so many epochs their batches come again; None shows
            new views in every epoch, as published.
        frozen_text: (C, D), what `frozen_text_features` returns for these names;
            computed here if not given.
        frozen_images: what the frozen image tower gives for all views; computed
            in each step if not given.
        max_grad_norm: as in `fit`.
        on_non_finite: as in `fit`.
        seed: of the random prompts.
        precision: what the towers compute in.
        checkpoints: as in `fit`.
        on_epoch: as in `fit`; the scalars are "loss", "accuracy" (percent, on
            the training views) and, for PromptSRC, "cross_entropy", "text",
            "image" and "logits", which add up to the loss.
        on_progress: as in `fit`.
        on_loss: as in `fit`.

    Returns:
        The tuned teacher, in evaluation mode, and the metrics of each epoch.

    Raises:
        BadParams: a number is out of range.
        Diverged, Interrupted: as in `fit`.
    """
    teacher = Teacher.untrained(
        towers,
        method=method,
        text_depth=text_depth,
        text_length=text_length,
        image_depth=image_depth,
        image_length=image_length,
        template=template,
        seed=seed,
    )
    if count() > len(names):
        raise BadParams(
            f"{count()} processes for {len(names)} classes that are taught; set run.processes to at"
            f" most {len(names)}"
        )
    labels = labels.to(towers.device)
    tokens = teacher.text_plan(part(names), memory=int(text_memory_gb * 2**30))
    views = Views(batches, view_epochs)
    regularised = method is TeacherMethod.PROMPTSRC
    if regularised and frozen_text is None:
        frozen_text = frozen_text_features(towers, names, templates=templates)

    def look(indices: Tensor, images: Tensor) -> Tensor:
        if frozen_images is not None:
            return frozen_images.at(views.place[0], indices)
        with autocast(images.device, precision):
            return teacher.frozen_image_features(images)

    def step(indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        chosen = labels[gathered(indices)]
        if frozen_text is None:
            loss, logits = cross_entropy_step(
                teacher, images, chosen, tokens=tokens, precision=precision
            )
            return {"loss": loss, "accuracy": _accuracy(logits, chosen)}
        result = promptsrc_step(
            teacher,
            images,
            chosen,
            tokens=tokens,
            frozen_text=frozen_text,
            frozen_image=views.answer(lambda: look(indices, images)),
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
            "accuracy": _accuracy(result.logits, chosen),
        }

    gpa = gaussian_weights(epochs, mean=gpa_mean, deviation=gpa_std) if regularised else None
    history = fit(
        teacher,
        step,
        views,
        epochs=epochs,
        accumulate=accumulate,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        warmup_lr=warmup_lr,
        max_grad_norm=max_grad_norm,
        on_non_finite=on_non_finite,
        averaging=gpa,
        device=towers.device,
        precision=precision,
        checkpoints=checkpoints,
        on_epoch=on_epoch,
        on_progress=on_progress,
        on_loss=on_loss,
    )
    return teacher.folded(), history


def frozen_text_features(
    towers: ClipTowers, names: Sequence[str], *, templates: int = TEMPLATES
) -> Tensor:
    """Compute what PromptSRC's text term pulls towards: (C, D), unit length.

    Args:
        towers: the frozen CLIP.
        names: C names of the classes.
        templates: how many of OpenAI's templates are averaged.
    """
    means = template_features(Teacher(towers), names, imagenet_templates(templates))
    return F.normalize(means, dim=-1)


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return 100 * (logits.argmax(dim=1) == labels).float().mean()
