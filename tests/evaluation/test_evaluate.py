"""Evaluation counts what the protocol counts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import trainings

from pd_core.core.artifacts import write_sums
from pd_core.core.errors import BadData, MissingFile
from pd_core.data.loading.splits import Protocol
from pd_core.evaluation import evaluate

LABELS = np.array([0, 1, 2, 3])  # two base classes, two novel ones
FIRST_NOVEL = 2


def logits(*best: tuple[int, ...]) -> Any:
    """Make logits in which each row prefers the classes given, in that order."""
    rows = np.zeros((len(best), 4), np.float32)
    for row, order in enumerate(best):
        for rank, label in enumerate(order):
            rows[row, label] = 4 - rank
    return rows


def test_each_half_is_classified_among_its_own_classes_only() -> None:
    values = logits((2, 0), (3, 1), (0, 2), (1, 2))  # first choice: always of the other half
    best = evaluate.predictions(values, LABELS, FIRST_NOVEL)
    result = evaluate.accuracy(best, LABELS, FIRST_NOVEL)
    assert (result.base, result.novel, result.all) == (100, 50, 0)


def test_the_harmonic_mean_is_that_of_base_and_novel() -> None:
    assert evaluate.Accuracy(base=86.96, novel=80.73, all=0).hm == pytest.approx(83.73, abs=0.01)
    assert evaluate.Accuracy(base=0, novel=0, all=0).hm == 0


def test_predictions_are_the_best_of_the_half_and_of_all() -> None:
    half, whole = evaluate.predictions(logits((2, 0), (1,), (2,), (0, 3)), LABELS, FIRST_NOVEL).T
    assert half.tolist() == [0, 1, 2, 3]
    assert whole.tolist() == [2, 1, 2, 0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the stages before the evaluation."""
    folder = tmp_path_factory.mktemp("trained")
    prepared = tiny.prepared(folder / "prepare" / "flowers")
    with tiny.quick_stages(*tiny.TRAININGS):
        trainings.run_until_student(
            folder, prepared, tuning={"epochs": 1, "templates": 2},
            distillation={"epochs": 1, "batch_size": 4},
        )  # fmt: skip
    return folder


@pytest.fixture
def stages(trained: Path, tmp_path: Path) -> dict[str, Any]:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return {
        "prepared": tmp_path / "prepare" / "flowers",
        "teacher": tmp_path / "teacher" / "flowers",
        "vectors": tmp_path / "class_vectors" / "flowers",
        "student": tmp_path / "student" / "flowers",
        "out": tmp_path / "evaluate" / "flowers",
        "model": "tiny", "weights": tmp_path / "tiny-1.safetensors",
        "teacher_model": "tiny", "teacher_weights": tmp_path / "tiny-0.safetensors",
        "split": "test", "batch_size": 3,
    }  # fmt: skip


def test_metrics_agree_with_the_predictions_that_are_kept(stages: dict[str, Any]) -> None:
    metrics = trainings.run_evaluate(**stages)
    rows = json.loads((stages["out"] / "predictions.json").read_text())
    split = json.loads((stages["prepared"] / "split.json").read_text())
    assert [row["path"] for row in rows] == [path for path, _ in split["test"]]
    assert set(metrics) == set(evaluate.MODELS)
    for model, scores in metrics.items():
        base = [row[model][0] == row["label"] for row in rows if row["label"] < 3]
        every = [row[model][1] == row["label"] for row in rows]
        assert scores["base"] == pytest.approx(100 * np.mean(base), abs=1e-3)
        assert scores["all"] == pytest.approx(100 * np.mean(every), abs=1e-3)
    assert json.loads((stages["out"] / "metrics.json").read_text()) == metrics


def test_the_batch_size_changes_nothing(stages: dict[str, Any], tmp_path: Path) -> None:
    trainings.run_evaluate(**stages)
    trainings.run_evaluate(**{**stages, "batch_size": 100, "out": tmp_path / "again"})
    for name in ("metrics.json", "predictions.json"):
        assert (tmp_path / "again" / name).read_text() == (stages["out"] / name).read_text()


def test_a_data_set_without_test_images_is_refused(stages: dict[str, Any]) -> None:
    path = stages["prepared"] / "split.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "test": []}))
    write_sums(path.parent)
    with pytest.raises(BadData, match="no labelled test images"):
        trainings.run_evaluate(**stages)


def test_without_a_student_the_error_names_the_command(stages: dict[str, Any]) -> None:
    (stages["student"] / "student.safetensors").unlink()
    with pytest.raises(MissingFile, match="dvc repro student@flowers"):
        trainings.run_evaluate(**stages)


@pytest.mark.parametrize("protocol", sorted(set(Protocol) - {Protocol.BASE_TO_NOVEL}))
def test_where_there_are_no_halves_all_classes_are_counted_at_once(
    stages: dict[str, Any], protocol: Protocol
) -> None:
    file = stages["prepared"] / "split.json"
    taught = {"protocol": protocol, **({"few_shot": []} if protocol.has_source else {})}
    file.write_text(json.dumps({**json.loads(file.read_text()), **taught}))
    write_sums(file.parent)

    metrics = trainings.run_evaluate(**stages)

    assert {tuple(scores) for scores in metrics.values()} == {("all",)}
    assert json.loads((stages["out"] / "metrics.json").read_text()) == metrics
