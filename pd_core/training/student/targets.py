"""Teachers that provide the distillation targets, live or from a cache.

Shapes: B images, C classes, D the teacher's joint width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pd_core.core.artifacts import file_hash
from pd_core.core.config import ClipConfig, Compute
from pd_core.core.errors import BadArtifact, BadParams
from pd_core.core.options import Form, Precision, TeacherWeighting, TextFeatures
from pd_core.data.loading.images import Batch, ImageBatches
from pd_core.models.class_vectors import ClassVectors, build
from pd_core.models.clip import ClipTowers, load_clip
from pd_core.models.precision import autocast
from pd_core.models.teacher import Teacher
from pd_core.training.loop import losses
from pd_core.training.loop.feature_cache import identity
from pd_core.training.loop.fit import Run
from pd_core.training.loop.views import CachedViews, Source, TrainingViews, cached_views
from pd_core.training.student.config import FurtherTeacher, StudentConfig

TEACHER_FILE = "teacher.safetensors"


class TargetSource(Protocol):
    """A teacher, or several; logits and features are fp32 and without gradient."""

    @property
    def vectors(self) -> ClassVectors:
        """Its class vectors, of C classes."""

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits (B, C) of the views that the student sees."""

    def features(self, batch: Batch) -> Tensor:
        """Return their image features (B, D), unit length."""


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher with its own class vectors, whose tower encodes every batch."""

    teacher: Teacher
    vectors: ClassVectors
    precision: Precision

    def __post_init__(self) -> None:
        """Refuse class vectors of another teacher.

        Raises:
            BadArtifact: they are of another width.
        """
        width, own = self.vectors.vectors.shape[1], self.teacher.towers.joint_width
        if width != own:
            raise BadArtifact(
                f"class vectors of width {width} do not fit a teacher of width {own}; build them"
                " again with this teacher"
            )

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """See `TargetSource`."""
        return self.vectors.logits(self.features(batch), logit_scale=self.teacher.logit_scale)

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """See `TargetSource`."""
        images = batch.views[self.teacher.towers.preprocess]
        with autocast(images.device, self.precision):
            return self.teacher.image_features(images)


@dataclass(frozen=True)
class CachedTeacher:
    """A teacher whose features or logits of all views are in the feature cache."""

    views: CachedViews
    vectors: ClassVectors
    holds_features: bool

    def logits(self, batch: Batch) -> Tensor:
        """See `TargetSource`."""
        values = self.views.at(batch)
        return self.vectors.logits(values) if self.holds_features else values

    def features(self, batch: Batch) -> Tensor:
        """See `TargetSource`; only where features are cached."""
        return self.views.at(batch)


@dataclass(frozen=True)
class Ensemble:
    """Average of the predictions of several teachers."""

    teachers: Sequence[TargetSource]  # at least one
    temperature: float  # of the softmax before averaging
    weighting: TeacherWeighting

    @property
    def vectors(self) -> ClassVectors:
        """The first teacher's class vectors."""
        return self.teachers[0].vectors

    def logits(self, batch: Batch) -> Tensor:
        """See `TargetSource`."""
        logits = [teacher.logits(batch) for teacher in self.teachers]
        if len(logits) == 1:
            return logits[0]
        by_confidence = self.weighting is TeacherWeighting.CONFIDENCE
        return losses.ensemble(logits, by_confidence=by_confidence, temperature=self.temperature)

    def features(self, batch: Batch) -> Tensor:
        """Return the first teacher's features."""
        return self.teachers[0].features(batch)


def check_form(config: StudentConfig) -> None:
    """Refuse features as targets where no single feature can be imitated.

    Raises:
        BadParams: the student has a space of its own, or there are several teachers.
    """
    if config.form is Form.LOGITS_KL:
        return
    if config.text_features is TextFeatures.STUDENT:
        raise BadParams(
            f"student.form = {config.form} imitates the teacher's features, which its own text"
            " features do not share a space with; set student.text_features: teacher"
        )
    if config.further_teachers:
        raise BadParams(
            f"student.form = {config.form} imitates one teacher's features; set"
            " student.further_teachers: [], or student.form: logits_kl"
        )


