"""The page shows what the stages wrote, says what is missing, and can be looked at anywhere."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command import promptkd
from page_project import NAME, ROOT, copy, gathered, make
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from pd_core.core.artifacts import write_sums
from pd_core.core.scores import LEGEND, sign
from pd_core.mlops.predictor import STUDENT_FILE
from pd_core.models import class_vectors
from pd_core.models.clip import load_clip
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.pipeline.provenance import content_hash
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import load_params
from pd_core.reporting import page as pages
from pd_core.reporting import page_classes, page_content, page_dataset, page_models
from pd_core.reporting.page import Page, paper

Gather = Callable[[], Page]


@pytest.fixture(scope="module", name="made")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy these outputs into a folder of a test's own, and go there."""
    monkeypatch.chdir(copy(made, tmp_path))
    return tmp_path


@pytest.fixture
def gather(project: Path) -> Gather:
    """Return what gathers the page of the test's own folder."""
    return partial(gathered, project)


def predictions(project: Path) -> list[dict[str, Any]]:
    path = project / "data" / "evaluate" / NAME / "predictions.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def test_a_data_set_that_is_not_prepared_here_has_its_row_and_a_note_in_place_of_a_section(
    project: Path, gather: Gather
) -> None:
    shutil.rmtree(project / "data" / "prepare" / NAME)
    page = gather()
    assert page.pages == ()
    assert NAME in page.summary["datasets"]
    (note,) = page.notes
    assert note.startswith(f"{NAME} has no section: ")
    assert f"{NAME} has no section" in page_content.markdown(page)


def test_accuracy_and_confusion_are_those_of_the_predictions(project: Path, gather: Gather) -> None:
    content = gather()
    (page,) = content.pages
    rows = predictions(project)
    labels = [row["label"] for row in rows]
    path = page_content.write(content, project / "build")
    written = json.loads(path.with_suffix(".json").read_text())
    assert written["summary"]["datasets"][NAME] == content.summary["datasets"][NAME]
    for model, result in page.people.items():
        answers = [row[model][1] for row in rows]
        assert result.accuracy == pytest.approx(100 * accuracy_score(labels, answers))
        wrong = sum(label != answer for label, answer in zip(labels, answers, strict=True))
        assert sum(pair.count for pair in result.confused) == wrong
        assert written["pages"][0]["people"][model]["accuracy"] == result.accuracy
        assert len(written["pages"][0]["curves"][model]) == 2
    assert page.images == (4, 4, 4, 4, 4)
    assert page.notes == ()


def test_the_gallery_has_the_predictions_of_evaluate(project: Path, gather: Gather) -> None:
    (page,) = gather().pages
    rows = {row["path"]: row for row in predictions(project)}
    gallery = page.gallery
    assert gallery is not None
    differing = [row for row in rows.values() if row["teacher"][1] != row["student"][1]]
    assert gallery.images == len(rows)
    total = gallery.teacher_right + gallery.student_right + gallery.both_wrong
    assert total == len(differing)
    for image in gallery.shown:
        for model, top in image.top.items():
            assert top[0][0] == page.classes[rows[image.path][model][1]]
            assert len(top) == 3


def test_a_data_set_that_was_not_run_has_a_row(gather: Gather) -> None:
    page = gather()
    assert "1 of 2 data sets run" in page_content.html(page)
    line = "| Greek letters, neon | not run | not run | not run | not run |"
    assert line in page_content.markdown(page)


def test_missing_pictures_leave_the_counts_and_are_noted(project: Path, gather: Gather) -> None:
    split = project / "data" / "prepare" / NAME / "split.json"
    pictures = Path(json.loads(split.read_text())["images"])
    away = pictures.with_name("away")
    pictures.rename(away)
    try:
        (page,) = gather().pages
    finally:
        away.rename(pictures)
    assert page.gallery is None
    assert page.people["student"].calibration is None
    assert page.people["student"].confused
    assert "images are left out: no image folder at" in page.notes[0]


def test_predictions_that_evaluate_did_not_write_are_noted(project: Path, gather: Gather) -> None:
    rows = predictions(project)
    rows[0]["student"][1] = (rows[0]["student"][1] + 1) % 5
    (project / "data" / "evaluate" / NAME / "predictions.json").write_text(json.dumps(rows))
    (page,) = gather().pages
    assert page.notes[0].startswith("student: 1 of 20 predictions differ from those of `evaluate`")


def test_predictions_are_cached_until_the_student_changes(project: Path, gather: Gather) -> None:
    first = gather().pages[0]
    kept = project / "build" / pages.ANSWERS / f"{NAME}.json"
    content = json.loads(kept.read_text())
    content["answered"]["calibration"]["student"]["error"] = 12.5
    kept.write_text(json.dumps(content))
    second = gather().pages[0].people["student"].calibration
    assert second is not None
    assert second.error == 12.5  # as kept

    history = project / "data" / "student" / NAME / "history.json"
    history.write_text(history.read_text() + "\n")
    third = gather().pages[0]
    assert third.people == first.people  # computed again


