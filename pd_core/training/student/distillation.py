"""Distilling a teacher into a student, without any label.

Shapes: B images, C classes, D the teacher's joint width.
"""

from dataclasses import dataclass

from torch import Tensor

from pd_core.core.errors import BadParams
from pd_core.core.options import Form, Precision, Selection, TextFeatures
from pd_core.data.loading.images import Batch
from pd_core.models.class_vectors import ClassVectors, for_student
from pd_core.models.clip import ClipTowers
from pd_core.models.precision import autocast
from pd_core.models.student import Student
from pd_core.training.loop import losses
from pd_core.training.loop.checkpoints import History
from pd_core.training.loop.distributed import gathered
from pd_core.training.loop.fit import Batches, fit
from pd_core.training.loop.run import Run
from pd_core.training.loop.views import Source, remembered
from pd_core.training.student.config import LEAST_BATCH, StudentConfig
from pd_core.training.student.scoring import Scorer
from pd_core.training.student.targets import TargetSource


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
