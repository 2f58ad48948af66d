"""Without labelled test images the accuracy stays unknown; cross-validation estimates it."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import trainings

from pd_core.core.artifacts import read_json, write_json, write_sums
from pd_core.core.config import StagePaths
from pd_core.core.hooks import NO_HOOKS
from pd_core.core.options import TeacherMethod
from pd_core.data.loading.prepared import read_prepared, read_unlabelled
from pd_core.evaluation import cross_validate, evaluate
from pd_core.reporting import report
from pd_core.reporting.report import summarise
from pd_core.reporting.results import read_evaluations, with_estimate
from pd_core.training.teacher import stage as teacher_stage
from pd_core.training.teacher.config import OriginalParams

TUNING: dict[str, Any] = {
    "method": TeacherMethod.PROMPTSRC, "original": None,
    "epochs": 1, "batch_size": 5, "templates": 2,
}  # fmt: skip
DISTILLATION: dict[str, Any] = {"epochs": 1, "batch_size": 4}


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with tiny.quick_stages(*tiny.TRAININGS, "evaluation.evaluate"):
        yield


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A data set of five classes with four labels each, and the models trained on it."""
    root = tmp_path_factory.mktemp("estimate")
    prepared = tiny.prepared(root / "prepare" / "parts")
    split = read_json(prepared / "split.json")
    split |= {"protocol": "all_classes", "few_shot": split["test"], "test": []}
    write_json(prepared / "split.json", split)
    write_sums(prepared)
    made = trainings.run_until_student(root, prepared, tuning=TUNING, distillation=DISTILLATION)
    large = {"model": "tiny", "weights": str(made["teacher_weights"])}
    small = {"model": "tiny", "weights": str(made["weights"])}
    return {
        "folders": tuple(made[name] for name in ("prepared", "teacher", "vectors", "student")),
        "tuning": trainings.teacher_config(**large, **TUNING),
        "distillation": trainings.student_config(**small, **DISTILLATION),
    }


def run(stages: dict[str, Any], out: Path, **options: Any) -> dict[str, Any]:
    given = {**stages, **options}
    evaluation = trainings.evaluate_config(folds=given.get("folds", 2), batch_size=8)
    recipe = cross_validate.Recipe(
        given["tuning"], given["distillation"], evaluation, trainings.COMPUTE
    )
    prepared, teacher, vectors, student = given["folders"]
    paths = StagePaths(prepared, teacher, vectors, student, out)
    evaluate.run_unlabelled(paths, evaluation, recipe.clips, trainings.COMPUTE, NO_HOOKS)
    file = out.parent / "cross_validate" / f"{out.name}.json"
    cross_validate.run(prepared, file, recipe, NO_HOOKS)
    return {**with_estimate(read_json(out / "metrics.json"), file)}


