"""Distilling a teacher into a student, without any label; scores that watch and select it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pd_core.core.config import Compute
from pd_core.core.errors import BadData, BadParams, FailedRun
from pd_core.core.options import Form, Precision, Selection, TextFeatures
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import Batch, ImageBatches, eval_transform
from pd_core.data.loading.prepared import Labelled, Prepared, read_prepared
from pd_core.models.class_vectors import Classifier, ClassVectors, for_student, logits_of
from pd_core.models.clip import ClipTowers
from pd_core.models.precision import autocast
from pd_core.models.student import Student
from pd_core.training.loop import losses
from pd_core.training.loop.checkpoints import History
from pd_core.training.loop.distributed import gathered
from pd_core.training.loop.fit import Batches, Run, fit
from pd_core.training.loop.views import Source, remembered
from pd_core.training.student.config import LEAST_BATCH, StudentConfig
from pd_core.training.student.targets import TargetSource

SAMPLE = 256  # pictures; the teacher has to look at them once more

_DEVIATIONS = 2.0  # above chance; a student that guesses is 2 above it in one of 44 runs


@torch.no_grad()
def check_agreement(
    student: Classifier,
    targets: TargetSource,
    batches: Batches,
    compute: Compute,
) -> None:
    """Refuse a student that agrees with its teacher no better than chance.

    Chance is how often two judges agree who give each class as often as these do, but without
    looking at the pictures (as in Cohen's kappa): a student that names one class whatever it sees
    is no better.

    Args:
        student: in evaluation mode, as it will be used.
        targets: its teacher, or several.
        batches: views of unlabelled pictures; the first of an epoch are looked at.
        compute: device and precision of the towers.

    Raises:
        FailedRun: it does not.
    """
    device = torch.device(compute.device)
    mine, theirs, seen = [], [], 0
    for batch in batches.epoch(1):
        shown = len(gathered(batch.indices))
        if shown == 0:
            continue
        on_device = batch.to(device)
        with autocast(device, compute.precision):
            logits = student.logits(on_device.images)  # (B, C)
        mine.append(gathered(logits.argmax(dim=1)).cpu())
        theirs.append(gathered(targets.logits(on_device).argmax(dim=1)).cpu())
        seen += shown
        if seen >= SAMPLE:
            break
    agreement, chance = _agreement(torch.cat(mine), torch.cat(theirs))
    least = chance + _DEVIATIONS * math.sqrt(chance * (1 - chance) / seen)
    if agreement < 1 and agreement <= least:
        raise FailedRun(
            f"the student agrees with its teacher on {100 * agreement:.1f}% of {seen} pictures,"
            f" and by chance it would on {100 * chance:.1f}%: this is not a model; lower"
            " student.lr, give it more epochs, or look at its teacher"
        )


def _agreement(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return how often two judges chose the same (N,), and how often they would by chance."""
    same = float((first == second).double().mean())
    classes = int(torch.maximum(first, second).max()) + 1
    shares = [torch.bincount(one, minlength=classes).double() / len(one) for one in (first, second)]
    return same, float((shares[0] * shares[1]).sum())


Scorer = Callable[[Student, ClassVectors], float]

_BATCH = 256  # memory only, not the result


def make_scorer(
    prepared: Path, selection: Selection, image_size: int, compute: Compute
) -> Scorer | None:
    """Make what scores a student after each epoch, by accuracy on labelled images.

    Only the classes that the teacher was taught are told apart, as in the
    published code, which looks at the base classes' test images.

    Args:
        prepared: folder written by the stage `prepare`; not read for `last`.
        selection: which images are looked at.
        image_size: of the student's tower, in pixels.
        compute: precision of the tower, and how images are read; a skipped one is not looked at.

    Returns:
        A function of the student and the vectors that it is compared with, to
        percent; None if the last epoch is kept.

    Raises:
        BadData: there are no such images.
    """
    if selection is Selection.LAST:
        return None
    content = read_prepared(prepared, data_root=compute.data_root)
    items = _held_out(content, selection)
    labels = np.array([label for _, label in items])
    taught = range(len(content.taught))
    batches = ImageBatches(
        ImageStore(content.images),
        [path for path, _ in items],
        eval_transform(image_size),
        batch_size=_BATCH,
        workers=compute.workers,
        on_corrupt=compute.on_corrupt,
    )

    def score(student: Student, vectors: ClassVectors) -> float:
        classifier = Classifier(student, vectors.select(taught), student.logit_scale)
        device = student.towers.device
        logits = logits_of({"student": classifier}, batches, device, compute.precision)["student"]
        return 100 * float((logits.argmax(axis=1) == labels[batches.intact]).mean())

    return score


def _held_out(prepared: Prepared, selection: Selection) -> Labelled:
    what = "validation" if selection is Selection.BEST_ON_VAL else "test"
    found = prepared.few_shot_val if selection is Selection.BEST_ON_VAL else prepared.test
    items = tuple((path, label) for path, label in found if label < len(prepared.taught))
    if not items:
        raise BadData(
            f"data set '{prepared.dataset}' has no labelled {what} images to choose an epoch by;"
            " add some, or set student.selection: last"
        )
    return items


@dataclass(frozen=True)
class DistillationStep:
    """What one step of distillation computes.

    Attributes:
        loss: scalar to minimise.
        student_logits: (B, C).
        teacher_logits: (B, C), without gradient.
    """

    loss: Tensor
    student_logits: Tensor
    teacher_logits: Tensor


def untrained_student(
    towers: ClipTowers, vectors: ClassVectors, config: StudentConfig, seed: int
) -> Student:
    """Make a student with random prompts and projector.

    Args:
        towers: its frozen CLIP.
        vectors: the teacher's class vectors, into whose space it projects unless its own text
            features are used.
        config: of the student.
        seed: of prompts and projector.

    Raises:
        BadParams: a number is out of range.
    """
    own_text = config.text_features is TextFeatures.STUDENT
    student = Student.untrained(
        towers,
        feature_width=towers.joint_width if own_text else vectors.vectors.shape[1],
        depth=config.image_depth,
        length=config.image_length,
        layers=config.projector_layers,
        trained=config.trained,
        text_features=config.text_features,
        seed=seed,
    )
    student.selection = config.selection
    return student


def distillation_step(
    student: Student,
    images: Tensor,
    targets: Tensor,
    vectors: ClassVectors,
    config: StudentConfig,
    precision: Precision,
) -> DistillationStep:
    """Compute the distillation loss for one batch (paper, equation 4).

    Args:
        student: in training mode, so that batch norm uses the batch's statistics.
        images: (B, 3, H, W), augmented views; or this process's part of them.
        targets: (B, C) the teacher's logits on these views; or (B, D) its features. Of the whole
            batch, as all that follows.
        vectors: what the student is compared with, of base and novel classes.
        config: form, temperature and weight of the loss.
        precision: what the tower computes in; the loss is always fp32.

    Returns:
        The loss and the logits that it is made of.
    """
    with autocast(images.device, precision):
        features = student.project(gathered(student.encode(images)))  # (B, D)
    logits = vectors.logits(features, logit_scale=student.logit_scale)  # (B, C)
    match config.form:
        case Form.LOGITS_KL:
            loss = losses.distillation(
                logits, targets, temperature=config.temperature, weight=config.kd_weight
            )
            return DistillationStep(loss, logits, targets)
        case Form.FEATURES_L1 | Form.FEATURES_MSE:
            squared = config.form is Form.FEATURES_MSE
            loss = losses.feature_distance(
                features, targets, squared=squared, weight=config.kd_weight
            )
            return DistillationStep(loss, logits, vectors.logits(targets))


def distill(
    student: Student,
    targets: TargetSource,
    batches: Batches,
    config: StudentConfig,
    run: Run,
    *,
    scorer: Scorer | None = None,
) -> History:
    """Distil a teacher into a student, in place, without any label (paper, section 3.3).

    Args:
        student: untrained; left in evaluation mode.
        targets: the teacher, or several.
        batches: views of the unlabelled images.
        config: of the student.
        run: the surroundings. The scalars of an epoch are "loss", "agreement" (how often student
            and teacher choose the same class, percent, on the training views) and, with a scorer,
            "score".
        scorer: scores the student after each epoch, for a choice other than the last.

    Returns:
        The metrics of each epoch.

    Raises:
        BadParams: a choice of the epoch and no scorer, or the reverse.
        Diverged, Interrupted: as in `fit`.
    """
    if (scorer is None) is not (config.selection is Selection.LAST):
        raise BadParams(
            f"selection = {config.selection}: give a scorer for any choice but the last epoch"
        )
    vectors, precision = for_student(student, targets.vectors), run.compute.precision
    target_of: Source = targets.logits if config.form is Form.LOGITS_KL else targets.features
    if config.view_epochs is not None:
        target_of = remembered(target_of)

    def step(batch: Batch) -> dict[str, Tensor]:
        result = distillation_step(
            student, batch.images, gathered(target_of(batch)), vectors, config, precision
        )
        same = result.student_logits.argmax(dim=1) == result.teacher_logits.argmax(dim=1)
        return {"loss": result.loss, "agreement": 100 * same.float().mean()}

    score = None if scorer is None else lambda: scorer(student, vectors)
    return fit(student, step, batches, config, run, score=score, least_batch=LEAST_BATCH)
