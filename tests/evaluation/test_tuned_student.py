"""The paper's main baseline, and what reports say of it and of how a student was chosen."""

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import trainings
from rich.console import Console
from tiny import NAMES

from pd_core.core import options
from pd_core.core.errors import BadArtifact, BadData, MissingFile
from pd_core.core.options import TeacherMethod
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import eval_transform
from pd_core.evaluation import evaluate, tuned_student
from pd_core.models import class_vectors
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.teacher import Teacher
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import DatasetRow, Params, load_params
from pd_core.reporting import report, results

BASELINE = options.BASELINE
TITLES = {"dtd": "Textures", "pets": "Pets"}
TUNING: dict[str, Any] = {
    "model": "tiny",
    "epochs": 2,
    "batch_size": 6,
    "lr": 0.02,
    "gpa_mean": 2,
    "templates": 2,
    "text_depth": 2,
    "image_depth": 2,
}


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with tiny.quick_stages("training.teacher.stage"):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a prepared data set and the weights of the student's CLIP."""
    folder = tmp_path_factory.mktemp("baseline")
    tiny.prepared(folder / "flowers")
    tiny.weights(folder, seed=1)
    return folder


def run(data: Path, root: Path, **rest: Any) -> dict[str, dict[str, float]]:
    values = {**TUNING, "weights": data / "tiny-1.safetensors", **rest}
    evaluation = trainings.evaluate_config(split=values.pop("split", "test"), batch_size=7)
    surroundings = trainings.run_of(values)
    return tuned_student.run(
        data / "flowers", root / "out", root / "results" / "flowers.json",
        trainings.teacher_config(**values), evaluation, surroundings,
    )  # fmt: skip


def test_the_baseline_is_a_tuned_student_its_history_and_its_accuracy(
    data: Path, tmp_path: Path
) -> None:
    metrics = run(data, tmp_path)

    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"teacher.safetensors", "history.json"}
    assert len(json.loads((tmp_path / "out" / "history.json").read_text())) == 2
    assert json.loads((tmp_path / "results" / "flowers.json").read_text()) == metrics
    assert metrics.keys() == {BASELINE}
    assert metrics[BASELINE].keys() == {"base", "novel", "hm", "all"}


def test_progress_is_in_steps_and_then_in_test_images(data: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    run(data, tmp_path, on_progress=lambda done, total: seen.append((done, total)))

    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4), (7, 20), (14, 20), (20, 20)]


def test_its_accuracy_is_that_of_the_stored_prompts_on_the_students_clip(
    data: Path, tmp_path: Path
) -> None:
    metrics = run(data, tmp_path, method=TeacherMethod.IVLP, epochs=4, lr=0.1)

    towers = tiny.loaded("tiny", data / "tiny-1.safetensors")
    teacher = Teacher.load(tmp_path / "out" / "teacher.safetensors", towers)
    assert metrics[BASELINE] == accuracy(teacher, data)
    assert metrics[BASELINE] != accuracy(Teacher(towers), data)


def accuracy(teacher: Teacher, data: Path) -> dict[str, float]:
    rows = json.loads((data / "flowers" / "split.json").read_text())["test"]
    store, transform = ImageStore(data / "pictures"), eval_transform(Preprocess(16))
    with torch.no_grad():
        images = torch.stack([transform(store.open(path)) for path, _ in rows])
        features = teacher.image_features(images)
    logits = class_vectors.build(teacher, NAMES).logits(features).numpy()
    labels = np.array([label for _, label in rows])
    best = evaluate.predictions(logits, labels, 3)
    return evaluate.accuracy(best, labels, 3).as_dict()


def test_the_method_and_the_seed_are_those_asked_for(data: Path, tmp_path: Path) -> None:
    def written(name: str, **rest: Any) -> bytes:
        run(data, tmp_path / name, **rest)
        return (tmp_path / name / "out" / "teacher.safetensors").read_bytes()

    first = written("first")
    torch.rand(3)

    assert written("again") == first
    assert written("other", seed=2) != first
    written("ivlp", method=TeacherMethod.IVLP)
    path = tmp_path / "ivlp" / "out" / "teacher.safetensors"
    towers = tiny.loaded("tiny", data / "tiny-1.safetensors")
    assert Teacher.load(path, towers).method is TeacherMethod.IVLP


def test_a_split_without_images_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no labelled val images"):
        run(data, tmp_path, split="val")


def shipped() -> Params:
    return load_params(Path(__file__).parents[2] / "params.yaml")


def test_the_job_tunes_the_students_clip_with_the_teachers_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "embedded_digits"
    changes = DatasetRow(teacher={"method": "ivlp"}, student={"weights": "small.pt"})
    params = shipped().model_copy(update={"tuned_student": {name: {"epochs": 7}}})
    block = params.for_dataset(name, changes)
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(tuned_student, "run", lambda *given: calls.append(given))

    job = Job.at(tmp_path, block, seed=3, device="cpu", data_root=tmp_path)
    assert block.tuned_student is not None
    jobs.tuned_student(job)

    ((*paths, given, evaluation, run),) = calls
    assert paths == [
        tmp_path / "prepare" / name,
        tmp_path / "tuned_student" / name,
        tmp_path / "evaluate" / "tuned_student" / f"{name}.json",
    ]
    assert given.model == block.student.model != block.teacher.model
    assert given.weights == "small.pt"
    assert (given.method, given.epochs, run.compute.seed) == ("ivlp", 7, 3)
    assert given.lr == block.teacher.lr
    assert evaluation == block.evaluate


