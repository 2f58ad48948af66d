"""Who supervises the student, and on which views.

Shapes: B images, C classes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from pd_core import losses
from pd_core.class_vectors import ClassVectors, build
from pd_core.errors import BadParams
from pd_core.fit import Batches
from pd_core.models.clip import ClipTowers, load_clip
from pd_core.models.compute import autocast
from pd_core.models.teacher import Teacher
from pd_core.options import Form, Precision, TeacherWeighting, TextFeatures

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

    def content_hash(self) -> str:
        """Hash what decides its answers, beside the model that the teacher names."""
        prompts, changes = self.teacher.state_dict(), self.teacher.towers.changes
        digest = hashlib.sha256()
        for tensor in (self.vectors.vectors, *prompts.values(), *changes.values()):
            digest.update(tensor.detach().cpu().numpy().tobytes())
        return digest.hexdigest()


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
    supervisors: Sequence[Supervisor],
    images: Tensor,
    *,
    form: Form = Form.LOGITS_KL,
    temperature: float = 1.0,
    weighting: TeacherWeighting = TeacherWeighting.EQUAL,
    precision: Precision = Precision.FP32,
) -> Tensor:
    """Let the teachers say what the student should imitate on a batch.

    Args:
        supervisors: teachers with their own class vectors.
        images: (B, 3, H, W), the very views that the student sees.
        form: predictions, or features (of the first teacher).
        temperature: at which several teachers are averaged.
        weighting: how they are averaged.
        precision: what the towers compute in.

    Returns:
        Logits (B, C), or unit features (B, D); without gradient, fp32.
    """
    first = supervisors[0]
    if form is not Form.LOGITS_KL:
        with autocast(images.device, precision):
            return first.teacher.image_features(images)
    logits = [
        teacher_logits(one.teacher, images, one.vectors, precision=precision) for one in supervisors
    ]
    if len(logits) == 1:
        return logits[0]
    by_confidence = weighting is TeacherWeighting.CONFIDENCE
    return losses.ensemble(logits, by_confidence=by_confidence, temperature=temperature)


def check_form(form: Form, text: TextFeatures, further: Sequence[Supervisor]) -> None:
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
    if further:
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


class Views:
    """Batches whose epochs come round again, with what the teachers said about them.

    Attributes:
        place: which batch is out: epoch of the views, and number in it.
        answers: the targets of a batch, by place.
    """

    def __init__(self, batches: Batches, view_epochs: int | None) -> None:
        """Wrap batches.

        Args:
            batches: new views in every epoch.
            view_epochs: after so many epochs their batches come again; None: never.

        Raises:
            BadParams: `view_epochs` is not positive.
        """
        if view_epochs is not None and view_epochs < 1:
            raise BadParams(f"view_epochs = {view_epochs}; give a number from 1 upwards, or none")
        self._batches = batches
        self._period = view_epochs
        self.place = (0, 0)
        self.answers: dict[tuple[int, int], Tensor] = {}

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return self._batches.steps

    @property
    def damaged(self) -> set[int]:
        """Positions of the images found damaged so far."""
        return self._batches.damaged

    @property
    def left_out(self) -> int:
        """Damaged images of the last epoch that was gone through."""
        return self._batches.left_out

    def names(self, indices: Sequence[int]) -> list[str]:
        """Return the names of images by their positions in the list."""
        return self._batches.names(indices)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield positions (B,) and images (B, 3, H, W), and note the place of each batch."""
        source = epoch if self._period is None else (epoch - 1) % self._period + 1
        batches = self._batches.epoch(source, start=start)
        for number, batch in enumerate(batches, start=start):
            self.place = (source, number)
            yield batch

    def remember(self, targets: Tensor) -> None:
        """Keep the targets of the batch that is out, if it comes again."""
        if self._period is not None:
            self.answers[self.place] = targets


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
