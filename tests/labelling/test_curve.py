"""`promptkd curve` measures accuracy against labels and unlabelled images, and nothing twice."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import labelling_project
import pytest
import tiny
from command import promptkd
from labelling_project import NAME, job
from PIL import Image

from pd_core.core.errors import BadData
from pd_core.core.hooks import NO_HOOKS
from pd_core.data.loading.prepared import read_prepared, read_unlabelled
from pd_core.data.loading.splits import Protocol
from pd_core.evaluation.evaluate import MODELS
from pd_core.labelling import curve
from pd_core.labelling.curve import Curve, Point, measure
from pd_core.pipeline.stages import jobs
from pd_core.reporting import curve as report

STAGES = ("prepare", "teacher", "class_vectors", "student", "evaluate")
FOLDER = Path("data") / "curve" / NAME


class Killed(BaseException):
    """A process that ends at once."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a prepared project with few unlabelled images."""
    folder = labelling_project.write(tmp_path / "project")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PD_DATA_ROOT", raising=False)
    with tiny.quick_stages(*labelling_project.TRAININGS):
        jobs.prepare(job())
        yield folder


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the runs of the stages."""
    runs: Counter[str] = Counter()

    def count(stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            runs[stage] += 1
            return work(*arguments)

        return run

    for stage in STAGES:
        monkeypatch.setattr(jobs, stage, count(stage, getattr(jobs, stage)))
    return runs


@pytest.mark.usefixtures("project")
def test_labels_are_doubled_and_unlabelled_images_are_halved() -> None:
    content = read_prepared(job().prepared, data_root=job().data_root)
    by_labels, by_unlabelled = curve.points(content.few_shot, 52, job())
    assert by_labels == (Point(1, 4, 52), Point(2, 8, 52), Point(4, 16, 52))
    assert by_unlabelled == tuple(Point(4, 16, number) for number in (6, 13, 26, 52))


def test_fewer_labels_of_a_seed_are_among_more_and_balanced() -> None:
    rows = tuple((f"{number}.png", number % 3) for number in range(30))
    few, more = (
        curve.first_shots(rows, shots, random.Random(1)) for shots in (2, 4)
    )  # fmt: skip
    assert set(few) < set(more)
    assert Counter(label for _, label in more) == {0: 4, 1: 4, 2: 4}
    assert curve.first_shots(rows, 2, random.Random(2)) != few


@pytest.mark.usefixtures("project")
def test_a_second_run_computes_nothing_and_a_killed_one_goes_on(
    counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        evaluate, calls = jobs.evaluate, iter(range(9))

        def killed(given: Any) -> Any:
            if next(calls) == 2:
                raise Killed
            return evaluate(given)

        patch.setattr(jobs, "evaluate", killed)
        with pytest.raises(Killed):
            measure(job(), FOLDER, [1], NO_HOOKS)
    assert counted == {"prepare": 1, "teacher": 3, "class_vectors": 3, "student": 3, "evaluate": 2}

    measured = measure(job(), FOLDER, [1], NO_HOOKS)
    assert counted == {"prepare": 1, "teacher": 3, "class_vectors": 3, "student": 6, "evaluate": 6}

    assert measure(job(), FOLDER, [1], NO_HOOKS) == measured
    assert counted["evaluate"] == 6
    assert not list(FOLDER.rglob("*.safetensors"))  # models are not kept


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_other_parameters_are_measured_anew(counted: Counter[str]) -> None:
    params = job().params
    measure(job(), FOLDER, [1], NO_HOOKS)
    student = params.student.model_copy(update={"lr": 0.001})
    other = replace(job(), params=params.model_copy(update={"student": student}))
    measure(other, FOLDER, [1], NO_HOOKS)
    assert counted["evaluate"] == 12


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_the_last_point_is_what_the_stages_measure() -> None:
    measured = measure(job(), FOLDER, [1], NO_HOOKS)
    mine = job()
    jobs.teacher(mine)
    jobs.class_vectors(mine)
    jobs.student(mine)
    metrics = jobs.evaluate(mine)
    last = measured.accuracies[measured.by_labels[-1]]
    assert last == {model: [scores["all"]] for model, scores in metrics.items()}


@pytest.mark.usefixtures("project")
def test_a_point_trains_on_its_labels_and_unlabelled_images_and_never_on_test_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    monkeypatch.setattr(jobs, "student", lambda given, _: seen.append(given))
    monkeypatch.setattr(jobs, "teacher", lambda given, _: given.teacher.mkdir(parents=True))
    monkeypatch.setattr(jobs, "class_vectors", lambda given: given.vectors.mkdir(parents=True))
    lists = {}

    def evaluate(given: Any) -> Any:
        content = read_prepared(given.prepared, data_root=given.data_root)
        lists[given.prepared.name] = content, read_unlabelled(given.prepared)
        return dict.fromkeys(MODELS, {"all": 50.0})

    monkeypatch.setattr(jobs, "evaluate", evaluate)
    measured = measure(job(), FOLDER, [1], NO_HOOKS)
    assert len(lists) == len(measured.accuracies) == 6
    test = read_prepared(job().prepared, data_root=job().data_root).test
    for name, (content, unlabelled) in lists.items():
        _, _, shots, count = name.split("-")
        assert Counter(label for _, label in content.few_shot) == dict.fromkeys(
            range(4), int(shots)
        )
        assert len(unlabelled) == int(count)
        assert content.test == test
        assert {path for path, _ in test}.isdisjoint({*unlabelled, *dict(content.few_shot)})


@pytest.mark.slow
def test_without_labelled_test_images_labels_are_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(labelling_project.write(tmp_path / "project", test=False))
    monkeypatch.delenv("PD_DATA_ROOT", raising=False)
    jobs.prepare(job())
    content = read_prepared(job().prepared, data_root=job().data_root)
    train, test = curve._lists(job(), content, held_out=True)
    assert test is not None
    assert {*train} | {*test} == {*content.few_shot}
    assert len(test) == 4
    with tiny.quick_stages(*labelling_project.TRAININGS):
        measured = measure(job(), FOLDER, [1], NO_HOOKS)
    assert measured.held_out
    assert [point.labels for point in measured.by_labels] == [4, 8, 12]


def test_a_class_with_a_single_label_leaves_none_to_hold_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = labelling_project.write(tmp_path / "project", test=False)
    file = folder / "params.yaml"
    file.write_text(file.read_text().replace("      shots: 4\n", "      shots: 1\n"))
    monkeypatch.chdir(folder)
    jobs.prepare(job())
    with pytest.raises(BadData, match="a class with a single label, so that none can be held out"):
        measure(job(), FOLDER, [1], NO_HOOKS)


@pytest.mark.slow
@pytest.mark.ci
def test_the_command_writes_a_table_and_a_figure(project: Path) -> None:
    done = promptkd(project, "curve", NAME, "--seeds", "1")
    assert done.returncode == 0, done.stderr
    assert "From 8 to 16 labels, the student gained" in done.stdout
    text = (project / "reports" / "curves" / f"{NAME}.md").read_text()
    assert text.count("\n| ") == 2 + 6
    points = json.loads((project / "reports" / "curves" / f"{NAME}.json").read_text())["points"]
    assert {point["unlabelled"] for point in points} == {6, 13, 27, 55}
    with Image.open(project / "reports" / "curves" / f"{NAME}.png") as picture:
        assert picture.width == 1500


def test_a_gain_is_that_of_the_last_step_with_its_spread_over_the_seeds() -> None:
    few, more = Point(1, 2, 8), Point(2, 4, 8)
    accuracies = {
        few: dict.fromkeys(MODELS, [50.0, 60.0]),
        more: dict.fromkeys(MODELS, [53.0, 65.0]),
    }
    made = Curve((few, more), (more,), accuracies, held_out=False)
    assert report.gains(made) == ["From 2 to 4 labels, the student gained +4.0 ± 1.4 points."]
    assert report.table(made).markdown().splitlines()[2:] == [
        "| 1 | 2 | 8 | 55.0 ± 7.1 | 55.0 ± 7.1 |",
        "| 2 | 4 | 8 | 59.0 ± 8.5 | 59.0 ± 8.5 |",
    ]
    pictures = {report.figure(made, Protocol.ALL_CLASSES) for _ in range(2)}
    assert len(pictures) == 1