def test_a_data_set_that_is_not_listed_has_no_baseline() -> None:
    params = shipped().model_copy(update={"tuned_student": {"embedded_greek": {}}})

    assert params.for_dataset("embedded_greek").tuned_student is not None
    assert params.for_dataset("embedded_digits").tuned_student is None


@pytest.fixture
def evaluations(tmp_path: Path) -> Path:
    """Write the results of two data sets; one of them has the baseline."""
    folder = tmp_path / "evaluate"
    for name, value in (("dtd", 60.0), ("pets", 80.0)):
        write(folder / name / "metrics.json", dict.fromkeys(results.MODELS, scores(value)))
    write(baseline(folder, "dtd"), {BASELINE: scores(71.25)})
    return folder


def scores(value: float) -> dict[str, float]:
    return dict.fromkeys(("base", "novel", "hm", "all"), value)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def baseline(folder: Path, name: str) -> Path:
    return folder / "tuned_student" / f"{name}.json"


def summary_of(folder: Path, *baselines: str) -> dict[str, Any]:
    return report.summarise("paper", results.read_evaluations(folder, ["dtd", "pets"], baselines))


def terminal(summary: dict[str, Any]) -> str:
    console = Console(width=120, record=True, file=StringIO())
    console.print(report.table(summary, TITLES))
    return console.export_text()


def cells(summary: dict[str, Any]) -> dict[str, list[str]]:
    """Read the Markdown table: the cells of each row, by the first one."""
    lines = [line for line in report.markdown(summary, TITLES).splitlines() if line[0:1] == "|"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_the_column_is_there_if_a_data_set_has_the_baseline(evaluations: Path) -> None:
    summary = summary_of(evaluations, "dtd")

    assert summary["datasets"]["dtd"][BASELINE] == {"base": 71.25, "novel": 71.25, "hm": 71.25}
    assert BASELINE not in summary["datasets"]["pets"]
    assert BASELINE not in summary["average"]  # as one data set lacks it
    last = {name: row[-1] for name, row in cells(summary).items()}
    cell = "71.25 / 71.25 / 71.25"
    assert last == {
        "data set": "tuned student",
        "---": "---:",
        "Textures": cell,
        "Pets": "",
        "average": "",
    }
    assert len({len(row) for row in cells(summary).values()}) == 1
    lines = terminal(summary).splitlines()
    assert terminal(summary).count("tuned") == 2  # and the teacher's
    assert [name for line in lines for name in TITLES.values() if name in line and "71.2" in line]
    assert not any("Pets" in line and "71.2" in line for line in lines)


def test_the_average_is_there_if_all_data_sets_have_the_baseline(evaluations: Path) -> None:
    write(baseline(evaluations, "pets"), {BASELINE: scores(80.0)})

    summary = summary_of(evaluations, "dtd", "pets")

    assert summary["average"][BASELINE] == {"base": 75.62, "novel": 75.62, "hm": 75.62}
    assert cells(summary)["average"][-1] == "75.62 / 75.62 / 75.62"
    assert any("average" in line and "75.6" in line for line in terminal(summary).splitlines())


def test_without_the_baseline_no_report_names_it(evaluations: Path) -> None:
    summary = summary_of(evaluations)

    assert BASELINE not in json.dumps(summary)
    assert "tuned student" not in report.markdown(summary)
    assert terminal(summary).count("tuned") == 1  # the teacher's
    assert all(len(row) == len(results.MODELS) for row in cells(summary).values())


def test_the_report_reads_the_baselines_that_it_is_told_of(
    evaluations: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (tmp_path / "prepare").mkdir()

    report.run(
        evaluations, tmp_path / "prepare", out, profile="paper", datasets=["dtd", "pets"],
        baselines=["dtd", "not reported"],
    )  # fmt: skip

    assert report.read_summary(out) == summary_of(evaluations, "dtd")
    assert "tuned student" in (out / "summary.md").read_text()


def test_a_baseline_that_was_not_measured_names_the_command_to_run(evaluations: Path) -> None:
    with pytest.raises(MissingFile, match="dvc repro tuned_student@pets"):
        summary_of(evaluations, "pets")
    write(baseline(evaluations, "pets"), {BASELINE: {"base": 1.0, "novel": 1.0}})
    with pytest.raises(BadArtifact, match=r"'tuned_student\.hm'.*dvc repro tuned_student@pets"):
        summary_of(evaluations, "pets")


@pytest.mark.parametrize("chosen", [(), ("pets",), ("dtd", "pets")])
def test_every_report_names_the_data_sets_whose_student_was_chosen_on_test_images(
    chosen: tuple[str, ...], evaluations: Path
) -> None:
    before = summary_of(evaluations, "dtd")
    for name in chosen:
        path = evaluations / name / "metrics.json"
        write(path, {**json.loads(path.read_text()), "selection": "best_on_test_as_published"})

    summary = summary_of(evaluations, "dtd")

    assert summary.get("chosen_on_test", []) == list(chosen)
    named = ", ".join(TITLES[name] for name in chosen)
    line = f"chosen on test images, as in the published code: {named}."
    for text in (report.markdown(summary, TITLES), terminal(summary)):
        assert (line in " ".join(text.split())) is bool(chosen)
        assert ("chosen" in text) is bool(chosen)
    assert {**summary, "chosen_on_test": 0} == {**before, "chosen_on_test": 0}  # no number changes
    pictures = [report.figure(one, TITLES) for one in (summary, before)]
    assert (pictures[0] != pictures[1]) is bool(chosen)
