"""Prompt tuning of a teacher with few labels: PromptSRC, and the methods it is compared with.

Shapes: B images, C classes, L tokens, D the joint width. Of several processes each encodes its
part of the images and of the classes; losses are those of the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pd_core.core.errors import BadParams
from pd_core.core.options import Computed, Precision, TeacherMethod
from pd_core.data.loading.images import Batch
from pd_core.models.class_vectors import template_features
from pd_core.models.clip import ClipTowers, imagenet_templates
from pd_core.models.precision import autocast
from pd_core.models.teacher import Teacher
from pd_core.models.text_batching import TextPlan
from pd_core.training.loop import losses
from pd_core.training.loop.checkpoints import History
from pd_core.training.loop.distributed import count, from_first, gathered, part
from pd_core.training.loop.feature_cache import FeatureCache, identity
from pd_core.training.loop.fit import Batches, Run, fit
from pd_core.training.loop.repeated import RepeatedBatches
from pd_core.training.loop.schedule import gaussian_weights
from pd_core.training.loop.views import Source, TrainingViews, cached_views, remembered
from pd_core.training.teacher.config import TeacherConfig


@dataclass(frozen=True)
class PromptSRCStep:
    """Result of one step of PromptSRC; features have unit length."""

    loss: losses.PromptSRCLoss  # `loss.total` is minimised
    logits: Tensor  # (B, C) of the prompted model
    zero_shot_logits: Tensor  # (B, C) of the frozen model on the same views
    text_features: Tensor  # (C, D) prompted
    image_features: Tensor  # (B, D) prompted
    frozen_image_features: Tensor  # (B, D)


def promptsrc_step(
    teacher: Teacher,
    images: Tensor,
    labels: Tensor,
    *,
    tokens: Tensor | TextPlan,
    frozen_text: Tensor,
    frozen_image: Tensor,
    config: TeacherConfig,
    precision: Precision,
) -> PromptSRCStep:
    """Compute PromptSRC's loss for one batch.

    Args:
        teacher: with prompts in both towers.
        images: (B, 3, H, W), augmented views; this process's part of them.
        labels: (B,) class numbers, of the whole batch.
        tokens: (C, L) of the teacher's own texts, or a plan of them.
        frozen_text: (C, D) features of the frozen model, unit length.
        frozen_image: (B, D) the same of these images.
        config: weights of the terms.
        precision: of the towers; the loss is always fp32.

    Returns:
        The loss, and the features and logits behind it.
    """
    image, text = _prompted_features(teacher, images, tokens, precision)
    frozen_image = gathered(frozen_image)
    logits = teacher.logit_scale * image @ text.T  # (B, C)
    zero_shot_logits = teacher.logit_scale * frozen_image @ frozen_text.T  # (B, C)
    loss = losses.promptsrc(
        logits, labels, zero_shot_logits=zero_shot_logits,
        text=text, frozen_text=frozen_text, image=image, frozen_image=frozen_image,
        text_weight=config.text_loss_weight, image_weight=config.image_loss_weight,
        logits_weight=config.logits_loss_weight,
    )  # fmt: skip
    return PromptSRCStep(loss, logits, zero_shot_logits, text, image, frozen_image)


def cross_entropy_step(
    teacher: Teacher,
    images: Tensor,
    labels: Tensor,
    *,
    tokens: Tensor | TextPlan,
    precision: Precision,
) -> tuple[Tensor, Tensor]:
    """Compute the loss of the methods without regularisation, a scalar, and the logits (B, C).

    Args as in `promptsrc_step`.
    """
    image, text = _prompted_features(teacher, images, tokens, precision)
    logits = teacher.logit_scale * image @ text.T  # (B, C)
    return F.cross_entropy(logits, labels), logits


def _prompted_features(
    teacher: Teacher, images: Tensor, tokens: Tensor | TextPlan, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Return the features of all images (B, D) and classes (C, D) of the batch, unit length."""
    with autocast(images.device, precision):
        image = gathered(teacher.image_features(images))
        text = gathered(teacher.text_features(tokens))
    return image, text


@dataclass(frozen=True)
class Frozen:
    """The frozen CLIP's features, which regularise PromptSRC.

    Attributes:
        text: (C, D), unit length, on the towers' device.
        image: from a batch on the device to (B, D), unit length.
    """

    text: Tensor
    image: Source


def frozen_features(
    towers: ClipTowers,
    views: TrainingViews,
    names: Sequence[str],
    config: TeacherConfig,
    run: Run,
) -> Frozen:
    """Return the frozen CLIP's features of all classes and views.

    Those of the texts are cached if the run has a feature cache, those of the images if the
    configuration says so.

    Raises:
        BadParams: they exceed the cache's limit, or there is no cache.
        NoSpace: the disk has no room for them.
        Interrupted: the training was stopped.
    """
    text = (
        frozen_text_features(towers, names, config.templates)
        if run.features is None
        else _cached_text(run.features, towers, names, config)
    )
    live = image = live_frozen_images(towers, run.compute.precision)
    if config.frozen_features is Computed.CACHED:
        clip = identity(config.model, config.weights)
        image = cached_views(
            views, "frozen-images", {"clip": clip, "precision": run.compute.precision},
            lambda: (views.batches, live), run,
            epochs=config.distinct_epochs, width=towers.joint_width,
            what="the frozen image features",
        ).at  # fmt: skip
    return Frozen(text, image)


