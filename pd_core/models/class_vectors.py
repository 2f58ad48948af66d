"""Class vectors (a teacher's text features) and classifiers of images.

Shapes: B and N images, C classes, D the teacher's joint width.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pd_core.core.artifacts import check_numbers, read_tensors, understood, write_tensors
from pd_core.core.errors import BadArtifact, BadParams
from pd_core.core.hooks import OnProgress
from pd_core.core.options import Precision, TextFeatures
from pd_core.models.class_texts import TEMPLATE, check_distinct
from pd_core.models.clip import ClipTowers
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.precision import autocast, to_device
from pd_core.models.prompts import encode_many_texts
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher

FILE = "class_vectors.safetensors"


@dataclass(frozen=True)
class ClassVectors:
    """A unit vector for each class.

    Attributes:
        names: C class names, by label.
        vectors: (C, D), unit length, fp32.
        logit_scale: of the model that computed them.
        source: description of that model.
    """

    names: tuple[str, ...]
    vectors: Tensor
    logit_scale: float
    source: str

    def logits(self, features: Tensor, *, logit_scale: float | None = None) -> Tensor:
        """Compute logits of image features: (B, D) of unit length -> (B, C).

        Give the logit scale of the features' model if it is not that of the vectors.
        """
        scale = self.logit_scale if logit_scale is None else logit_scale
        return scale * features @ self.vectors.T

    def select(self, labels: Sequence[int]) -> Self:
        """Select classes by their labels, in this order; BadParams if one is out of range."""
        invalid = [label for label in labels if not 0 <= label < len(self.names)]
        if invalid:
            raise BadParams(
                f"class label {invalid[0]}; give labels from 0 to {len(self.names) - 1}"
            )
        names = tuple(self.names[label] for label in labels)
        return replace(self, names=names, vectors=self.vectors[list(labels)])

    def to(self, device: torch.device | str) -> Self:
        """Move the vectors to a device."""
        return replace(self, vectors=self.vectors.to(device))

    def save(self, path: Path) -> None:
        """Write the vectors."""
        scale = torch.tensor(self.logit_scale, dtype=torch.float64)
        metadata = {"names": json.dumps(self.names, ensure_ascii=False), "source": self.source}
        write_tensors(path, {"vectors": self.vectors, "logit_scale": scale}, metadata)

    @classmethod
    def load(cls, path: Path, *, remedy: str = "build the class vectors first") -> Self:
        """Read the vectors, onto the CPU.

        Raises:
            MissingFile: the file does not exist.
            BadArtifact: it is corrupt, or names and vectors do not match.
        """
        tensors, metadata = read_tensors(path, what="class vectors", remedy=remedy)
        with understood(path, what="class vectors", remedy=remedy):
            names = json.loads(metadata.get("names", "[]"))
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("its names, which must be a list of strings")
        vectors = tensors.get("vectors", torch.empty(0, 0))
        scale = tensors.get("logit_scale", torch.empty(0))
        if vectors.dim() != 2 or len(names) != len(vectors) or scale.dim() != 0:
            raise BadArtifact(
                f"class vectors '{path}' have {len(names)} names, vectors of shape"
                f" {list(vectors.shape)} and {scale.numel()} scales; {remedy}"
            )
        check_numbers(tensors, path, what="class vectors", remedy=remedy)
        return cls(tuple(names), vectors, float(scale), metadata.get("source", ""))


def build(
    teacher: Teacher, names: Sequence[str], *, on_progress: OnProgress | None = None
) -> ClassVectors:
    """Compute the class vectors of a teacher, tuned or zero-shot, on its device."""
    features = encode_many_texts(
        teacher.towers.text, teacher.tokens(names), teacher.text_prompts, on_progress=on_progress
    )
    return ClassVectors(
        names=tuple(names),
        vectors=F.normalize(features, dim=-1),
        logit_scale=teacher.logit_scale,
        source=f"{teacher.towers.name} ({teacher.method})",
    )


def template_features(teacher: Teacher, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Average the frozen text features of each class over templates with a `{}`: (C, D), fp32.

    They are averaged before they are normalised (PromptSRC, section 3.2.3, "textual diversity").
    """
    towers = teacher.towers
    plain = [name.replace("_", " ") for name in names]
    tokens_of = [
        towers.tokenize([template.replace("{}", name) for name in plain]) for template in templates
    ]
    stacked = torch.stack(tokens_of, dim=1)  # (C, T, L) for T templates
    check_distinct(names, stacked, towers.name, towers.tokenize)
    features = []
    for tokens in tokens_of:  # texts of one template share a prefix
        features.append(encode_many_texts(towers.text, tokens.to(towers.device)))
    return torch.stack(features).mean(dim=0)


