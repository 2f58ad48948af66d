"""Stage `evaluate` where no test picture has a label: what can be said without one.

How often the student agrees with its teacher is measured on the unlabelled pictures. Accuracy is
estimated by cross-validation: the few labels are cut into folds, and teacher and student are made
anew without the labels of one fold, on which they are then measured. Neither is the accuracy of
the student that is deployed, so the metrics say `accuracy: unknown`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pd_core.core.artifacts import read_json, write_json
from pd_core.core.atomic import write_folder
from pd_core.core.hooks import OnProgress
from pd_core.core.options import Computed, OnCorrupt, Precision
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
from pd_core.models.class_vectors import logits_of
from pd_core.models.clip import ClipTowers, load_clip
from pd_core.models.precision import set_threads
from pd_core.training.student import stage as student_stage
from pd_core.training.teacher import class_vectors
from pd_core.training.teacher import stage as teacher_stage

UNKNOWN: dict[str, str] = {"accuracy": "unknown"}
"""What `metrics.json` says besides its numbers."""

Scores = dict[str, dict[str, float]]


def is_measurable(prepared: Path, split: str) -> bool:
    """Whether accuracy can be measured: a split other than `test` was asked for on purpose."""
    return split != "test" or bool(read_prepared(prepared).test)


def run(
    prepared: Path,
    teacher: Path,
    vectors: Path,
    student: Path,
    out: Path,
    *,
    tuning: Mapping[str, Any],
    distillation: Mapping[str, Any],
    folds: int,
    seed: int,
    batch_size: int,
    data_root: Path = Path(),
    threads: int = 1,
    workers: int = 0,
    device: torch.device | str = "cpu",
    precision: Precision = Precision.FP32,
    on_corrupt: OnCorrupt = OnCorrupt.FAIL,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Scores:
    """Write `metrics.json` and `predictions.json` of a data set without labelled test pictures.

    Args:
        prepared: folder written by the stage `prepare`.
        teacher: folder written by the stage `teacher`.
        vectors: folder written by the stage `class_vectors`.
        student: folder written by the stage `student`.
        out: folder to write into.
        tuning: options of `pretrain.run`, with the teacher's model and weights.
        distillation: options of `distill.run`, with the student's model and weights.
        folds: of the cross-validation; fewer where a class has fewer labels.
        seed: of the folds and of the training in them.
        batch_size: images per step of the measurements; memory only.
        data_root: folder that holds the photo data sets.
        threads: CPU threads; they decide the last bits.
        workers: processes that decode pictures; they change nothing.
        device: where to compute.
        precision: what the towers compute in.
        on_corrupt: what to do about a damaged picture.
        on_progress: called with images done and images in all, of the agreement.
        on_note: called with a line before each fold.

    Returns:
        `agreement` -> who -> percent of the unlabelled pictures on which the best class is the
        tuned teacher's; `cross_validated` -> who -> percent of the held-out labels that are met;
        `counts` -> unlabelled pictures, labels, folds. There is no cross-validation without two
        labels of each class, nor of an imported teacher, which may have seen them all.

    Raises:
        MissingFile: pictures, weights or an earlier stage are missing.
        BadArtifact: the artifacts of earlier stages do not fit together.
    """
    set_threads(threads)
    recipe = _Recipe(
        # Nothing comes twice in the folds, so nothing is worth storing.
        tuning={**tuning, "frozen_features": Computed.ONLINE},
        distillation={**distillation, "teacher_targets": Computed.ONLINE},
        seed=seed,
        batch_size=batch_size,
        computing={
            "data_root": data_root, "threads": threads, "workers": workers, "device": device,
            "precision": precision, "on_corrupt": on_corrupt,
        },
    )  # fmt: skip
    content = read_prepared(prepared, data_root=data_root)
    paths = read_unlabelled(prepared)
    small, large = recipe.load(device)
    classifiers, _ = evaluate.everybody(content.classes, small, large, teacher, vectors, student)
    batches = ImageBatches(
        ImageStore(content.images),
        paths,
        eval_transform(small.image_size),
        batch_size=batch_size,
        workers=workers,
        on_corrupt=on_corrupt,
    )
    logits = logits_of(classifiers, batches, large.device, precision, on_progress)
    chosen = {who: values.argmax(axis=1) for who, values in logits.items()}
    judged = [paths[place] for place in batches.intact]
    parts = () if tuning["original"] else cut(content.few_shot, folds, random.Random(seed))
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
        scores["cross_validated"] = _cross_validate(prepared, parts, recipe, on_note)
    with write_folder(out) as folder:
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


@dataclass(frozen=True)
class _Recipe:
    """How teacher and student were made, to make them again."""

    tuning: dict[str, Any]
    distillation: dict[str, Any]
    seed: int
    batch_size: int
    computing: dict[str, Any]

    def load(self, device: torch.device | str) -> tuple[ClipTowers, ClipTowers]:
        """Return the student's CLIP and the teacher's."""
        small, large = self.distillation, self.tuning
        return (
            load_clip(small["model"], small["weights"], device=device),
            load_clip(large["model"], large["weights"], device=device),
        )

    def follow(self, folder: Path) -> list[dict[str, Any]]:
        """Make both from `folder / "prepared"` and return what they say about its test pictures."""
        names = ("prepared", "teacher", "vectors", "student", "evaluation")
        prepared, teacher, vectors, student, out = (folder / name for name in names)
        clip = {key: self.tuning[key] for key in ("model", "weights")}
        teachers_clip = {f"teacher_{key}": value for key, value in clip.items()}
        students_clip = {key: self.distillation[key] for key in ("model", "weights")}
        teacher_stage.run(prepared, teacher, seed=self.seed, **self.tuning, **self.computing)
        where = {key: self.computing[key] for key in ("threads", "device")}
        class_vectors.run(prepared, teacher, vectors, **clip, **where)
        student_stage.run(
            prepared,
            teacher,
            vectors,
            student,
            seed=self.seed,
            **teachers_clip,
            **self.distillation,
            **self.computing,
        )
        evaluate.run(
            prepared,
            teacher,
            vectors,
            student,
            out,
            split="test",
            batch_size=self.batch_size,
            **teachers_clip,
            **students_clip,
            **self.computing,
        )
        rows: list[dict[str, Any]] = read_json(out / "predictions.json")
        return rows


def _cross_validate(
    prepared: Path,
    parts: Sequence[Labelled],
    recipe: _Recipe,
    on_note: Callable[[str], None] | None,
) -> dict[str, float]:
    """Make teacher and student without each fold's labels; return how many of these they met."""
    hits: dict[str, list[bool]] = {who: [] for who in evaluate.WHO}
    for number, held_out in enumerate(parts, start=1):
        if on_note is not None:
            on_note(f"cross-validation: fold {number} of {len(parts)}")
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            _hold_out(held_out, prepared, folder / "prepared", recipe.computing["data_root"])
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
