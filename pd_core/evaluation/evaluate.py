"""Stage `evaluate`: accuracy of student and teacher, tuned and zero-shot, on test pictures.

Base images are compared with base classes only, novel ones with novel classes only (the paper's
base-to-novel protocol, section 4.1), and all of them with all classes at once. Where the teacher
saw labels of all classes, or of another data set only, there are no halves to compare.

Shapes: B images, C classes, D the teacher's joint width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from pd_core.data.loading.prepared import (
    Labelled,
    Prepared,
    read_prepared,
    read_unlabelled,
)
from pd_core.data.loading.splits import Protocol
from pd_core.evaluation.metrics import EvaluateConfig
from pd_core.models.class_vectors import FILE as VECTORS_FILE
from pd_core.models.class_vectors import Classifier, ClassVectors, distilled, logits_of, zero_shot
from pd_core.models.clip import ClipTowers, load_clip
from pd_core.models.precision import set_threads
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher

WHO = ("zero_shot_student", "zero_shot_teacher", "teacher", "student")
SELECTION = "selection"
"""Key of `metrics.json` that is there if the student's epoch was chosen on test images."""

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
        """Return all four numbers, rounded to what the file keeps."""
        numbers = {"base": self.base, "novel": self.novel, "hm": self.hm, "all": self.all}
        return {key: round(value, 4) for key, value in numbers.items()}


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


def is_measurable(prepared: Path, split: str) -> bool:
    """Whether accuracy can be measured: a split other than `test` was asked for on purpose."""
    return split != "test" or bool(read_prepared(prepared).test)


def run(
    paths: StagePaths,
    config: EvaluateConfig,
    clips: Clips,
    compute: Compute,
    hooks: Hooks,
    who: Sequence[str] = WHO,
) -> dict[str, dict[str, float]]:
    """Stage `evaluate`: write `metrics.json` and `predictions.json`.

    Args:
        paths: folders of the earlier stages, and of this one.
        config: of the evaluation.
        clips: of student and teacher.
        compute: how to compute. A damaged picture that is skipped counts for nobody and is in no
            prediction, and `metrics.json` says how many these are.
        hooks: told of progress in images.
        who: of `WHO`, those who are measured.

    Returns:
        `who` -> {base, novel, hm, all}, percent; `all` alone where there are no halves.

    Raises:
        MissingFile: pictures, weights or an earlier stage are missing.
        BadArtifact: the artifacts of earlier stages do not fit together.
        BadData: there are no images to evaluate on, or one is damaged.
    """
    set_threads(compute.threads)
    content = read_prepared(paths.prepared, data_root=compute.data_root)
    classifiers, trained = everybody(paths, content.classes, clips, compute)
    judged = judge(
        {name: classifiers[name] for name in who},
        content, trained.towers.image_size, config, compute, hooks,
    )  # fmt: skip
    metrics = judged.metrics()
    with write_folder(paths.evaluation) as folder:
        write_json(folder / "metrics.json", {**metrics, **judged.note(), **_caution(trained)})
        write_json(folder / "predictions.json", judged.rows())
    return metrics


@dataclass(frozen=True)
class Judged:
    """What classifiers say about labelled images.

    Attributes:
        items: path and label of each of the N images.
        logits: (N, C) by who.
        first_novel: labels below it are base classes.
        protocol: which numbers mean something.
        skipped: damaged images, which are not among the N.
    """

    items: Labelled
    logits: Mapping[str, NDArray[np.float32]]
    first_novel: int
    protocol: Protocol
    skipped: int = 0

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels (N,)."""
        return np.array([label for _, label in self.items])

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return `who` -> {base, novel, hm, all}, percent; `all` alone without two halves."""
        return {who: self._numbers(logits) for who, logits in self.logits.items()}

    def _numbers(self, logits: NDArray[np.float32]) -> dict[str, float]:
        numbers = accuracy(logits, self.labels, self.first_novel).as_dict()
        if self.protocol is Protocol.BASE_TO_NOVEL:
            return numbers
        return {"all": numbers["all"]}

    def note(self) -> dict[str, int]:
        """Return how many images were skipped, if any were."""
        return {"skipped": self.skipped} if self.skipped else {}

    def rows(self) -> list[dict[str, object]]:
        """Return for each image its path, label, and each one's best class of its half and all."""
        chosen = {
            who: predictions(logits, self.labels, self.first_novel)
            for who, logits in self.logits.items()
        }
        return [
            {
                "path": path,
                "label": label,
                **{who: [int(half[row]), int(whole[row])] for who, (half, whole) in chosen.items()},
            }
            for row, (path, label) in enumerate(self.items)
        ]