@pytest.fixture(scope="module")
def metrics(stages: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(stages, tmp_path_factory.mktemp("out") / "parts")


def test_the_accuracy_is_unknown_and_no_number_goes_by_its_name(metrics: dict[str, Any]) -> None:
    assert metrics["accuracy"] == "unknown"
    assert set(metrics) == {"accuracy", "agreement", "cross_validated", "counts"}
    assert metrics["counts"] == {"unlabelled": 20, "labels": 20, "folds": 2}


def test_agreement_is_how_often_the_teachers_class_is_chosen(
    stages: dict[str, Any], tmp_path: Path
) -> None:
    metrics = run(stages, tmp_path / "parts")
    rows = read_json(tmp_path / "parts" / "predictions.json")

    assert [row["path"] for row in rows] == list(read_unlabelled(stages["folders"][0]))
    for model in ("student", "zero_shot_student", "zero_shot_teacher"):
        same = sum(row[model] == row["teacher"] for row in rows)
        assert metrics["agreement"][model] == pytest.approx(100 * same / len(rows))
    assert "teacher" not in metrics["agreement"]


def test_every_fold_is_evaluated_with_models_that_never_saw_its_labels(
    stages: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[set[str]] = []
    evaluated: list[set[str]] = []
    rows: list[dict[str, Any]] = []
    tune, measure = teacher_stage.run, evaluate.run

    def tuning(prepared: Path, *args: Any, **options: Any) -> Any:
        trained.append({path for path, _ in read_prepared(prepared).few_shot})
        return tune(prepared, *args, **options)

    def evaluating(paths: StagePaths, *args: Any) -> Any:
        evaluated.append({path for path, _ in read_prepared(paths.prepared).test})
        metrics = measure(paths, *args)
        rows.extend(read_json(paths.evaluation / "predictions.json"))
        return metrics

    monkeypatch.setattr(teacher_stage, "run", tuning)
    monkeypatch.setattr(evaluate, "run", evaluating)
    metrics = run(stages, tmp_path / "parts", folds=4)

    for model, percent in metrics["cross_validated"].items():
        assert percent == 100 * sum(row[model][1] == row["label"] for row in rows) / 20
    labelled = {path for path, _ in read_prepared(stages["folders"][0]).few_shot}
    assert len(trained) == len(evaluated) == 4
    for seen, held_out in zip(trained, evaluated, strict=True):
        assert not seen & held_out
        assert seen | held_out == labelled
    assert Counter(path for part in evaluated for path in part) == Counter(labelled)


def test_the_same_seed_gives_the_same_bytes(stages: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(stages, tmp_path / name)

    for file in ("{}/metrics.json", "{}/predictions.json", "cross_validate/{}.json"):
        first, second = ((tmp_path / file.format(name)).read_bytes() for name in ("one", "two"))
        assert first == second


def test_an_imported_teacher_is_not_cross_validated(stages: dict[str, Any], tmp_path: Path) -> None:
    original = OriginalParams(path="a.pth", sha256="0" * 64)
    imported = stages["tuning"].model_copy(update={"original": original})

    metrics = run(stages, tmp_path / "parts", tuning=imported)

    assert "cross_validated" not in metrics
    assert metrics["counts"]["folds"] == 0


def test_folds_spread_each_class_evenly() -> None:
    items = tuple(
        (f"{label}/{k}", label) for label, count in ((0, 5), (1, 8)) for k in range(count)
    )

    parts = cross_validate.cut(items, 4, random.Random(1))

    assert sorted(item for part in parts for item in part) == sorted(items)
    assert sorted(map(len, parts)) == [3, 3, 3, 4]
    for label, count in ((0, 5), (1, 8)):
        sizes = [sum(other == label for _, other in part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == count


@pytest.mark.parametrize(("counts", "folds"), [((3, 9), 3), ((1, 9), 0), ((2, 2), 2)])
def test_no_fold_takes_the_last_label_of_a_class(counts: tuple[int, ...], folds: int) -> None:
    items = tuple((f"{label}/{k}", label) for label, n in enumerate(counts) for k in range(n))

    assert len(cross_validate.cut(items, 4, random.Random(1))) == folds


def test_other_folds_come_with_another_seed() -> None:
    items = tuple((f"0/{k}", 0) for k in range(16))

    first, again, other = (cross_validate.cut(items, 4, random.Random(n)) for n in (1, 1, 2))
    assert first == again != other


def test_accuracy_can_be_measured_where_a_test_picture_has_a_label(
    stages: dict[str, Any], tmp_path: Path
) -> None:
    without = stages["folders"][0]
    assert not evaluate.is_measurable(without, "test")
    assert evaluate.is_measurable(without, "val")
    assert evaluate.is_measurable(tiny.prepared(tmp_path / "prepare" / "other"), "test")


def test_the_report_says_that_the_accuracy_is_unknown(
    metrics: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "evaluate" / "parts").mkdir(parents=True)
    (tmp_path / "evaluate" / "parts" / "metrics.json").write_text(json.dumps(metrics))
    folder = tmp_path / "report"
    folder.mkdir()

    summary = summarise("quickstart", read_evaluations(tmp_path / "evaluate"))
    report.write_summary(summary, folder)

    assert summary["datasets"] == summary["average"] == {}
    text = (folder / "summary.md").read_text()
    assert "parts: accuracy unknown, no labelled test images" in text
    assert f"{metrics['agreement']['student']:.1f}% of 20 unlabelled images" in text
    assert f"on 20 labels, {metrics['cross_validated']['student']:.1f}% correct" in text
    assert any("accuracy unknown" in line for line in report.table(summary).notes)


def test_an_estimate_has_no_part_in_the_average(metrics: dict[str, Any], tmp_path: Path) -> None:
    measured = dict.fromkeys(
        evaluate.MODELS, {"base": 80.0, "novel": 60.0, "hm": 68.57, "all": 65.0}
    )
    for name, content in (("parts", metrics), ("flowers", measured)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(content))

    summary = summarise("quickstart", read_evaluations(tmp_path))

    assert list(summary["datasets"]) == ["flowers"]
    assert summary["average"]["student"]["base"] == 80.0
    assert list(summary["accuracy_unknown"]) == ["parts"]