@dataclass(frozen=True)
class Classifier:
    """An image encoder and class vectors.

    Attributes:
        encode: images (B, 3, H, W) -> unit features (B, D).
        vectors: of C classes.
        logit_scale: of the encoder's CLIP.
        preprocess: of the images.
    """

    encode: Callable[[Tensor], Tensor]
    vectors: ClassVectors
    logit_scale: float
    preprocess: Preprocess

    def logits(self, images: Tensor) -> Tensor:
        """Compute logits (B, C) of images (B, 3, H, W)."""
        return self.vectors.logits(self.encode(images).float(), logit_scale=self.logit_scale)


def zero_shot(towers: ClipTowers, names: Sequence[str], template: str = TEMPLATE) -> Classifier:
    """Make the zero-shot classifier of a CLIP."""
    return tuned(Teacher(towers, template=template).eval(), names)


def tuned(teacher: Teacher, names: Sequence[str]) -> Classifier:
    """Make the classifier of a teacher; computes its class vectors."""
    return taught(teacher, build(teacher, names))


def taught(teacher: Teacher, vectors: ClassVectors) -> Classifier:
    """Make the classifier of a teacher with its stored class vectors."""
    preprocess = teacher.towers.preprocess
    return Classifier(teacher.image_features, vectors, teacher.logit_scale, preprocess)


def distilled(student: Student, shared: ClassVectors) -> Classifier:
    """Make the classifier of a student, with its class vectors (see `for_student`)."""
    vectors = for_student(student, shared)
    return Classifier(student, vectors, student.logit_scale, student.towers.preprocess)


def for_student(student: Student, shared: ClassVectors) -> ClassVectors:
    """Return a student's class vectors: the shared ones, or those of its own text tower."""
    match student.text_features:
        case TextFeatures.TEACHER:
            return shared.to(student.towers.device)
        case TextFeatures.STUDENT:
            return build(Teacher(student.towers).eval(), shared.names)


class Batch(Protocol):
    """A batch of images, such as `data.loading.images.Batch`."""

    @property
    def indices(self) -> Tensor:
        """Positions in the list, (B,)."""

    @property
    def views(self) -> Mapping[Preprocess, Tensor]:
        """Images (B, 3, S, S) by the preprocessing of the models."""


class Batches(Protocol):
    """An image list in batches, such as `data.loading.images.ImageBatches`."""

    @property
    def count(self) -> int:
        """Number of images in the list."""

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches, in order."""


Reduction = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[Any]]
"""From logits (B, C), and the positions of the images in the list (B,), to a row for each image."""


def best_class(logits: NDArray[np.float32], _: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class with the largest logit, (B,): a `Reduction`."""
    return np.asarray(logits.argmax(axis=1))


def logits_of(
    classifiers: Mapping[str, Classifier],
    batches: Batches,
    device: torch.device,
    precision: Precision,
    on_progress: OnProgress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Compute the logits (N, C) of classifiers, by name, as `reduced_logits` does."""
    return reduced_logits(
        classifiers, batches, device, precision, lambda logits, _: logits, on_progress
    )


def reduced_logits(
    classifiers: Mapping[str, Classifier],
    batches: Batches,
    device: torch.device,
    precision: Precision,
    reduce: Reduction,
    on_progress: OnProgress | None = None,
) -> dict[str, NDArray[Any]]:
    """Reduce the logits of classifiers, by name, to a row for each of N images, in order.

    The logits of one batch are in memory at a time. Where corrupt images are skipped, the N are
    those at `batches.intact`. `on_progress` is called with the number of images done and in all.
    """
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in classifiers}
    done = 0
    with torch.inference_mode(), autocast(device, precision):
        for batch in batches.in_order():
            views = {model: to_device(images, device) for model, images in batch.views.items()}
            for name, classifier in classifiers.items():
                logits = classifier.logits(views[classifier.preprocess])
                rows = reduce(logits.float().cpu().numpy(), batch.indices.numpy())
                parts[name].append(rows)
            done += len(batch.indices)
            if on_progress is not None:
                on_progress(done, batches.count)
    return {name: np.concatenate(rows) for name, rows in parts.items()}
