"""A classifier: an image encoder and class vectors, and how it judges a list of pictures.

Shapes: B and N images, C classes, D the width of the features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pd_core.core.options import Precision, TextFeatures
from pd_core.data.loading.images import ImageBatches
from pd_core.models.class_vectors import ClassVectors, build
from pd_core.models.clip import ClipTowers
from pd_core.models.precision import autocast, to_device
from pd_core.models.student import Student
from pd_core.models.teacher import TEMPLATE, Teacher

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Classifier:
    """An image encoder and the class vectors that its features are compared with.

    Attributes:
        encode: images (B, 3, H, W) -> unit features (B, D).
        vectors: C classes.
        logit_scale: of the encoder's CLIP.
    """

    encode: Callable[[Tensor], Tensor]
    vectors: ClassVectors
    logit_scale: float

    def logits(self, images: Tensor) -> Tensor:
        """Compare images (B, 3, H, W) with all classes: (B, C)."""
        return self.vectors.logits(self.encode(images).float(), logit_scale=self.logit_scale)


def zero_shot(towers: ClipTowers, names: Sequence[str], template: str = TEMPLATE) -> Classifier:
    """Make the classifier of a CLIP without any tuning."""
    return tuned(Teacher(towers, template=template).eval(), names)


def tuned(teacher: Teacher, names: Sequence[str]) -> Classifier:
    """Make the classifier of a teacher, its class vectors computed here."""
    return Classifier(teacher.image_features, build(teacher, names), teacher.logit_scale)


def distilled(student: Student, shared: ClassVectors) -> Classifier:
    """Make the classifier of a student, with the teacher's vectors unless it has its own."""
    return Classifier(student, for_student(student, shared), student.logit_scale)


def for_student(student: Student, shared: ClassVectors) -> ClassVectors:
    """Return the vectors that a student is compared with.

    Args:
        student: says whose text features it uses.
        shared: the teacher's vectors.

    Returns:
        These; or, for a student that uses its own text tower, that tower's for
        the same names. On the student's device.
    """
    match student.text_features:
        case TextFeatures.TEACHER:
            return shared.to(student.towers.device)
        case TextFeatures.STUDENT:
            return build(Teacher(student.towers).eval(), shared.names)


def logits_of(
    classifiers: Mapping[str, Classifier],
    batches: ImageBatches,
    device: torch.device,
    precision: Precision,
    on_progress: OnProgress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Let every classifier judge every image once, in order.

    Where damaged images are skipped, the N are those at `batches.intact`.

    Args:
        classifiers: by who they are; C classes each.
        batches: the N images.
        device: where the classifiers are.
        precision: what their towers compute in.
        on_progress: called with images done and images in all.

    Returns:
        Logits (N, C) by who.
    """
    parts: dict[str, list[Tensor]] = {who: [] for who in classifiers}
    done = 0
    with torch.inference_mode(), autocast(device, precision):
        for indices, images in batches.in_order():
            on_device = to_device(images, device)
            for who, classifier in classifiers.items():
                parts[who].append(classifier.logits(on_device).float().cpu())
            done += len(indices)
            if on_progress is not None:
                on_progress(done, batches.count)
    return {who: torch.cat(logits).numpy() for who, logits in parts.items()}
