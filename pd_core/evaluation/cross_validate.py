"""Stage `cross_validate`: accuracy estimated from the few labels, where no test image has one.

The labels are cut into folds; teacher and student are trained without each fold in turn and
measured on it. The accuracy of the deployed student stays unknown.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pd_core.core.artifacts import read_json, write_json
from pd_core.core.config import Clips, Compute, StagePaths
from pd_core.core.hooks import NO_HOOKS, Hooks, OnNote
from pd_core.core.options import Computed
from pd_core.data.loading.prepared import (
    Labelled,
    image_root,
    read_prepared,
    read_split,
    read_unlabelled,
    write_prepared,
)
from pd_core.evaluation import evaluate
from pd_core.evaluation.evaluate import Scores, percent
from pd_core.evaluation.metrics import EvaluateConfig
from pd_core.training.loop.fit import Run
from pd_core.training.student import stage as student_stage
from pd_core.training.student.config import StudentConfig
from pd_core.training.teacher import class_vectors
from pd_core.training.teacher import stage as teacher_stage
from pd_core.training.teacher.config import TeacherConfig


@dataclass(frozen=True)
class Recipe:
    """Configurations of teacher, student and evaluation, to repeat them on a fold."""

    teacher: TeacherConfig
    student: StudentConfig
    evaluation: EvaluateConfig
    compute: Compute

    @property
    def clips(self) -> Clips:
        """The CLIPs of both."""
        return Clips(self.student, self.teacher)

    def follow(self, folder: Path) -> list[dict[str, Any]]:
        """Train and evaluate on `folder / "prepared"`; return the rows of `predictions.json`."""
        names = ("prepared", "teacher", "vectors", "student", "evaluation")
        paths = StagePaths(*(folder / name for name in names))
        compute = self.compute.model_copy(update={"compile": False})
        # No view comes twice in the folds, so caching gains nothing.
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


def run(prepared: Path, file: Path, recipe: Recipe, hooks: Hooks) -> Scores:
    """Estimate accuracy from the few labels, and write it to a JSON file.

    Args:
        prepared: output folder of the stage `prepare`.
        file: that is written.
        recipe: of teacher and student.
        hooks: a note announces each fold.

    Returns:
        `cross_validated` -> model -> accuracy on the held-out labels, percent; `counts` -> labels,
        folds. There are no folds without two labels of each class, nor for an imported teacher,
        which may have seen all labels.

    Raises:
        MissingFile: images or weights are missing.
        BadArtifact: the prepared data set is invalid.
    """
    content = read_prepared(prepared, data_root=recipe.compute.data_root)
    parts: Sequence[Labelled] = ()
    if recipe.teacher.original is None:
        parts = cut(content.few_shot, recipe.evaluation.folds, random.Random(recipe.compute.seed))
    scores: Scores = {"counts": {"labels": len(content.few_shot), "folds": len(parts)}}
    if parts:
        scores["cross_validated"] = _cross_validate(prepared, parts, recipe, hooks.on_note)
    write_json(file, scores)
    return scores


def cut(items: Labelled, folds: int, rng: random.Random) -> tuple[Labelled, ...]:
    """Cut labelled images into stratified folds of nearly equal size.

    Args:
        items: path and label of each image.
        folds: number of folds; at most the images of the rarest class.
        rng: source of the draw.

    Returns:
        The folds; none if a class has a single image.
    """
    members: dict[int, list[str]] = {}
    for path, label in items:
        members.setdefault(label, []).append(path)
    folds = min(folds, *map(len, members.values())) if members else 0
    if folds < 2:
        return ()
    parts: list[list[tuple[str, int]]] = [[] for _ in range(folds)]
    position = 0  # goes on from class to class, so that remainders are spread too
    for label in sorted(members):
        for path in rng.sample(members[label], len(members[label])):
            parts[position % folds].append((path, label))
            position += 1
    return tuple(map(tuple, parts))


def _cross_validate(
    prepared: Path, parts: Sequence[Labelled], recipe: Recipe, on_note: OnNote
) -> dict[str, float]:
    """Return each model's accuracy on the folds it was trained without, percent."""
    hits: dict[str, list[bool]] = {model: [] for model in evaluate.MODELS}
    for number, held_out in enumerate(parts, start=1):
        on_note(f"cross-validation: fold {number} of {len(parts)}")
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            _hold_out(held_out, prepared, folder / "prepared", recipe.compute.data_root)
            for row in recipe.follow(folder):
                for model, correct in hits.items():
                    correct.append(row[model][1] == row["label"])
    return {model: percent(correct) for model, correct in hits.items()}


def _hold_out(held_out: Labelled, prepared: Path, out: Path, data_root: Path) -> None:
    """Write a copy of the prepared data set with some of its few labels as its test images."""
    content = read_split(prepared)
    content["images"] = str(image_root(prepared, data_root=data_root).resolve())
    taken = {path for path, _ in held_out}
    content["few_shot"] = [row for row in content["few_shot"] if row[0] not in taken]
    content["test"] = [list(row) for row in held_out]
    write_prepared(out, content, read_unlabelled(prepared))
