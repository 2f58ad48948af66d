"""Stages where pictures are damaged: an error by default, or smaller batches and a count."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import trainings
from torch import Tensor

from pd_core.core.errors import BadData
from pd_core.core.options import OnCorrupt, Selection
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import eval_transform
from pd_core.evaluation import evaluate, tuned_student
from pd_core.models import class_vectors
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.training.loop.fit import Run
from pd_core.training.student import distillation
from pd_core.training.student.distillation import make_scorer
from pd_core.training.teacher import class_vectors as vectors_stage

TEACHER: dict[str, Any] = {
    "model": "tiny", "epochs": 3, "batch_size": 4, "lr": 0.05, "gpa_mean": 2, "templates": 3,
    "text_depth": 2, "image_depth": 2,
}  # fmt: skip
STUDENT: dict[str, Any] = {
    "model": "tiny", "teacher_model": "tiny", "epochs": 4, "batch_size": 4, "lr": 0.01,
    "image_depth": 2,
}  # fmt: skip


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


class Stages:
    """A data set of 20 pictures, 12 of base classes; 3 and 1 of the others are damaged."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.prepared = tiny.prepared(root / "prepare" / "flowers")
        self.large, self.small = tiny.weights(root), tiny.weights(root, seed=1)
        self.teacher_folder = root / "teacher" / "flowers"
        self.vectors = root / "vectors" / "flowers"
        self.pictures = root / "prepare" / "pictures"

    def damage(self) -> list[str]:
        names = ["0_1.png", "1_0.png", "2_3.png", "4_2.png"]
        for name in names:
            damage(self.pictures / name)
        return names

    def teacher(self, out: Path | None = None, **rest: Any) -> list[dict[str, float]]:
        out = out or self.teacher_folder
        trainings.run_teacher(self.prepared, out, weights=self.large, **{**TEACHER, **rest})
        return list(json.loads((out / "history.json").read_text()))

    def student(self, out: Path, **rest: Any) -> list[dict[str, float]]:
        if not self.vectors.exists():
            vectors_stage.run(
                self.prepared, self.teacher_folder, self.vectors, model="tiny", weights=self.large
            )
        trainings.run_student(
            self.prepared, self.teacher_folder, self.vectors, out,
            weights=self.small, teacher_weights=self.large, **{**STUDENT, **rest},
        )  # fmt: skip
        return list(json.loads((out / "history.json").read_text()))

    def evaluate(self, student: Path, out: Path, **rest: Any) -> dict[str, Any]:
        trainings.run_evaluate(
            self.prepared, self.teacher_folder, self.vectors, student, out,
            model="tiny", weights=self.small, teacher_model="tiny", teacher_weights=self.large,
            split="test", batch_size=3, **rest,
        )  # fmt: skip
        return dict(json.loads((out / "metrics.json").read_text()))


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with tiny.quick_stages(
        "training.teacher.stage", "training.student.stage", "evaluation.evaluate"
    ):
        yield


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_stages_fail_at_the_damaged_picture_by_default(stages: Stages, tmp_path: Path) -> None:
    stages.teacher()
    stages.student(tmp_path / "s")
    damaged = stages.damage()

    named = "|".join(damaged).replace(".", r"\.")
    for stage in (
        lambda: stages.teacher(tmp_path / "new"),
        lambda: stages.student(tmp_path / "new"),
        lambda: stages.evaluate(tmp_path / "s", tmp_path / "new"),
    ):
        with pytest.raises(BadData, match=f"({named})' is not a readable image"):
            stage()
    assert not (tmp_path / "new").exists()


def test_skipping_changes_nothing_where_nothing_is_damaged(stages: Stages, tmp_path: Path) -> None:
    skip = {"on_corrupt": OnCorrupt.SKIP}
    stages.teacher()
    stages.student(tmp_path / "s", view_epochs=2)
    stages.evaluate(tmp_path / "s", tmp_path / "e")

    stages.teacher(tmp_path / "t2", **skip)
    stages.student(tmp_path / "s2", view_epochs=2, **skip)
    stages.evaluate(tmp_path / "s", tmp_path / "e2", **skip)

    assert contents(tmp_path / "t2") == contents(stages.teacher_folder)
    assert contents(tmp_path / "s2") == contents(tmp_path / "s")
    assert contents(tmp_path / "e2") == contents(tmp_path / "e")


def test_the_teacher_is_tuned_on_the_intact_pictures_and_counts_the_others(
    stages: Stages, tmp_path: Path
) -> None:
    stages.damage()

    history = stages.teacher(on_corrupt=OnCorrupt.SKIP)
    assert [row["skipped"] for row in history] == [3, 3, 3]
    assert stages.teacher(tmp_path / "again", on_corrupt=OnCorrupt.SKIP, workers=2) == history
    assert contents(tmp_path / "again") == contents(stages.teacher_folder)


