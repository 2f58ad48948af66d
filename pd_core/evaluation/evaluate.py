"""Stage `evaluate`: accuracy of student and teacher, tuned and zero-shot, on test images.

Base images are classified among base classes only, novel ones among novel classes only (the
paper's base-to-novel protocol, section 4.1), and all of them among all classes. Where the teacher
saw labels of all classes, or of another data set only, there are no halves.

Shapes: N images, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pd_core.core.artifacts import write_json
from pd_core.core.atomic import write_folder
from pd_core.core.config import Clips, Compute, StagePaths
from pd_core.core.errors import BadArtifact, BadData
from pd_core.core.hooks import Hooks
from pd_core.core.options import Selection
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, eval_transform
from pd_core.data.loading.prepared import Labelled, Prepared, read_prepared, read_unlabelled
from pd_core.data.loading.splits import Protocol
from pd_core.evaluation.metrics import EvaluateConfig
from pd_core.models.class_vectors import FILE as VECTORS_FILE
from pd_core.models.class_vectors import (
    Classifier,
    ClassVectors,
    Reduction,
    best_class,
    distilled,
    reduced_logits,
    taught,
    zero_shot,
)
from pd_core.models.clip import load_clip
from pd_core.models.precision import set_threads
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher

MODELS = ("zero_shot_student", "zero_shot_teacher", "teacher", "student")
SELECTION = "selection"
"""Key of `metrics.json` if the student's epoch was selected on test images."""

Scores = dict[str, dict[str, float]]

UNKNOWN: dict[str, str] = {"accuracy": "unknown"}
"""In `metrics.json` where no test image has a label."""


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
        """Return all four numbers, with four decimals."""
        numbers = {"base": self.base, "novel": self.novel, "hm": self.hm, "all": self.all}
        return {key: round(value, 4) for key, value in numbers.items()}


def accuracy(best: NDArray[np.int64], labels: NDArray[np.int64], first_novel: int) -> Accuracy:
    """Compute the top-1 accuracy.

    Args:
        best: (N, 2), as from `predictions`.
        labels: (N,).
        first_novel: labels below it are base classes.

    Returns:
        Base among base classes, novel among novel ones, all among all.
    """
    half, whole = best.T
    base = labels < first_novel
    return Accuracy(
        base=_percent(half[base] == labels[base]),
        novel=_percent(half[~base] == labels[~base]),
        all=_percent(whole == labels),
    )


def predictions(
    logits: NDArray[np.float32], labels: NDArray[np.int64], first_novel: int
) -> NDArray[np.int64]:
    """Return the best class of each image within its half, and among all classes, (N, 2).

    Args:
        logits: (N, C).
        labels: (N,), for the half of each image.
        first_novel: labels below it are base classes.
    """
    in_base = np.arange(logits.shape[1]) < first_novel
    same_half = (labels < first_novel)[:, None] == in_base[None, :]
    half = np.where(same_half, logits, -np.inf).argmax(axis=1)
    return np.stack([half, logits.argmax(axis=1)], axis=1)


def is_measurable(prepared: Path, split: str) -> bool:
    """Return True if accuracy can be measured: there are test images, or the split is another."""
    return split != "test" or bool(read_prepared(prepared).test)


