"""Distilling a teacher into a student, without any label.

Shapes: B images, C classes, D the teacher's joint width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor

from pd_core.core.errors import BadArtifact, BadParams
from pd_core.core.options import (
    Form,
    OnNonFinite,
    Precision,
    Selection,
    TeacherWeighting,
    TextFeatures,
    Trained,
)
from pd_core.models.class_vectors import ClassVectors, for_student
from pd_core.models.clip import ClipTowers
from pd_core.models.precision import autocast
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.training.loop import losses
from pd_core.training.loop.checkpoints import Checkpoints, Metrics
from pd_core.training.loop.distributed import gathered
from pd_core.training.loop.fit import Batches, OnEpoch, OnLoss, OnProgress, fit
from pd_core.training.loop.views import Views
from pd_core.training.student.scoring import Scorer
from pd_core.training.student.targets import Look, Recorded, Supervisor, check_form, make_targets

EPOCHS = 20  # paper, implementation details
LEAST_BATCH = 2  # of batch norm


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


class DistillOptions(TypedDict, total=False):
    """The numbers that `distill_student` takes, with its defaults for those left out."""

    form: Form
    trained: Trained
    text_features: TextFeatures
    projector_layers: int
    image_depth: int
    image_length: int
    epochs: int
    accumulate: int
    lr: float
    momentum: float
    weight_decay: float
    warmup_epochs: int
    warmup_lr: float
    temperature: float
    kd_weight: float
    teacher_weighting: TeacherWeighting
    view_epochs: int | None
    selection: Selection
    max_grad_norm: float | None
    on_non_finite: OnNonFinite


def distillation_step(
    student: Student,
    images: Tensor,
    targets: Tensor,
    vectors: ClassVectors,
    *,
    form: Form = Form.LOGITS_KL,
    temperature: float = 1.0,
    weight: float = 1000.0,
    precision: Precision = Precision.FP32,
) -> DistillationStep:
    """Compute the distillation loss for one batch (paper, equation 4).

    Args:
        student: in training mode, so that batch norm uses the batch's statistics.
        images: (B, 3, H, W), augmented views; or this process's part of them.
        targets: (B, C) the teacher's logits on these views; or (B, D) its features. Of the whole
            batch, as all that follows.
        vectors: what the student is compared with, of base and novel classes.
        form: what the targets are, and how the student imitates them.
        temperature: of both softmaxes.
        weight: of the loss.
        precision: what the tower computes in; the loss is always fp32.

    Returns:
        The loss and the logits that it is made of.
    """
    with autocast(images.device, precision):
        features = student.project(gathered(student.encode(images)))  # (B, D)
    logits = vectors.logits(features, logit_scale=student.logit_scale)  # (B, C)
    match form:
        case Form.LOGITS_KL:
            loss = losses.distillation(logits, targets, temperature=temperature, weight=weight)
            return DistillationStep(loss, logits, targets)
        case Form.FEATURES_L1 | Form.FEATURES_MSE:
            squared = form is Form.FEATURES_MSE
            loss = losses.feature_distance(features, targets, squared=squared, weight=weight)
            return DistillationStep(loss, logits, vectors.logits(targets))


def distill_student(
    towers: ClipTowers,
    teacher: Teacher | None,
    vectors: ClassVectors,
    batches: Batches,
    *,
    further: Sequence[Supervisor] = (),
    recorded: Sequence[Recorded] = (),
    teacher_weighting: TeacherWeighting = TeacherWeighting.EQUAL,
    form: Form = Form.LOGITS_KL,
    trained: Trained = Trained.PROMPTS_AND_PROJECTOR,
    text_features: TextFeatures = TextFeatures.TEACHER,
    projector_layers: int = 2,
    image_depth: int = 9,
    image_length: int = 4,
    epochs: int = EPOCHS,
    accumulate: int = 1,
    lr: float = 0.005,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup_epochs: int = 1,
    warmup_lr: float = 1e-5,
    temperature: float = 1.0,
    kd_weight: float = 1000.0,
    view_epochs: int | None = None,
    selection: Selection = Selection.LAST,
    scorer: Scorer | None = None,
    max_grad_norm: float | None = None,
    on_non_finite: OnNonFinite = OnNonFinite.FAIL,
    seed: int = 1,
    precision: Precision = Precision.FP32,
    checkpoints: Checkpoints | None = None,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
    on_loss: OnLoss | None = None,
) -> tuple[Student, list[Metrics]]:
    """Distil a teacher into a student, without any label (paper, section 3.3).

    The defaults are the published ones.

    Args:
        towers: the student's frozen CLIP.
        teacher: the teacher; not needed where its answers are recorded.
        vectors: the teacher's class vectors, of all classes.
        batches: views of the unlabelled images.
        further: more teachers, each with vectors of its own for the same classes.
        recorded: the answers of all teachers, in their place.
        teacher_weighting: how the predictions of several teachers are averaged.
        form: what the student imitates.
        trained: what of the student is trained.
        text_features: whose text features the student is compared with.
        projector_layers: linear layers of the projector, 1 to 3.
        image_depth: layers of the image tower with prompts.
        image_length: prompts per layer.
        epochs: number of epochs.
        accumulate: as in `fit`.
        lr: peak learning rate.
        momentum: of SGD.
        weight_decay: of SGD, on prompts, projector and batch norm alike.
        warmup_epochs: epochs at `warmup_lr`.
        warmup_lr: learning rate of those.
        temperature: of both softmaxes.
        kd_weight: of the loss.
        view_epochs: after so many epochs their batches come again, and the
            teacher's answers to them are remembered; None shows new views in
            every epoch, as published.
        selection: how the epoch is chosen; noted in the student.
        scorer: scores the student after each epoch, for a choice other than the last.
        max_grad_norm: as in `fit`.
        on_non_finite: as in `fit`.
        seed: of prompts and projector.
        precision: what the towers compute in.
        checkpoints: as in `fit`.
        on_epoch: as in `fit`; the scalars are "loss", "agreement" (how often
            student and teacher choose the same class, percent, on the training
            views) and, with a scorer, "score".
        on_progress: as in `fit`.
        on_loss: as in `fit`.

    Returns:
        The student, in evaluation mode, and the metrics of each epoch.

    Raises:
        BadArtifact: vectors and teacher are of different widths.
        BadParams: a number is out of range, or two options exclude each other.
        Diverged, Interrupted: as in `fit`.
    """
    supervisors: list[Supervisor | Recorded] = [*recorded]
    if teacher is not None and not recorded:
        supervisors = [Supervisor(teacher, vectors.to(towers.device)), *further]
    if not supervisors:
        raise BadParams("no teacher; give one, or its recorded answers")
    check_form(form, text_features, teachers=len(supervisors))
    if (scorer is None) is not (selection is Selection.LAST):
        raise BadParams(f"selection = {selection}: give a scorer for any choice but the last epoch")
    width = vectors.vectors.shape[1]
    if teacher is not None and width != teacher.towers.joint_width:
        raise BadArtifact(
            f"class vectors of width {width} do not fit a teacher of width"
            f" {teacher.towers.joint_width}; build them again with this teacher"
        )
    own_text = text_features is TextFeatures.STUDENT
    student = Student.untrained(
        towers,
        feature_width=towers.joint_width if own_text else width,
        depth=image_depth,
        length=image_length,
        layers=projector_layers,
        trained=trained,
        text_features=text_features,
        seed=seed,
    )
    student.selection = selection
    compared = for_student(student, vectors)
    views = Views(batches, view_epochs)

    def step(indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        mine = views.answer(
            lambda: make_targets(
                supervisors,
                images,
                look=Look(views.place[0], indices),
                form=form,
                temperature=temperature,
                weighting=teacher_weighting,
                precision=precision,
            )
        )
        result = distillation_step(
            student, images, gathered(mine), compared,
            form=form, temperature=temperature, weight=kd_weight, precision=precision,
        )  # fmt: skip
        same = result.student_logits.argmax(dim=1) == result.teacher_logits.argmax(dim=1)
        return {"loss": result.loss, "agreement": 100 * same.float().mean()}

    history = fit(
        student,
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
        least_batch=LEAST_BATCH,
        score=None if scorer is None else lambda: scorer(student, compared),
        device=towers.device,
        precision=precision,
        checkpoints=checkpoints,
        on_epoch=on_epoch,
        on_progress=on_progress,
        on_loss=on_loss,
    )
    return student, history