@pytest.mark.parametrize("view_epochs", [None, 2])
def test_the_student_is_distilled_on_the_intact_pictures_and_resumes_exactly(
    stages: Stages, tmp_path: Path, view_epochs: int | None
) -> None:
    stages.teacher()
    stages.damage()
    options = {"on_corrupt": OnCorrupt.SKIP, "view_epochs": view_epochs}

    history = stages.student(tmp_path / "whole", **options)
    assert [row["skipped"] for row in history] == [4, 4, 4, 4]

    class StopError(Exception):
        pass

    def stop(epoch: int, metrics: dict[str, float]) -> None:
        assert metrics["skipped"] == 4
        if epoch == 2:
            raise StopError

    given = {"checkpoints": tiny.checkpoints(tmp_path), **options}
    with pytest.raises(StopError):
        stages.student(tmp_path / "resumed", on_epoch=stop, **given)
    stages.student(tmp_path / "resumed", workers=2, **given)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_views_that_come_again_meet_the_answers_to_the_same_pictures(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.teacher()
    stages.damage()
    seen: list[tuple[Tensor, Tensor]] = []
    original = distillation.distillation_step

    def watched(student: Any, images: Tensor, targets: Tensor, *rest: Any, **more: Any) -> Any:
        seen.append((images.clone(), targets.clone()))
        return original(student, images, targets, *rest, **more)

    monkeypatch.setattr(distillation, "distillation_step", watched)
    stages.student(tmp_path / "s", on_corrupt=OnCorrupt.SKIP, view_epochs=2)

    half = len(seen) // 2
    assert {len(images) for images, _ in seen} >= {3, 4}
    for (images, targets), (again, remembered) in zip(seen[:half], seen[half:], strict=True):
        assert torch.equal(images, again)
        assert torch.equal(targets, remembered)
        assert len(images) == len(targets)


def test_an_epoch_is_scored_on_intact_pictures(stages: Stages) -> None:
    damaged = stages.damage()
    rows = json.loads((stages.prepared / "split.json").read_text())["few_shot"]
    intact = [(path, label) for path, label in rows if path not in damaged]
    student = Student.untrained(tiny.towers(), feature_width=16, depth=2, length=2, seed=1).eval()
    vectors = class_vectors.build(Teacher(tiny.towers()).eval(), tiny.NAMES)

    choice = Selection.BEST_ON_TEST_AS_PUBLISHED
    scorer = make_scorer(
        stages.prepared, choice, Preprocess(16), trainings.compute(on_corrupt=OnCorrupt.SKIP)
    )

    assert scorer is not None
    with torch.no_grad():
        store, transform = ImageStore(stages.pictures), eval_transform(Preprocess(16))
        features = student(torch.stack([transform(store.open(path)) for path, _ in intact]))
    best = (features @ vectors.vectors[:3].T).argmax(dim=1)
    hits = best == torch.tensor([label for _, label in intact])
    assert len(hits) == 9
    assert scorer(student, vectors) == pytest.approx(100 * float(hits.float().mean()))


def test_evaluation_leaves_damaged_pictures_out_of_every_number(
    stages: Stages, tmp_path: Path
) -> None:
    stages.teacher()
    stages.student(tmp_path / "s")
    stages.evaluate(tmp_path / "s", tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "predictions.json").read_text())
    damaged = stages.damage()

    metrics = stages.evaluate(tmp_path / "s", tmp_path / "e", on_corrupt=OnCorrupt.SKIP, workers=1)

    rows = json.loads((tmp_path / "e" / "predictions.json").read_text())
    assert rows == [row for row in whole if row["path"] not in damaged]
    assert metrics["skipped"] == 4
    for who in evaluate.MODELS:
        hits = [row[who][1] == row["label"] for row in rows]
        assert metrics[who]["all"] == pytest.approx(100 * np.mean(hits), abs=1e-3)


def test_the_baseline_counts_what_it_skipped(stages: Stages, tmp_path: Path) -> None:
    stages.damage()
    files = (stages.prepared, tmp_path / "out", tmp_path / "flowers.json")

    metrics = tuned_student.run(
        *files,
        trainings.teacher_config(weights=stages.small, **TEACHER),
        trainings.evaluate_config(batch_size=7),
        Run(trainings.compute(on_corrupt=OnCorrupt.SKIP)),
    )

    written = json.loads((tmp_path / "flowers.json").read_text())
    assert written == {**metrics, "skipped": 4}
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert [row["skipped"] for row in history] == [3, 3, 3]