def test_where_no_test_image_has_a_label_accuracy_is_unknown(project: Path, gather: Gather) -> None:
    folder = project / "data" / "evaluate" / NAME
    (folder / "predictions.json").unlink()
    agreement = {"agreement": {"student": 90.0}, "counts": {"unlabelled": 20}}
    metrics = {"accuracy": "unknown", **agreement}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = gather()
    text = page_content.markdown(page)
    assert "accuracy unknown, no labelled test images; the student agrees with its teacher" in text
    assert page.pages[0].people == {}
    assert "accuracy unknown" in page_content.html(page)


def test_the_section_of_a_student_worse_than_zero_shot_says_so(
    project: Path, gather: Gather
) -> None:
    path = project / "data" / "evaluate" / NAME / "metrics.json"
    metrics = json.loads(path.read_text())
    for student, marked in ((1.0, True), (3.0, False)):
        for model, value in (("zero_shot_student", 2.0), ("student", student)):
            metrics[model] = dict.fromkeys(metrics[model], value)
        path.write_text(json.dumps(metrics))
        page = gather()
        for text in (page_content.html(page), page_content.markdown(page)):
            _, _, section = text.partition(page_content.about_dataset(page.pages[0]))
            assert (f"{LEGEND}." in section) is marked
            assert (f"student{sign(worse=True)}" in section) is marked


def test_outputs_are_compared_with_what_dvc_recorded(gather: Gather) -> None:
    data = Path("data")
    student = data / "student" / NAME / "student.safetensors"
    teacher = data / "teacher" / NAME / "teacher.safetensors"
    gone = data / "class_vectors" / NAME / "nothing.safetensors"

    def stage(path: Path, md5: str) -> dict[str, Any]:
        return {"outs": [{"path": path.as_posix(), "md5": md5}]}

    stages = {
        f"student@{NAME}": stage(student, content_hash(student)),
        f"teacher@{NAME}": stage(teacher, "0" * 32),
        f"class_vectors@{NAME}": stage(gone, "1" * 32),
    }
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    found = {one.path: one.state for one in gather().origin.outputs}
    assert found == {
        student.as_posix(): "as recorded",
        teacher.as_posix(): "not as recorded",
        gone.as_posix(): "not here",
    }


def test_no_login_in_the_parameters_reaches_the_page(project: Path, gather: Gather) -> None:
    with (project / "params.yaml").open("a") as file:
        file.write("# mirror: https://me:hunter22secret@example.org/data\n")
    page = gather()
    page_content.write(page, project / "build")
    for path in (project / "build").glob("report.*"):
        assert "hunter22secret" not in path.read_text()
        assert "example.org/data" in path.read_text()


def test_names_are_shown_as_they_are_written(gather: Gather) -> None:
    page = gather()
    odd = replace(page.pages[0], title="<b>x</b> & y", classes=("a|b", "<i>", "c", "d", "e"))
    text = page_content.html(replace(page, pages=(odd,)))
    assert "<b>x</b> &" not in text
    assert "<i>" not in text
    assert "&lt;i&gt;" in text
    assert "a\\|b" in page_content.markdown(replace(page, pages=(odd,)))


@pytest.mark.parametrize(("model", "row"), [("tiny", "| 100 | 321 |"), ("ViT-B/16", "| – | – |")])
def test_measured_times_are_kept_beside_the_page_and_shown_for_the_same_model(
    project: Path, gather: Gather, model: str, row: str
) -> None:
    assert "| images a second | – | – |" in page_content.markdown(gather())
    speeds = {
        name: vars(page_models.Speed(model, rate, 20.0, "CPU", 1, 32))
        for name, rate in (("teacher", 100.0), ("student", 321.0))
    }
    (project / "build" / page_models.SPEED_FILE).write_text(json.dumps(speeds))
    assert f"| images a second {row}" in page_content.markdown(gather())


def test_where_all_classes_were_taught_there_are_no_halves(project: Path, gather: Gather) -> None:
    split = project / "data" / "prepare" / NAME / "split.json"
    split.write_text(json.dumps({**json.loads(split.read_text()), "protocol": "all_classes"}))
    write_sums(split.parent)
    (page,) = gather().pages
    assert page.base_count == len(page.classes)
    assert "novel" not in page_content.about_dataset(page)
    heads = [column.head for column in page_classes.class_table(page).heads]
    assert heads == ["class", "images", "teacher", "student", "precision"]


def test_unequal_classes_have_balanced_accuracy_f1_and_what_the_largest_class_gives(
    project: Path, gather: Gather
) -> None:
    equal = page_classes.accuracy_table(gather().pages[0], {})
    assert "balanced accuracy, %" not in [column.head for column in equal.heads]
    path = project / "data" / "evaluate" / NAME / "predictions.json"
    rows = [row for row in json.loads(path.read_text()) if row["label"]]
    rows += [row for row in rows if row["label"] == 2] * 2
    path.write_text(json.dumps(rows))
    page = gather().pages[0]
    *models, constant = page_classes.accuracy_table(page, {}).body
    labels, predicted = zip(*((row["label"], row["student"][1]) for row in rows), strict=True)
    score = 100 * balanced_accuracy_score(labels, predicted)
    assert models[1].cells[2].startswith(f"{score:.1f} (")
    largest = 100 * labels.count(2) / len(labels)
    assert constant.cells == (f"always {page.classes[2]}", f"{largest:.1f}", "25.0", "–", "–")