def run_unlabelled(
    paths: StagePaths, config: EvaluateConfig, clips: Clips, compute: Compute, hooks: Hooks
) -> Scores:
    """Write `metrics.json` and `predictions.json` of a data set without labelled test images.

    How often the student agrees with its teacher is measured on the unlabelled images. That is no
    accuracy, so the metrics have `accuracy: unknown`.

    Args:
        paths: folders of the earlier stages, and of this one.
        config: batch size.
        clips: of student and teacher.
        compute: how to compute; damaged images that are skipped are counted.
        hooks: told of progress in images.

    Returns:
        `agreement` -> who -> percent of the unlabelled images on which the best class is the tuned
        teacher's; `counts` -> unlabelled images, labels.

    Raises:
        MissingFile: images, weights or an earlier stage are missing.
        BadArtifact: the artifacts of earlier stages do not fit together.
    """
    set_threads(compute.threads)
    content = read_prepared(paths.prepared, data_root=compute.data_root)
    unlabelled = read_unlabelled(paths.prepared)
    classifiers, student = everybody(paths, content.classes, clips, compute)
    batches = ImageBatches(
        ImageStore(content.images),
        unlabelled,
        eval_transform(student.towers.image_size),
        batch_size=config.batch_size,
        workers=compute.workers,
        on_corrupt=compute.on_corrupt,
    )
    device = torch.device(compute.device)
    logits = logits_of(classifiers, batches, device, compute.precision, hooks.on_progress)
    chosen = {who: values.argmax(axis=1) for who, values in logits.items()}
    judged = [unlabelled[place] for place in batches.intact]
    scores: Scores = {
        "agreement": {
            who: percent(labels == chosen["teacher"])
            for who, labels in chosen.items()
            if who != "teacher"
        },
        "counts": {
            "unlabelled": len(judged), "labels": len(content.few_shot),
            **({"skipped": len(batches.skipped)} if batches.skipped else {}),
        },
    }  # fmt: skip
    with write_folder(paths.evaluation) as folder:
        write_json(folder / "metrics.json", {**UNKNOWN, **scores})
        rows = [
            {"path": path, **{who: int(labels[row]) for who, labels in chosen.items()}}
            for row, path in enumerate(judged)
        ]
        write_json(folder / "predictions.json", rows)
    return scores


def percent(hits: Sequence[bool] | NDArray[np.bool_]) -> float:
    """Return how many percent are true, with four decimals."""
    return round(100 * float(np.mean(hits)), 4)


def judge(
    classifiers: Mapping[str, Classifier],
    prepared: Prepared,
    image_size: int,
    config: EvaluateConfig,
    compute: Compute,
    hooks: Hooks,
) -> Judged:
    """Let classifiers judge the labelled images of a split.

    Args:
        classifiers: by who they are.
        prepared: the data set.
        image_size: of the towers, in pixels.
        config: which split, and how many images at a time.
        compute: how to compute.
        hooks: told of progress in images.

    Raises:
        BadData: there are no images to evaluate on, or one is damaged.
    """
    items = _items(prepared, config.split)
    batches = ImageBatches(
        ImageStore(prepared.images),
        [path for path, _ in items],
        eval_transform(image_size),
        batch_size=config.batch_size,
        workers=compute.workers,
        on_corrupt=compute.on_corrupt,
    )
    device = torch.device(compute.device)
    logits = logits_of(classifiers, batches, device, compute.precision, hooks.on_progress)
    intact = tuple(items[place] for place in batches.intact)
    skipped = len(batches.skipped)
    return Judged(intact, logits, prepared.base_count, prepared.protocol, skipped)


def _caution(student: Student) -> dict[str, str]:
    """Say so if the student's epoch was chosen on test images."""
    chosen = student.selection is Selection.BEST_ON_TEST_AS_PUBLISHED
    return {SELECTION: str(student.selection)} if chosen else {}


def everybody(
    paths: StagePaths, names: Sequence[str], clips: Clips, compute: Compute
) -> tuple[dict[str, Classifier], Student]:
    """Load all who are measured.

    Args:
        paths: folders of the stages.
        names: of the C classes.
        clips: of student and teacher.
        compute: says on which device.

    Returns:
        Classifiers by the names in `WHO`, and the student.

    Raises:
        MissingFile: an earlier stage has not run.
        BadArtifact: the artifacts of earlier stages do not fit together.
    """
    small, large = (load_clip(clip.model, clip.weights, device=compute.device) for clip in clips)
    teacher, vectors, student = paths.teacher, paths.vectors, paths.student
    known = ClassVectors.load(
        vectors / VECTORS_FILE, remedy=f"run `dvc repro class_vectors@{vectors.name}`"
    ).to(large.device)
    _check_vectors(known, names, large, vectors)
    tuned = Teacher.load(
        teacher / "teacher.safetensors", large, remedy=f"run `dvc repro teacher@{teacher.name}`"
    )
    trained = Student.load(
        student / "student.safetensors", small, remedy=f"run `dvc repro student@{student.name}`"
    )
    classifiers = {
        "zero_shot_student": zero_shot(small, names),
        "zero_shot_teacher": zero_shot(large, names),
        "teacher": Classifier(tuned.image_features, known, tuned.logit_scale),
        "student": distilled(trained, known),
    }
    return classifiers, trained


def _check_vectors(
    known: ClassVectors, names: Sequence[str], large: ClipTowers, folder: Path
) -> None:
    """Refuse class vectors of other classes, or of a teacher of another width."""
    if known.names != tuple(names) or known.vectors.shape[1] != large.joint_width:
        raise BadArtifact(
            f"class vectors in '{folder}' are {len(known.names)} of width"
            f" {known.vectors.shape[1]}, not those of the data set's {len(names)} classes and of"
            f" width {large.joint_width}; run `dvc repro class_vectors@{folder.name}`"
        )


def _items(prepared: Prepared, split: str) -> Labelled:
    items = prepared.test if split == "test" else prepared.val
    if not items:
        raise BadData(
            f"data set '{prepared.dataset}' has no labelled {split} images to evaluate on;"
            " add some, or evaluate on the other split"
        )
    return items


def _percent(hits: NDArray[np.bool_]) -> float:
    return 100 * float(hits.mean()) if len(hits) else 0.0