def run(
    paths: StagePaths,
    config: EvaluateConfig,
    clips: Clips,
    compute: Compute,
    hooks: Hooks,
    models: Sequence[str] = MODELS,
) -> Scores:
    """Measure accuracy on labelled images; write `metrics.json` and `predictions.json`.

    Args:
        paths: folders of the stages.
        config: of the evaluation.
        clips: of student and teacher.
        compute: device, precision and the like. Corrupt images that are skipped are in no
            prediction, and `metrics.json` has their number.
        hooks: progress is in images.
        models: those of `MODELS` that are measured.

    Returns:
        model -> {base, novel, hm, all}, percent; `all` alone where there are no halves.

    Raises:
        MissingFile: images, weights or an earlier stage's output are missing.
        BadArtifact: the artifacts of earlier stages do not fit together.
        BadData: there are no images to evaluate on, or one is corrupt.
    """
    set_threads(compute.threads)
    content = read_prepared(paths.prepared, data_root=compute.data_root)
    classifiers, student = load_classifiers(paths, content.classes, clips, compute)
    predicted = predict(
        {name: classifiers[name] for name in models},
        content, config, compute, hooks,
    )  # fmt: skip
    metrics = predicted.metrics()
    selected = student.selection is Selection.BEST_ON_TEST_AS_PUBLISHED
    caution = {SELECTION: str(student.selection)} if selected else {}
    with write_folder(paths.evaluation) as folder:
        write_json(folder / "metrics.json", {**metrics, **predicted.note(), **caution})
        write_json(folder / "predictions.json", predicted.rows())
    return metrics


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of labelled images."""

    items: Labelled  # path and label of each of the N images
    best: Mapping[str, NDArray[np.int64]]  # (N, 2) by model, as from `predictions`
    first_novel: int  # labels below it are base classes
    protocol: Protocol  # decides which numbers are reported
    skipped: int = 0  # corrupt images, which are not among the N

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels (N,)."""
        return np.array([label for _, label in self.items])

    def metrics(self) -> Scores:
        """Return model -> {base, novel, hm, all}, percent; `all` alone without two halves."""
        scores = {
            model: accuracy(best, self.labels, self.first_novel).as_dict()
            for model, best in self.best.items()
        }
        if self.protocol is Protocol.BASE_TO_NOVEL:
            return scores
        return {model: {"all": numbers["all"]} for model, numbers in scores.items()}

    def note(self) -> dict[str, int]:
        """Return the number of skipped images, if there are any."""
        return {"skipped": self.skipped} if self.skipped else {}

    def rows(self) -> list[dict[str, object]]:
        """Return each image's path, label, and each model's best class of its half and of all."""
        return [
            {
                "path": path, "label": label,
                **{model: best[row].tolist() for model, best in self.best.items()},
            }
            for row, (path, label) in enumerate(self.items)
        ]  # fmt: skip


def run_unlabelled(
    paths: StagePaths, config: EvaluateConfig, clips: Clips, compute: Compute, hooks: Hooks
) -> Scores:
    """Write `metrics.json` and `predictions.json` of a data set without labelled test images.

    The agreement with the tuned teacher is measured on the unlabelled images. That is no accuracy,
    so the metrics have `accuracy: unknown`.

    Args:
        paths: folders of the stages.
        config: batch size.
        clips: of student and teacher.
        compute: device, precision and the like; skipped corrupt images are counted.
        hooks: progress is in images.

    Returns:
        `agreement` -> model -> percent of the images with the teacher's best class; `counts` ->
        unlabelled images, labels.

    Raises:
        MissingFile: images, weights or an earlier stage's output are missing.
        BadArtifact: the artifacts of earlier stages do not fit together.
    """
    set_threads(compute.threads)
    content = read_prepared(paths.prepared, data_root=compute.data_root)
    unlabelled = read_unlabelled(paths.prepared)
    classifiers, student = load_classifiers(paths, content.classes, clips, compute)
    best, batches = _reduced(classifiers, content, unlabelled, best_class, config, compute, hooks)
    images = [unlabelled[position] for position in batches.intact]
    scores: Scores = {
        "agreement": {
            model: percent(labels == best["teacher"])
            for model, labels in best.items()
            if model != "teacher"
        },
        "counts": {
            "unlabelled": len(images), "labels": len(content.few_shot),
            **({"skipped": len(batches.skipped)} if batches.skipped else {}),
        },
    }  # fmt: skip
    with write_folder(paths.evaluation) as folder:
        write_json(folder / "metrics.json", {**UNKNOWN, **scores})
        rows = [
            {"path": path, **{model: int(labels[row]) for model, labels in best.items()}}
            for row, path in enumerate(images)
        ]
        write_json(folder / "predictions.json", rows)
    return scores


def percent(hits: Sequence[bool] | NDArray[np.bool_]) -> float:
    """Return the share of true values in percent, with four decimals."""
    return round(100 * float(np.mean(hits)), 4)