def load_further(
    wanted: Sequence[FurtherTeacher], names: Sequence[str], first: ClipTowers, compute: Compute
) -> list[LiveTeacher]:
    """Load further teachers and compute the class vectors of each.

    Args:
        wanted: their configurations.
        names: C class names, by label.
        first: the first teacher's CLIP.
        compute: device and precision.

    Raises:
        MissingFile: a teacher or its weights are missing.
        BadArtifact: a teacher does not fit its model.
        BadParams: weights without a model.
    """
    teachers = []
    for config in wanted:
        if config.model is None and config.weights is not None:
            raise BadParams(
                f"further teacher with weights '{config.weights}' and no model; name its model"
            )
        towers = first
        if config.model is not None:
            towers = load_clip(config.model, config.weights, device=compute.device)
        teacher = Teacher(towers).eval()
        if config.folder is not None:
            remedy = "give the folder of a tuned or imported teacher"
            teacher = Teacher.load(Path(config.folder) / TEACHER_FILE, towers, remedy=remedy)
        teachers.append(LiveTeacher(teacher, build(teacher, names), compute.precision))
    return teachers


def identities(
    first: ClipConfig, teacher: Path, vectors: Path, further: Sequence[FurtherTeacher]
) -> list[list[str]]:
    """Return what determines each teacher's targets beside the classes' names, for cache keys.

    Args:
        first: the first teacher's CLIP.
        teacher: its file.
        vectors: file of its class vectors.
        further: the other teachers.
    """
    clip = identity(first.model, first.weights)
    teachers = [[*clip, file_hash(teacher), file_hash(vectors)]]
    for each in further:
        own = identity(each.model, each.weights) if each.model else clip
        tuned = [] if each.folder is None else [file_hash(Path(each.folder) / TEACHER_FILE)]
        teachers.append([*own, *tuned])
    return teachers


def cached_teachers(
    load: Callable[[], Sequence[LiveTeacher]],
    teachers: Sequence[Sequence[str]],
    vectors: ClassVectors,
    views: TrainingViews,
    config: StudentConfig,
    run: Run,
) -> list[CachedTeacher]:
    """Fill the feature cache with every teacher's targets for all views.

    Logits are stored if there are fewer classes than feature dimensions, or several teachers;
    features otherwise, and if the student imitates them. In half precision logits are stored
    relative to the largest: no softmax notices it, and the large ones stay precise.

    Args:
        load: loads the teachers; called only if targets are missing.
        teachers: the identity of each teacher and its class vectors.
        vectors: the first teacher's, of the C classes.
        views: those of the training; the shape of their batches decides the last bits.
        config: of the student.
        run: the surroundings.

    Raises:
        BadParams: they exceed the cache's limit.
        NoSpace: the disk has no room for them.
        Interrupted: the training was stopped.
    """
    classes, width = len(vectors.names), vectors.vectors.shape[1]
    features = config.form is not Form.LOGITS_KL or (len(teachers) == 1 and classes > width)
    kind = "features" if features else "logits"
    half = run.required_features().half
    loaded: list[LiveTeacher] = []

    def source(number: int) -> tuple[ImageBatches, Source]:
        loaded.extend(load() if not loaded else ())
        teacher = loaded[number]
        batches = views.shown_to([teacher.teacher.towers.preprocess])
        if features:
            return batches, teacher.features
        return batches, _relative(teacher.logits) if half else teacher.logits

    cached = []
    for number, teacher in enumerate(teachers):
        key = {"teacher": teacher, "names": vectors.names, "precision": run.compute.precision}
        record = cached_views(
            views, f"teacher-{kind}", key, partial(source, number), run,
            epochs=config.distinct_epochs, width=width if features else classes,
            what=f"the teacher's {kind}",
        )  # fmt: skip
        cached.append(CachedTeacher(record, vectors.to(run.device), features))
    return cached


def _relative(logits: Source) -> Source:
    def shifted(batch: Batch) -> Tensor:
        values = logits(batch)
        return values - values.amax(dim=1, keepdim=True)

    return shifted
