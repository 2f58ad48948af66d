"""Cross-validation and agreement: the stage `evaluate` where no test image has a label.

How often the student agrees with its teacher is measured on the unlabelled pictures. Accuracy is
estimated by cross-validation: the few labels are cut into folds, and teacher and student are made
anew without the labels of one fold, on which they are then measured. Neither is the accuracy of
the student that is deployed, so the metrics say `accuracy: unknown`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pd_core.core.artifacts import read_json, write_json
from pd_core.core.atomic import write_folder
from pd_core.core.config import Clips, Compute, StagePaths
from pd_core.core.hooks import NO_HOOKS, Hooks, OnNote
from pd_core.core.options import Computed
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, eval_transform
from pd_core.data.loading.prepared import (
    Labelled,
    image_root,
    read_prepared,
    read_split,
    read_unlabelled,
    write_prepared,
)
from pd_core.evaluation import evaluate
from pd_core.evaluation.metrics import EvaluateConfig
from pd_core.models.class_vectors import logits_of
from pd_core.models.precision import set_threads
from pd_core.training.loop.fit import Run
from pd_core.training.student import stage as student_stage
from pd_core.training.student.config import StudentConfig
from pd_core.training.teacher import class_vectors
from pd_core.training.teacher import stage as teacher_stage
from pd_core.training.teacher.config import TeacherConfig

UNKNOWN: dict[str, str] = {"accuracy": "unknown"}
"""What `metrics.json` says besides its numbers."""

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Recipe:
    """How teacher and student were made, to make them again."""

    teacher: TeacherConfig
    student: StudentConfig
    evaluation: EvaluateConfig
    compute: Compute

    @property
    def clips(self) -> Clips:
        """The CLIPs of both."""
        return Clips(self.student, self.teacher)

    def follow(self, folder: Path) -> list[dict[str, Any]]:
        """Make both from `folder / "prepared"` and return what they say about its test pictures."""
        names = ("prepared", "teacher", "vectors", "student", "evaluation")
        paths = StagePaths(*(folder / name for name in names))
        compute = self.compute.model_copy(update={"compile": False})
        # Nothing comes twice in the folds, so nothing is worth storing.
        tuning = self.teacher.model_copy(update={"frozen_features": Computed.ONLINE})
        distillation = self.student.model_copy(update={"teacher_targets": Computed.ONLINE})
        teacher_stage.run(paths.prepared, paths.teacher, tuning, Run(compute))
        class_vectors.run(
            paths.prepared, paths.teacher, paths.vectors, model=tuning.model,
            weights=tuning.weights, threads=compute.threads, device=compute.device,
        )  # fmt: skip
        student_stage.run(paths, distillation, tuning, Run(compute))
        test = self.evaluation.model_copy(update={"split": "test"})
        evaluate.run(paths, test, self.clips, compute, NO_HOOKS)
        rows: list[dict[str, Any]] = read_json(paths.evaluation / "predictions.json")
        return rows


def run(paths: StagePaths, recipe: Recipe, hooks: Hooks) -> Scores:
    """Write `metrics.json` and `predictions.json` of a data set without labelled test pictures.

    Args:
        paths: folders of the earlier stages, and of this one.
        recipe: how they made teacher and student.
        hooks: told of progress in images, of the agreement; of each fold beforehand.

    Returns:
        `agreement` -> who -> percent of the unlabelled pictures on which the best class is the
        tuned teacher's; `cross_validated` -> who -> percent of the held-out labels that are met;
        `counts` -> unlabelled pictures, labels, folds. There is no cross-validation without two
        labels of each class, nor of an imported teacher, which may have seen them all.

    Raises:
        MissingFile: pictures, weights or an earlier stage are missing.
        BadArtifact: the artifacts of earlier stages do not fit together.
    """
    compute, config = recipe.compute, recipe.evaluation
    set_threads(compute.threads)
    content = read_prepared(paths.prepared, data_root=compute.data_root)
    unlabelled = read_unlabelled(paths.prepared)
    classifiers, student = evaluate.everybody(paths, content.classes, recipe.clips, compute)
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
    parts: Sequence[Labelled] = ()
    if recipe.teacher.original is None:
        parts = cut(content.few_shot, config.folds, random.Random(compute.seed))
    scores: Scores = {
        "agreement": {
            who: _percent(labels == chosen["teacher"])
            for who, labels in chosen.items()
            if who != "teacher"
        },
        "counts": {
            "unlabelled": len(judged), "labels": len(content.few_shot), "folds": len(parts),
            **({"skipped": len(batches.skipped)} if batches.skipped else {}),
        },
    }  # fmt: skip
    if parts:
        scores["cross_validated"] = _cross_validate(paths.prepared, parts, recipe, hooks.on_note)
    with write_folder(paths.evaluation) as folder:
        write_json(folder / "metrics.json", {**UNKNOWN, **scores})
        rows = [
            {"path": path, **{who: int(labels[row]) for who, labels in chosen.items()}}
            for row, path in enumerate(judged)
        ]
        write_json(folder / "predictions.json", rows)
    return scores


def cut(items: Labelled, folds: int, rng: random.Random) -> tuple[Labelled, ...]:
    """Cut labelled pictures into folds of nearly equal size, each class spread over all of them.

    Args:
        items: path and label of each picture.
        folds: how many; no more than the rarest class has pictures.
        rng: source of the draw.

    Returns:
        The folds; none if a class has a single picture.
    """
    members: dict[int, list[str]] = {}
    for path, label in items:
        members.setdefault(label, []).append(path)
    folds = min(folds, *map(len, members.values())) if members else 0
    if folds < 2:
        return ()
    parts: list[list[tuple[str, int]]] = [[] for _ in range(folds)]
    place = 0  # runs on from class to class, so that what is left over is spread too
    for label in sorted(members):
        for path in rng.sample(members[label], len(members[label])):
            parts[place % folds].append((path, label))
            place += 1
    return tuple(map(tuple, parts))


def _cross_validate(
    prepared: Path, parts: Sequence[Labelled], recipe: Recipe, on_note: OnNote
) -> dict[str, float]:
    """Make teacher and student without each fold's labels; return how many of these they met."""
    hits: dict[str, list[bool]] = {who: [] for who in evaluate.WHO}
    for number, held_out in enumerate(parts, start=1):
        on_note(f"cross-validation: fold {number} of {len(parts)}")
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            _hold_out(held_out, prepared, folder / "prepared", recipe.compute.data_root)
            for row in recipe.follow(folder):
                for who, found in hits.items():
                    found.append(row[who][1] == row["label"])
    return {who: _percent(found) for who, found in hits.items()}


def _hold_out(held_out: Labelled, prepared: Path, out: Path, data_root: Path) -> None:
    """Write the prepared data set anew: some of its few labels are for testing only."""
    content = read_split(prepared)
    content["images"] = str(image_root(prepared, data_root=data_root).resolve())
    taken = {path for path, _ in held_out}
    content["few_shot"] = [row for row in content["few_shot"] if row[0] not in taken]
    content["test"] = [list(row) for row in held_out]
    write_prepared(out, content, read_unlabelled(prepared))


def _percent(hits: Sequence[bool] | NDArray[np.bool_]) -> float:
    return round(100 * float(np.mean(hits)), 4)
