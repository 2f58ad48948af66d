"""Teachers that provide the distillation targets, live or from a cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from pd_core.core.errors import BadParams
from pd_core.core.options import Form, Precision, TeacherWeighting, TextFeatures
from pd_core.models.class_vectors import ClassVectors, build
from pd_core.models.clip import ClipTowers, load_clip
from pd_core.models.precision import autocast
from pd_core.models.teacher import Teacher
from pd_core.training.loop import losses
from pd_core.training.loop.checkpoints import Checkpoints
from pd_core.training.loop.feature_cache import FeatureStore
from pd_core.training.loop.fit import OnProgress
from pd_core.training.loop.views import Encode, RecordedViews, TrainingViews

TEACHER_FILE = "teacher.safetensors"


class FurtherTeacher(TypedDict):
    """A teacher beside the first one, as the parameters name it; None stands for the default."""

    folder: str | None  # with its `teacher.safetensors`; default: the zero-shot model
    model: str | None  # default: the first teacher's
    weights: str | None


@dataclass(frozen=True)
class Supervisor:
    """A teacher and its own class vectors."""

    teacher: Teacher
    vectors: ClassVectors


@dataclass(frozen=True)
class Recorded:
    """A teacher's answers to all views of a training, computed before.

    Attributes:
        views: its logits (B, C), or its features (B, D), of unit length.
        vectors: what to compare the features with; None if these are logits.
    """

    views: RecordedViews
    vectors: ClassVectors | None


@dataclass(frozen=True)
class Look:
    """A batch of views as it was recorded: epoch of the views, positions in the list (B,)."""

    epoch: int
    indices: Tensor


def load_further(
    wanted: Sequence[FurtherTeacher],
    names: Sequence[str],
    *,
    first: ClipTowers,
    device: torch.device | str,
) -> list[Supervisor]:
    """Load further teachers and compute the class vectors of each.

    Args:
        wanted: which.
        names: C class names, by label.
        first: the first teacher's CLIP.
        device: where to compute.

    Raises:
        MissingFile: a teacher or its weights are missing.
        BadArtifact: a teacher does not fit its model.
        BadParams: weights without a model.
    """
    return [_load(one, names, first, device) for one in wanted]


@torch.no_grad()
def teacher_logits(
    teacher: Teacher,
    images: Tensor,
    vectors: ClassVectors,
    *,
    precision: Precision = Precision.FP32,
) -> Tensor:
    """Let the teacher judge a batch.

    Args:
        teacher: with its prompts.
        images: (B, 3, H, W), the very views that the student sees.
        vectors: the teacher's own.
        precision: what its tower computes in.

    Returns:
        (B, C), without gradient, fp32.
    """
    with autocast(images.device, precision):
        features = teacher.image_features(images)  # (B, D)
    return vectors.logits(features, logit_scale=teacher.logit_scale)


@torch.no_grad()
def make_targets(
    supervisors: Sequence[Supervisor | Recorded],
    images: Tensor,
    *,
    look: Look | None = None,
    form: Form = Form.LOGITS_KL,
    temperature: float = 1.0,
    weighting: TeacherWeighting = TeacherWeighting.EQUAL,
    precision: Precision = Precision.FP32,
) -> Tensor:
    """Let the teachers say what the student should imitate on a batch.

    Args:
        supervisors: teachers with their own class vectors, or what they said before.
        images: (B, 3, H, W), the very views that the student sees.
        look: which views these are; needed for what was recorded.
        form: predictions, or features (of the first teacher).
        temperature: at which several teachers are averaged.
        weighting: how they are averaged.
        precision: what the towers compute in.

    Returns:
        Logits (B, C), or unit features (B, D); without gradient, fp32.
    """
    if form is not Form.LOGITS_KL:
        return _features(supervisors[0], images, look, precision)
    logits = [_logits(one, images, look, precision) for one in supervisors]
    if len(logits) == 1:
        return logits[0]
    by_confidence = weighting is TeacherWeighting.CONFIDENCE
    return losses.ensemble(logits, by_confidence=by_confidence, temperature=temperature)


def _features(
    one: Supervisor | Recorded, images: Tensor, look: Look | None, precision: Precision
) -> Tensor:
    if isinstance(one, Recorded):
        return _recorded(one, look)
    with autocast(images.device, precision):
        return one.teacher.image_features(images)


def _logits(
    one: Supervisor | Recorded, images: Tensor, look: Look | None, precision: Precision
) -> Tensor:
    if isinstance(one, Supervisor):
        return teacher_logits(one.teacher, images, one.vectors, precision=precision)
    numbers = _recorded(one, look)
    return numbers if one.vectors is None else one.vectors.logits(numbers)


def _recorded(one: Recorded, look: Look | None) -> Tensor:
    if look is None:
        raise ValueError("say which views these are: what was recorded is known by them")
    return one.views.at(look.epoch, look.indices)


def check_form(form: Form, text: TextFeatures, *, teachers: int = 1) -> None:
    """Refuse features as targets where there is no one feature to imitate.

    Raises:
        BadParams: the student has a space of its own, or there are several teachers.
    """
    if form is Form.LOGITS_KL:
        return
    if text is TextFeatures.STUDENT:
        raise BadParams(
            f"student.form = {form} imitates the teacher's features, which its own text features"
            " do not share a space with; set student.text_features: teacher"
        )
    if teachers > 1:
        raise BadParams(
            f"student.form = {form} imitates one teacher's features; set"
            " student.further_teachers: [], or student.form: logits_kl"
        )


def check_views(supervisors: Sequence[Supervisor], image_size: int) -> None:
    """Refuse teachers that cannot look at the student's views.

    Raises:
        BadParams: a teacher's images are of another size.
    """
    for one in supervisors:
        towers = one.teacher.towers
        if towers.image_size != image_size:
            raise BadParams(
                f"teacher '{towers.name}' looks at {towers.image_size} pixels, the student at"
                f" {image_size}, and both see the same views; choose models of one image size"
            )


def _load(
    wanted: FurtherTeacher, names: Sequence[str], first: ClipTowers, device: torch.device | str
) -> Supervisor:
    model, folder = wanted["model"], wanted["folder"]
    if model is None and wanted["weights"] is not None:
        raise BadParams(
            f"further teacher with weights '{wanted['weights']}' and no model; name its model"
        )
    towers = first if model is None else load_clip(model, wanted["weights"], device=device)
    teacher = Teacher(towers).eval()
    if folder is not None:
        remedy = "give the folder of a tuned or imported teacher"
        teacher = Teacher.load(Path(folder) / TEACHER_FILE, towers, remedy=remedy)
    return Supervisor(teacher, build(teacher, names))


Load = Callable[[], Sequence[Supervisor]]


def teachers_answers(
    store: FeatureStore,
    vectors: ClassVectors,
    views: TrainingViews,
    load: Load,
    *,
    teachers: Sequence[Sequence[str]],
    epochs: int,
    form: Form,
    precision: Precision,
    device: torch.device,
    checkpoints: Checkpoints | None = None,
    on_progress: OnProgress | None = None,
) -> list[Recorded]:
    """Make sure that the store has every teacher's answers to all views.

    Logits are stored where there are fewer classes than features have numbers, and if there are
    several teachers; features otherwise, and if they are what is imitated. In half precision
    logits are stored relative to the largest, which no softmax notices and which keeps those that
    matter precise.

    Args:
        store: where they are kept.
        vectors: the first teacher's, of the C classes.
        views: those of the training; the shape of their batches decides the last bits.
        load: loads the teachers; called only if answers are missing.
        teachers: the identity of each teacher and its class vectors.
        epochs: with views of their own.
        form: what the student imitates.
        precision: what the towers compute in.
        device: where to compute.
        checkpoints: say whether the run is to end; None: it is not.
        on_progress: called with batches done and batches in all.

    Returns:
        The answers of each teacher.

    Raises:
        BadParams: they take more than the store may.
        NoSpace: the disk has no room for them.
        Interrupted: the run was told to end.
    """
    classes, width = len(vectors.names), vectors.vectors.shape[1]
    features = form is not Form.LOGITS_KL or (len(teachers) == 1 and classes > width)
    what = "features" if features else "logits"
    loaded: list[Supervisor] = []

    def encoder(number: int) -> Encode:
        loaded.extend(load() if not loaded else ())
        return _answering(loaded[number], features=features, half=store.half, at=precision)

    answers = []
    for number, teacher in enumerate(teachers):
        decisive = {"teacher": teacher, "names": vectors.names, "precision": precision}
        record = RecordedViews.of(
            views, store, f"teacher-{what}", decisive,
            width=width if features else classes, device=device,
        )  # fmt: skip
        record.complete(
            epochs, views.batches, partial(encoder, number), what=f"the teacher's {what}",
            checkpoints=checkpoints, on_progress=on_progress,
        )  # fmt: skip
        answers.append(Recorded(record, vectors.to(device) if features else None))
    return answers


def _answering(one: Supervisor, *, features: bool, half: bool, at: Precision) -> Encode:
    form = Form.FEATURES_L1 if features else Form.LOGITS_KL

    def answer(images: Tensor) -> Tensor:
        numbers = make_targets([one], images, form=form, precision=at)
        if half and not features:
            return numbers - numbers.amax(dim=1, keepdim=True)
        return numbers

    return answer