def test_before_anything_is_run_the_papers_numbers_are_the_papers_alone(tmp_path: Path) -> None:
    (tmp_path / "paper").mkdir()
    shutil.copy(ROOT / "paper" / "params.yaml", tmp_path / "paper")
    done = promptkd(tmp_path / "paper", "page")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wrote build/report/paper/report.html\n"
    page = tmp_path / "paper" / "build" / "report" / "paper" / "report.html"
    text, rows = page.read_text(), page.with_suffix(".md").read_text()
    assert "0 of 11 data sets run" in text
    published = numbers_of(paper())
    assert {"85.84", "76.39", "87.01"} <= published  # base to novel, across data sets and domains
    theirs = r"<tr class='paper'>.*?</tr>|<(td|th)[^>]*class='theirs'.*?</\1>"
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", re.sub(theirs, "", text))
    assert "not run" in cells
    assert published.isdisjoint(cells)
    assert not [cell for cell in cells if re.fullmatch(r"[+-]?\d+\.\d\d?( ±.*)?", cell)]
    for line in re.findall(r"^\| .* \|$", rows, re.MULTILINE):
        name, whose, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        if published.intersection(rest):
            assert whose in ("paper", "not run"), (name, whose)


def test_the_profile_of_a_follow_up_has_its_published_numbers(tmp_path: Path) -> None:
    for name in ("the_professor", "vit_h_to_vit_b_32"):
        (tmp_path / "paper" / name).mkdir(parents=True)
        shutil.copy(ROOT / "paper" / name / "params.yaml", tmp_path / "paper" / name)
        done = promptkd(tmp_path / "paper" / name, "page")
        assert done.returncode == 0, done.stderr
        page = tmp_path / "paper" / name / "build" / "report" / name / "report.html"
        assert ("89.28 on these four data sets" in page.read_text()) is (name == "the_professor")


def numbers_of(content: Any) -> set[str]:
    """Return all accuracies somewhere in the paper's tables, as the page writes them."""
    if isinstance(content, dict):
        return set().union(*map(numbers_of, content.values()))
    return {f"{content:.2f}"} if isinstance(content, float) else set()


def test_damaged_results_are_refused_in_one_line(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "data" / "evaluate", tmp_path / "data" / "evaluate")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "data" / "evaluate" / NAME / "metrics.json").write_text("{")
    done = promptkd(tmp_path, "page")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert f"dvc repro evaluate@{NAME}" in line


def untrained(folder: Path) -> Job:
    """Write an untrained teacher and student of the embedded models."""
    params = load_params(ROOT / "params.yaml").for_dataset(NAME)
    found = Job.at(folder / "data", params, seed=1, device="cpu", data_root=folder)
    teacher = Teacher.untrained(load_clip(params.teacher.model, None), text_depth=2, image_depth=2)
    teacher.save(found.teacher / "teacher.safetensors")
    vectors = class_vectors.build(teacher.eval(), ("digit one", "digit two"))
    vectors.save(found.vectors / class_vectors.FILE)
    student = Student.untrained(load_clip(params.student.model, None), feature_width=128)
    student.save(found.student / STUDENT_FILE)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_teacher_and_student_are_measured_each_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # whose params.yaml names the weights from there
    found = page_models.measure_speed(untrained(tmp_path), tmp_path / "build")
    assert set(found) == {"teacher", "student"}
    assert all(one.images_per_second > 1 and one.mebibytes > 1 for one in found.values())
    assert page_models.read_speed(tmp_path / "build") == found


@pytest.mark.parametrize("alone", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_to_measure_what_is_not_there_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, alone: bool
) -> None:
    if not alone:  # a process of its own takes seconds
        monkeypatch.setattr(
            page_models, "ProcessPoolExecutor", lambda _, **__: ThreadPoolExecutor(1)
        )
    shutil.copy(ROOT / "params.yaml", tmp_path)
    done = promptkd(tmp_path, "page", "--measure")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"run `dvc repro class_vectors@{NAME}`" in line


def test_the_likeliest_classes_are_the_first_of_equal_ones() -> None:
    logits = np.random.default_rng(0).integers(0, 4, (50, 6)).astype(np.float32)
    logits[0] = [0, -1e5, -1e5, -1e5, -1e5, -1e5]  # probabilities of 0

    top = page_dataset._likeliest(logits, np.arange(50))

    shares = page_dataset._softmax(logits)
    best = np.argsort(-shares, axis=1, kind="stable")[:, :3]
    assert np.array_equal(top[:, :, 0], best)
    assert np.array_equal(top[:, :, 1], np.take_along_axis(shares, best, axis=1))
    assert page_dataset._likeliest(logits[:, :2], np.arange(50)).shape == (50, 2, 2)
