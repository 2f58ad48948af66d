"""Stage `cross_validate`: accuracy estimated from the few labels, where no test image has one.

The few labels are cut into folds, and teacher and student are made anew without the labels of one
fold, on which they are then measured. That is not the accuracy of the student that is deployed,
which stays unknown.
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


def run(prepared: Path, file: Path, recipe: Recipe, hooks: Hooks) -> Scores:
    """Estimate accuracy from the few labels, and write it to a JSON file.

    Args:
        prepared: folder written by the stage `prepare`.
        file: to write.
        recipe: how teacher and student are made.
        hooks: told of each fold beforehand.

    Returns:
        `cross_validated` -> who -> percent of the held-out labels that are met; `counts` -> labels,
        folds. There is no cross-validation without two labels of each class, nor of an imported
        teacher, which may have seen them all.

    Raises:
        MissingFile: images or weights are missing.
        BadArtifact: the prepared data set does not hold what it should.
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
    return {who: percent(found) for who, found in hits.items()}


def _hold_out(held_out: Labelled, prepared: Path, out: Path, data_root: Path) -> None:
    """Write the prepared data set anew: some of its few labels are for testing only."""
    content = read_split(prepared)
    content["images"] = str(image_root(prepared, data_root=data_root).resolve())
    taken = {path for path, _ in held_out}
    content["few_shot"] = [row for row in content["few_shot"] if row[0] not in taken]
    content["test"] = [list(row) for row in held_out]
    write_prepared(out, content, read_unlabelled(prepared))
