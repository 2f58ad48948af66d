"""Stage `evaluate`: accuracy of student and teacher, tuned and zero-shot, on test pictures.

Base images are compared with base classes only, novel ones with novel classes only (the paper's
base-to-novel protocol, section 4.1), and all of them with all classes at once.

Shapes: B images, C classes, D the teacher's joint width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pd_core.artifacts import write_folder, write_json
from pd_core.class_vectors import FILE as VECTORS_FILE
from pd_core.class_vectors import ClassVectors, build
from pd_core.data.images import ImageBatches, ImageStore, eval_transform
from pd_core.data.prepared import Labelled, Prepared, read_prepared
from pd_core.errors import BadData
from pd_core.models.clip import ClipTowers, load_clip
from pd_core.models.compute import Precision, autocast, set_threads
from pd_core.models.student import Student
from pd_core.models.teacher import TEMPLATE, Teacher

WHO = ("zero_shot_student", "zero_shot_teacher", "teacher", "student")
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


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy in percent."""

    base: float
    novel: float
    all: float

    @property
    def hm(self) -> float:
        """Harmonic mean of base and novel."""
        total = self.base + self.novel
        return 2 * self.base * self.novel / total if total else 0.0

    def as_dict(self) -> dict[str, float]:
        """Return all four numbers, rounded to what the file keeps."""
        numbers = {"base": self.base, "novel": self.novel, "hm": self.hm, "all": self.all}
        return {key: round(value, 4) for key, value in numbers.items()}


def zero_shot(towers: ClipTowers, names: Sequence[str], template: str = TEMPLATE) -> Classifier:
    """Make the classifier of a CLIP without any tuning."""
    plain = Teacher(towers, template=template).eval()
    return Classifier(plain.image_features, build(plain, names), plain.logit_scale)


def logits_of(
    classifiers: dict[str, Classifier],
    batches: ImageBatches,
    device: torch.device,
    precision: Precision,
    on_progress: OnProgress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Let every classifier judge every image once, in order.

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
            on_device = images.to(device, non_blocking=True)
            for who, classifier in classifiers.items():
                parts[who].append(classifier.logits(on_device).float().cpu())
            done += len(indices)
            if on_progress is not None:
                on_progress(done, batches.count)
    return {who: torch.cat(logits).numpy() for who, logits in parts.items()}


def accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64], first_novel: int) -> Accuracy:
    """Count how often the best class is the right one.

    Args:
        logits: (N, C).
        labels: (N,).
        first_novel: labels below it are base classes.

    Returns:
        Base among base classes, novel among novel ones, all among all.
    """
    half, whole = predictions(logits, labels, first_novel)
    base = labels < first_novel
    return Accuracy(
        base=_percent(half[base] == labels[base]),
        novel=_percent(half[~base] == labels[~base]),
        all=_percent(whole == labels),
    )


def predictions(
    logits: NDArray[np.float32], labels: NDArray[np.int64], first_novel: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Name the best class of each image: within its half, and among all classes.

    Args:
        logits: (N, C).
        labels: (N,); they decide only which half an image belongs to.
        first_novel: labels below it are base classes.

    Returns:
        Two arrays (N,) of labels.
    """
    in_base = np.arange(logits.shape[1]) < first_novel
    same_half = (labels < first_novel)[:, None] == in_base[None, :]
    return np.where(same_half, logits, -np.inf).argmax(axis=1), logits.argmax(axis=1)


def run(
    prepared: Path,
    teacher: Path,
    vectors: Path,
    student: Path,
    out: Path,
    *,
    model: str,
    weights: Path | str | None,
    teacher_model: str,
    teacher_weights: Path | str | None,
    data_root: Path = Path(),
    split: str,
    batch_size: int,
    threads: int = 1,
    workers: int = 0,
    device: torch.device | str = "cpu",
    precision: Precision = Precision.FP32,
    on_progress: OnProgress | None = None,
) -> dict[str, dict[str, float]]:
    """Stage `evaluate`: write `metrics.json` and `predictions.json`.

    Args:
        prepared: folder written by the stage `prepare`.
        teacher: folder written by the stage `teacher`.
        vectors: folder written by the stage `class_vectors`.
        student: folder written by the stage `student`.
        out: folder to write into.
        model: name of the student's CLIP.
        weights: of that CLIP.
        teacher_model: name of the teacher's CLIP.
        teacher_weights: of that CLIP.
        data_root: folder that holds the photo data sets.
        split: `test`, or `val` to choose recipes by.
        batch_size: images per step; memory only.
        threads: CPU threads; they decide the last bits.
        workers: processes that decode pictures; they change nothing.
        device: where to compute.
        precision: what the towers compute in.
        on_progress: called with images done and images in all.

    Returns:
        `who` -> {base, novel, hm, all}, percent.

    Raises:
        MissingFile: pictures, weights or an earlier stage are missing.
        BadArtifact: the artifacts of earlier stages do not fit together.
        BadData: there are no images to evaluate on.
    """
    set_threads(threads)
    content = read_prepared(prepared, data_root=data_root)
    items = _items(content, split)
    large = load_clip(teacher_model, teacher_weights, device=device)
    small = load_clip(model, weights, device=device)
    classifiers = {
        "zero_shot_student": zero_shot(small, content.classes),
        "zero_shot_teacher": zero_shot(large, content.classes),
        **_trained(small, large, teacher, vectors, student),
    }
    batches = ImageBatches(
        ImageStore(content.images),
        [path for path, _ in items],
        eval_transform(small.image_size),
        batch_size=batch_size,
        workers=workers,
    )
    logits = logits_of(classifiers, batches, large.device, precision, on_progress)
    labels = np.array([label for _, label in items])
    metrics = {who: accuracy(logits[who], labels, content.base_count).as_dict() for who in WHO}
    with write_folder(out) as folder:
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "predictions.json", _kept(items, logits, labels, content))
    return metrics


def _trained(
    small: ClipTowers, large: ClipTowers, teacher: Path, vectors: Path, student: Path
) -> dict[str, Classifier]:
    known = ClassVectors.load(
        vectors / VECTORS_FILE, remedy=f"run `dvc repro class_vectors@{vectors.name}`"
    ).to(large.device)
    tuned = Teacher.load(
        teacher / "teacher.safetensors", large, remedy=f"run `dvc repro teacher@{teacher.name}`"
    )
    distilled = Student.load(
        student / "student.safetensors", small, remedy=f"run `dvc repro student@{student.name}`"
    )
    return {
        "teacher": Classifier(tuned.image_features, known, tuned.logit_scale),
        "student": Classifier(distilled, known, distilled.logit_scale),
    }


def _items(prepared: Prepared, split: str) -> Labelled:
    items = prepared.test if split == "test" else prepared.val
    if not items:
        raise BadData(
            f"data set '{prepared.dataset}' has no labelled {split} images to evaluate on;"
            " add some, or evaluate on the other split"
        )
    return items


def _kept(
    items: Labelled,
    logits: dict[str, NDArray[np.float32]],
    labels: NDArray[np.int64],
    prepared: Prepared,
) -> list[dict[str, object]]:
    """One row an image: path, label, and for each `who` the best class of its half and of all."""
    chosen = {
        who: predictions(values, labels, prepared.base_count) for who, values in logits.items()
    }
    return [
        {
            "path": path,
            "label": label,
            **{who: [int(half[row]), int(whole[row])] for who, (half, whole) in chosen.items()},
        }
        for row, (path, label) in enumerate(items)
    ]


def _percent(hits: NDArray[np.bool_]) -> float:
    return 100 * float(hits.mean()) if len(hits) else 0.0