def predict(
    classifiers: Mapping[str, Classifier],
    prepared: Prepared,
    config: EvaluateConfig,
    compute: Compute,
    hooks: Hooks,
) -> Predictions:
    """Classify the labelled images of a split; as `outputs`."""
    rows = _rows(prepared, config)
    labels, first_novel = np.array([label for _, label in rows]), prepared.base_count

    def reduce(logits: NDArray[np.float32], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return predictions(logits, labels[positions], first_novel)

    found = outputs(classifiers, prepared, reduce, config, compute, hooks)
    return Predictions(found.items, found.rows, first_novel, prepared.protocol, found.skipped)


@dataclass(frozen=True)
class Outputs:
    """Reduced logits of classifiers on labelled images."""

    items: Labelled  # path and label of each of the N images
    rows: Mapping[str, NDArray[Any]]  # (N, ...) by model
    skipped: int  # corrupt images, which are not among the N


def outputs(
    classifiers: Mapping[str, Classifier],
    prepared: Prepared,
    reduce: Reduction,
    config: EvaluateConfig,
    compute: Compute,
    hooks: Hooks,
) -> Outputs:
    """Reduce the logits of the labelled images of a split.

    Args:
        classifiers: by model.
        prepared: the data set.
        reduce: from logits to what is needed of them.
        config: split and batch size.
        compute: device, precision and the like.
        hooks: progress is in images.

    Raises:
        BadData: there are no images to evaluate on, or one is corrupt.
    """
    items = _rows(prepared, config)
    images = [path for path, _ in items]
    found, batches = _reduced(classifiers, prepared, images, reduce, config, compute, hooks)
    intact = tuple(items[position] for position in batches.intact)
    return Outputs(intact, found, len(batches.skipped))


def _rows(prepared: Prepared, config: EvaluateConfig) -> Labelled:
    items = prepared.test if config.split == "test" else prepared.val
    if not items:
        raise BadData(
            f"data set '{prepared.dataset}' has no labelled {config.split} images to evaluate on;"
            " add some, or evaluate on the other split"
        )
    return items


def _reduced(
    classifiers: Mapping[str, Classifier],
    prepared: Prepared,
    images: Sequence[str],
    reduce: Reduction,
    config: EvaluateConfig,
    compute: Compute,
    hooks: Hooks,
) -> tuple[dict[str, NDArray[Any]], ImageBatches]:
    """Return the rows of intact images by model, and the batches, which know the corrupt ones."""
    models = [classifier.preprocess for classifier in classifiers.values()]
    batches = ImageBatches(
        ImageStore(prepared.images), images, eval_transform(*models),
        batch_size=config.batch_size, workers=compute.workers, on_corrupt=compute.on_corrupt,
    )  # fmt: skip
    device = torch.device(compute.device)
    precision = compute.precision
    rows = reduced_logits(classifiers, batches, device, precision, reduce, hooks.on_progress)
    return rows, batches


def load_classifiers(
    paths: StagePaths, names: Sequence[str], clips: Clips, compute: Compute
) -> tuple[dict[str, Classifier], Student]:
    """Load all models that are measured.

    Args:
        paths: folders of the stages.
        names: of the C classes.
        clips: of student and teacher.
        compute: the device.

    Returns:
        Classifiers by the names in `MODELS`, and the student.

    Raises:
        MissingFile: an earlier stage has not run.
        BadArtifact: the artifacts of earlier stages do not fit together.
    """
    small, large = (load_clip(clip.model, clip.weights, device=compute.device) for clip in clips)
    vectors = ClassVectors.load(
        paths.vectors / VECTORS_FILE, remedy=f"run `dvc repro class_vectors@{paths.vectors.name}`"
    ).to(large.device)
    if vectors.names != tuple(names) or vectors.vectors.shape[1] != large.joint_width:
        raise BadArtifact(
            f"class vectors in '{paths.vectors}' are {len(vectors.names)} of width"
            f" {vectors.vectors.shape[1]}, not those of the data set's {len(names)} classes and of"
            f" width {large.joint_width}; run `dvc repro class_vectors@{paths.vectors.name}`"
        )
    teacher = Teacher.load(
        paths.teacher / "teacher.safetensors", large,
        remedy=f"run `dvc repro teacher@{paths.teacher.name}`",
    )  # fmt: skip
    student = Student.load(
        paths.student / "student.safetensors", small,
        remedy=f"run `dvc repro student@{paths.student.name}`",
    )  # fmt: skip
    classifiers = {
        "zero_shot_student": zero_shot(small, names),
        "zero_shot_teacher": zero_shot(large, names),
        "teacher": taught(teacher, vectors),
        "student": distilled(student, vectors),
    }
    return classifiers, student


def _percent(hits: NDArray[np.bool_]) -> float:
    return 100 * float(hits.mean()) if len(hits) else 0.0