def live_frozen_images(towers: ClipTowers, precision: Precision) -> Source:
    """Return the function from a batch to features of the frozen image tower, unit length."""
    zero_shot = Teacher(towers).eval()

    def encode(batch: Batch) -> Tensor:
        with autocast(batch.images.device, precision):
            return zero_shot.frozen_image_features(batch.images)

    return encode


def frozen_text_features(towers: ClipTowers, names: Sequence[str], templates: int) -> Tensor:
    """Compute the frozen text features of PromptSRC's text term: (C, D), unit length.

    Args:
        towers: the frozen CLIP.
        names: C names of the classes.
        templates: number of OpenAI's templates that are averaged.
    """
    means = template_features(Teacher(towers), names, imagenet_templates(templates))
    return F.normalize(means, dim=-1)


def _cached_text(
    store: FeatureCache, towers: ClipTowers, names: Sequence[str], config: TeacherConfig
) -> Tensor:
    clip, templates = identity(config.model, config.weights), config.templates
    key = {"clip": clip, "names": list(names), "templates": templates}
    place = store.place("frozen-text", key)

    def read_or_compute() -> Tensor:
        features = store.read(place, "all")
        if features is None:
            features = frozen_text_features(towers, names, templates).cpu()
            what = "the frozen text features"
            store.make_room(place, features.nbytes, what=what, remedy="free some")
            store.write(place, "all", features)
        return features

    return from_first(read_or_compute).to(towers.device)


def tune(
    towers: ClipTowers,
    batches: Batches,
    labels: Tensor,
    names: Sequence[str],
    config: TeacherConfig,
    run: Run,
    *,
    frozen: Frozen | None = None,
) -> tuple[Teacher, History]:
    """Tune prompts with few labels.

    PromptSRC (arXiv 2307.06948), or a method that minimises the cross entropy alone and keeps the
    last epoch: IVLP (PromptSRC, section 3.1), MaPLe (arXiv 2210.03117), CoOp (arXiv 2109.01134).

    Args:
        towers: the frozen CLIP.
        batches: views of the few labelled images.
        labels: (N,) class number of each image, by its position in the list.
        names: C names of the classes that are taught, by label.
        config: of the teacher.
        run: the surroundings.
        frozen: the frozen CLIP's features, for PromptSRC alone.

    Returns:
        The tuned teacher, in evaluation mode, and the metrics of each epoch: "loss", "accuracy"
        (percent, on the training views) and, for PromptSRC, "cross_entropy", "text", "image" and
        "logits", which add up to the loss.

    Raises:
        BadParams: a number is out of range.
        Diverged, Interrupted: as in `fit`.
    """
    teacher = Teacher.untrained(
        towers, method=config.method, template=config.template, seed=run.compute.seed,
        text_depth=config.text_depth, text_length=config.text_length,
        image_depth=config.image_depth, image_length=config.image_length,
    )  # fmt: skip
    if count() > len(names):
        raise BadParams(
            f"{count()} processes for {len(names)} classes that are taught; set run.processes to at"
            f" most {len(names)}"
        )
    labels, precision = labels.to(towers.device), run.compute.precision
    tokens = teacher.text_plan(part(names), memory=int(config.text_memory_gb * 2**30))
    frozen_image = frozen.image if frozen is not None else None
    if config.view_epochs is not None:
        batches = RepeatedBatches(batches)
        frozen_image = None if frozen_image is None else remembered(frozen_image)

    def step(batch: Batch) -> dict[str, Tensor]:
        shown = labels[gathered(batch.indices)]
        if frozen is None or frozen_image is None:
            loss, logits = cross_entropy_step(
                teacher, batch.images, shown, tokens=tokens, precision=precision
            )
            return {"loss": loss, "accuracy": _accuracy(logits, shown)}
        result = promptsrc_step(
            teacher, batch.images, shown, tokens=tokens, frozen_text=frozen.text,
            frozen_image=frozen_image(batch), config=config, precision=precision,
        )  # fmt: skip
        return {
            "loss": result.loss.total, **vars(result.loss),
            "accuracy": _accuracy(result.logits, shown),
        }  # fmt: skip

    averaging = None
    if config.method is TeacherMethod.PROMPTSRC:
        averaging = gaussian_weights(config.epochs, mean=config.gpa_mean, deviation=config.gpa_std)
    history = fit(teacher, step, batches, config, run, averaging=averaging)
    return teacher.folded(), history


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return 100 * (logits.argmax(dim=1) == labels).float().mean()
