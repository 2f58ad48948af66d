"""Distillation of a teacher into a student without labels; selection and check of the student."""

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
from pd_core.models.class_vectors import (
    Classifier,
    ClassVectors,
    best_class,
    for_student,
    reduced_logits,
)
from pd_core.models.clip import ClipTowers
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.precision import autocast
from pd_core.models.student import Student
from pd_core.training.loop import losses
from pd_core.training.loop.checkpoints import History
from pd_core.training.loop.distributed import gathered
from pd_core.training.loop.fit import Batches, Run, fit
from pd_core.training.loop.repeated import RepeatedBatches
from pd_core.training.loop.views import Source, remembered
from pd_core.training.student.config import LEAST_BATCH, StudentConfig
from pd_core.training.student.targets import TargetSource

SAMPLE = 256  # images; the teacher has to see them once more

_DEVIATIONS = 2.0  # above chance; a student that guesses is 2 above it in one of 44 runs

_BATCH = 256  # memory only, not the result

Scorer = Callable[[Student, ClassVectors], float]


@torch.no_grad()
def check_agreement(
    student: Classifier, targets: TargetSource, batches: Batches, compute: Compute
) -> None:
    """Refuse a student that agrees with its teacher no better than chance.

    Chance is the agreement of two raters with these class frequencies who rate independently, as
    in Cohen's kappa: a student that predicts one class for every image is no better.

    Args:
        student: in evaluation mode.
        targets: the teacher, or several.
        batches: views of unlabelled images; the first of an epoch are used.
        compute: device and precision of the towers.

    Raises:
        FailedRun: it does not agree better.
    """
    device = torch.device(compute.device)
    predicted, expected, seen = [], [], 0
    for batch in batches.epoch(1):
        shown = len(gathered(batch.indices))
        if shown == 0:
            continue
        on_device = batch.to(device)
        with autocast(device, compute.precision):
            logits = student.logits(on_device.images)  # (B, C)
        predicted.append(gathered(logits.argmax(dim=1)).cpu())
        expected.append(gathered(targets.logits(on_device).argmax(dim=1)).cpu())
        seen += shown
        if seen >= SAMPLE:
            break
    agreement, chance = _agreement(torch.cat(predicted), torch.cat(expected))
    least = chance + _DEVIATIONS * math.sqrt(chance * (1 - chance) / seen)
    if agreement < 1 and agreement <= least:
        if len(set(torch.cat(expected).tolist())) == 1:
            raise FailedRun(
                f"the teacher predicts one class for all {seen} unlabelled images, so that there is"
                " nothing to distil; improve the teacher, see the message of the stage teacher"
            )
        raise FailedRun(
            f"the student agrees with its teacher on {100 * agreement:.1f}% of {seen} images,"
            f" and by chance it would on {100 * chance:.1f}%: this is not a model; lower"
            " student.lr, give it more epochs, or look at its teacher"
        )


def _agreement(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return the share of equal labels (N,), and the share expected by chance."""
    same = float((first == second).double().mean())
    classes = int(torch.maximum(first, second).max()) + 1
    shares = [torch.bincount(x, minlength=classes).double() / len(x) for x in (first, second)]
    return same, float((shares[0] * shares[1]).sum())


def make_scorer(
    prepared: Path, selection: Selection, preprocess: Preprocess, compute: Compute
) -> Scorer | None:
    """Make the function that scores a student after each epoch, by accuracy on labelled images.

    Only the classes of the few labels are compared, as in the published code, which uses the base
    classes' test images.

    Args:
        prepared: output folder of the stage `prepare`; not read for `last`.
        selection: which labelled images are used.
        preprocess: of the student's images.
        compute: precision of the tower, and settings of the reading.

    Returns:
        A function from the student and the vectors that it is compared with to percent; None if
        the last epoch is kept.

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
        ImageStore(content.images), [path for path, _ in items], eval_transform(preprocess),
        batch_size=_BATCH, workers=compute.workers, on_corrupt=compute.on_corrupt,
    )  # fmt: skip

    def score(student: Student, vectors: ClassVectors) -> float:
        few = vectors.select(taught)
        classifier = Classifier(student, few, student.logit_scale, preprocess)
        device = student.towers.device
        best = reduced_logits(
            {"student": classifier}, batches, device, compute.precision, best_class
        )["student"]
        return 100 * float((best == labels[batches.intact]).mean())

    return score


def _held_out(prepared: Prepared, selection: Selection) -> Labelled:
    validation = selection is Selection.BEST_ON_VAL
    rows = prepared.few_shot_val if validation else prepared.test
    items = tuple((path, label) for path, label in rows if label < len(prepared.taught))
    if not items:
        raise BadData(
            f"data set '{prepared.dataset}' has no labelled"
            f" {'validation' if validation else 'test'} images to choose an epoch by;"
            " add some, or set student.selection: last"
        )
    return items


@dataclass(frozen=True)
class DistillationStep:
    """Result of one step of distillation."""

    loss: Tensor  # scalar
    student_logits: Tensor  # (B, C)
    teacher_logits: Tensor  # (B, C), without gradient


def untrained_student(
    towers: ClipTowers, vectors: ClassVectors, config: StudentConfig, seed: int
) -> Student:
    """Make a student with random prompts and projector.

    It projects into the space of the teacher's class vectors, or into its own joint space if it is
    compared with its own text features.

    Raises:
        BadParams: a number is out of range.
    """
    own_text = config.text_features is TextFeatures.STUDENT
    student = Student.untrained(
        towers, feature_width=towers.joint_width if own_text else vectors.vectors.shape[1],
        depth=config.image_depth, length=config.image_length, layers=config.projector_layers,
        trained=config.trained, text_features=config.text_features, seed=seed,
    )  # fmt: skip
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
        images: (B, 3, H, W), augmented views; this process's part of them.
        targets: (B, C) the teacher's logits on these views, or (B, D) its features; of the whole
            batch, as all that follows.
        vectors: class vectors of base and novel classes that the student is compared with.
        config: form, temperature and weight of the loss.
        precision: of the tower; the loss is always fp32.

    Returns:
        The loss and the logits behind it.
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
        run: the surroundings.
        scorer: scores the student after each epoch, for a selection other than the last.

    Returns:
        The metrics of each epoch: "loss", "agreement" (of student and teacher on the best class,
        percent, on the training views) and, with a scorer, "score".

    Raises:
        BadParams: a selection of the epoch without a scorer, or the reverse.
        Diverged, Interrupted: as in `fit`.
    """
    if (scorer is None) is not (config.selection is Selection.LAST):
        raise BadParams(
            f"selection = {config.selection}: give a scorer for any choice but the last epoch"
        )
    vectors, precision = for_student(student, targets.vectors), run.compute.precision
    target_of: Source = targets.logits if config.form is Form.LOGITS_KL else targets.features
    if config.view_epochs is not None:
        target_of, batches = remembered(target_of), RepeatedBatches(batches)

    def step(batch: Batch) -> dict[str, Tensor]:
        result = distillation_step(
            student, batch.images, gathered(target_of(batch)), vectors, config, precision
        )
        same = result.student_logits.argmax(dim=1) == result.teacher_logits.argmax(dim=1)
        return {"loss": result.loss, "agreement": 100 * same.float().mean()}

    score = None if scorer is None else lambda: scorer(student, vectors)
    return fit(student, step, batches, config, run, score=score, least_batch=LEAST_BATCH)
