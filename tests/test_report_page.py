"""The page shows what the stages wrote, says what is missing, and can be looked at anywhere."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import yaml
from browser import Browser, browser
from PIL import Image
from sklearn.metrics import accuracy_score

from pd_core import class_vectors, distill, evaluate, pretrain
from pd_core.layout import Job
from pd_core.page import answering, build, html, markdown, measures, speed
from pd_core.page.build import Page
from pd_core.page.dataset import DatasetPage, Person
from pd_core.page.gallery import Gallery
from pd_core.params import load_params
from pd_core.provenance import content_hash

ROOT = Path(__file__).parent.parent
NAME = "embedded_digits"
SCREENS = {"desk": (1280, 900), "phone": (390, 844)}

Gather = Callable[[], Page]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the stages of a data set of five classes, with tiny models."""
    folder = tmp_path_factory.mktemp("made")
    data = folder / "data"
    prepared = tiny.prepared(data / "prepare" / NAME)
    large, small = tiny.weights(folder), tiny.weights(folder, seed=1)
    teacher, vectors, student, evaluation = (
        data / stage / NAME for stage in ("teacher", "class_vectors", "student", "evaluate")
    )
    with tiny.quick_stages("pretrain", "class_vectors", "distill", "evaluate"):
        pretrain.run(prepared, teacher, model="tiny", weights=large, epochs=2, templates=2)
        class_vectors.run(prepared, teacher, vectors, model="tiny", weights=large)
        clip: dict[str, Any] = {"teacher_model": "tiny", "teacher_weights": large}
        mine: dict[str, Any] = {"model": "tiny", "weights": small}
        distill.run(prepared, teacher, vectors, student, epochs=2, batch_size=4, **mine, **clip)
        evaluate.run(
            prepared, teacher, vectors, student, evaluation,
            split="test", batch_size=8, **mine, **clip,
        )  # fmt: skip
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy these outputs into a folder of a test's own, and go there."""
    shutil.copytree(made / "data", tmp_path / "data")
    for weights in made.glob("*.safetensors"):
        shutil.copy(weights, tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(folder: Path, name: str) -> Job:
    """Lay a data set out as the pipeline does, with the tiny models."""
    params = load_params(ROOT / "params.yaml").for_dataset(name)
    weights = {"teacher": "tiny-0.safetensors", "student": "tiny-1.safetensors"}
    blocks = {
        stage: getattr(params, stage).model_copy(
            update={"model": "tiny", "weights": str(folder / file)}
        )
        for stage, file in weights.items()
    }
    mine = params.model_copy(update=blocks)
    data = folder / "data"
    return Job.at(data, mine, seed=1, device="cpu", data_root=data / "raw")


def gathered(folder: Path) -> Page:
    """Gather the page of two data sets, of which one was run."""
    jobs = {name: job(folder, name) for name in (NAME, "embedded_greek")}
    with tiny.torch_restored():
        return build.gather(jobs, folder / "build", profile="quickstart", root=folder)


@pytest.fixture
def gather(project: Path) -> Gather:
    """Return what gathers the page of the test's own folder."""
    return partial(gathered, project)


def predictions(project: Path) -> list[dict[str, Any]]:
    path = project / "data" / "evaluate" / NAME / "predictions.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def test_accuracy_and_confusion_are_those_of_the_predictions(project: Path, gather: Gather) -> None:
    (page,) = gather().pages
    rows = predictions(project)
    labels = [row["label"] for row in rows]
    for who in answering.PEOPLE:
        answers = [row[who][1] for row in rows]
        person = page.people[who]
        assert person.accuracy == pytest.approx(100 * accuracy_score(labels, answers))
        wrong = sum(label != answer for label, answer in zip(labels, answers, strict=True))
        assert sum(pair.count for pair in person.confused) == wrong
    assert page.images == (4, 4, 4, 4, 4)
    assert page.notes == ()


def test_the_models_answer_again_what_evaluate_wrote(project: Path, gather: Gather) -> None:
    (page,) = gather().pages
    rows = {row["path"]: row for row in predictions(project)}
    assert page.gallery is not None
    differing = [row for row in rows.values() if row["teacher"][1] != row["student"][1]]
    found = page.gallery
    assert found.images == len(rows)
    assert found.teacher_right + found.student_right + found.both_wrong == len(differing)
    for one in found.shown:
        for who in answering.PEOPLE:
            best, _ = one.top[who][0]
            assert best == page.classes[rows[one.path][who][1]]
            assert len(one.top[who]) == 3


def test_a_data_set_that_was_not_run_is_said_so(gather: Gather) -> None:
    page = gather()
    assert "1 of 2 data sets run" in html.text(page)
    line = "| Greek letters, neon | not run | not run | not run | not run |"
    assert line in markdown.text(page)


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
    assert "pictures are left out: no image folder at" in page.notes[0]


def test_answers_that_evaluate_did_not_write_are_noted(project: Path, gather: Gather) -> None:
    path = project / "data" / "evaluate" / NAME / "predictions.json"
    rows = json.loads(path.read_text())
    rows[0]["student"][1] = (rows[0]["student"][1] + 1) % 5
    path.write_text(json.dumps(rows))
    (page,) = gather().pages
    assert page.notes[0].startswith("student: 1 of 20 answers are not those that evaluate wrote")


def test_answers_are_kept_until_the_student_changes(project: Path, gather: Gather) -> None:
    first = gather().pages[0]
    kept = project / "build" / build.ANSWERS / f"{NAME}.json"
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
    metrics = {
        "accuracy": "unknown",
        "agreement": {"student": 90.0},
        "counts": {"unlabelled": 20},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = gather()
    text = markdown.text(page)
    assert "accuracy unknown, no labelled test images; the student agrees with its teacher" in text
    assert page.pages[0].people == {}
    assert "accuracy unknown" in html.text(page)


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
    build.write(page, project / "build")
    for path in (project / "build").glob("report.*"):
        assert "hunter22secret" not in path.read_text()
        assert "example.org/data" in path.read_text()


def test_names_are_shown_as_they_are_written(gather: Gather) -> None:
    page = gather()
    odd = replace(page.pages[0], title="<b>x</b> & y", classes=("a|b", "<i>", "c", "d", "e"))
    text = html.text(replace(page, pages=(odd,)))
    assert "<b>x</b> &" not in text
    assert "<i>" not in text
    assert "&lt;i&gt;" in text
    assert "a\\|b" in markdown.text(replace(page, pages=(odd,)))


def test_measured_times_are_kept_beside_the_page(project: Path, gather: Gather) -> None:
    assert "not measured" in markdown.text(gather())
    rows = {
        "teacher": speed.Speed(100.0, 20.0, "CPU", 1, 32),
        "student": speed.Speed(321.0, 10.0, "CPU", 1, 32),
    }
    (project / "build" / speed.FILE).write_text(
        json.dumps({who: vars(one) for who, one in rows.items()})
    )
    assert "| pictures a second | 100 | 321 |" in markdown.text(gather())


def test_json_has_what_the_page_shows(project: Path, gather: Gather) -> None:
    page = gather()
    path = build.write(page, project / "build")
    content = json.loads(path.with_suffix(".json").read_text())
    assert content["pages"][0]["people"]["student"]["accuracy"] == pytest.approx(
        page.pages[0].people["student"].accuracy
    )
    assert content["summary"]["datasets"][NAME] == page.summary["datasets"][NAME]
    assert len(content["pages"][0]["curves"]["student"]) == 2


def promptkd(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pd_core.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_before_anything_is_run_the_papers_numbers_are_the_papers_alone(tmp_path: Path) -> None:
    (tmp_path / "paper").mkdir()
    shutil.copy(ROOT / "paper" / "params.yaml", tmp_path / "paper")
    done = promptkd(tmp_path / "paper", "page")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wrote build/report/paper/report.html\n"
    text = (tmp_path / "paper" / "build" / "report" / "paper" / "report.html").read_text()
    assert "0 of 11 data sets run" in text
    assert "85.84" in text
    others = re.sub(r"<tr class='paper'>.*?</tr>|<(td|th)[^>]*class='theirs'.*?</\1>", "", text)
    numbers = re.findall(r"<td>([+-]?\d[\d.]*)</td>", others)
    assert numbers == []


def test_damaged_results_are_refused_in_one_line(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "data" / "evaluate", tmp_path / "data" / "evaluate")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "data" / "evaluate" / NAME / "metrics.json").write_text("{")
    done = promptkd(tmp_path, "page")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert f"dvc repro evaluate@{NAME}" in line


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_teacher_and_student_are_measured_each_in_a_process_of_its_own(
    project: Path, gather: Gather
) -> None:
    found = speed.measure(job(project, NAME), project / "build")
    assert set(found) == {"teacher", "student"}
    assert all(one.images_per_second > 1 and one.mebibytes > 1 for one in found.values())
    assert gather().speed == found


# --- in a browser


def large(name: str, classes: int = 48, images: int = 24) -> DatasetPage:
    """Make a data set as large as the embedded ones, with random answers and long names."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), images)
    people = {}
    for who in answering.PEOPLE:
        shares = rng.dirichlet(np.full(classes, 0.1), len(labels))
        answers = np.where(rng.random(len(labels)) < 0.6, labels, shares.argmax(axis=1))
        people[who] = Person(
            60.0,
            measures.class_accuracies(labels, answers, classes),
            measures.most_confused(measures.confusion(labels, answers, classes)),
            measures.calibration(shares, labels),
        )
    curve = tuple(
        {"loss": 5.0 / n, "accuracy": 9.0 * n, "agreement": 8.0 * n} for n in range(1, 11)
    )
    return DatasetPage(
        name,
        f"Letters of {name}",
        tuple(
            f"greek capital letter number_{n} without_any_place_to_break" for n in range(classes)
        ),
        classes // 2,
        (images,) * classes,
        dict.fromkeys(answering.PEOPLE, curve),
        people,
        notes=("a note " * 20,),
    )


def photo() -> str:
    """Make a picture of the gallery's size that cannot be made small."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.fixture(scope="module", name="eleven")
def _eleven(made: Path) -> Path:
    """Write a page of eleven large data sets, with pictures."""
    shutil.copy(ROOT / "params.yaml", made)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        page = gathered(made)
    small = page.pages[0]
    assert small.gallery is not None
    shown = [replace(one, data=photo()) for one in small.gallery.shown]
    pictures = Gallery(1152, 100, 80, 60, tuple(shown[n % len(shown)] for n in range(8)))
    pages = (replace(large(f"set_{n}"), gallery=pictures) for n in range(11))
    return build.write(replace(page, pages=(small, *pages)), made / "build")


@pytest.fixture(scope="module", name="tab")
def _tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


def test_eleven_data_sets_are_small_open_fast_and_ask_for_nothing(
    eleven: Path, tab: Browser
) -> None:
    assert eleven.stat().st_size < 5_000_000
    tab.show(width=1280, height=900)
    tab.forget()
    start = time.monotonic()
    tab.open(eleven.as_uri())
    assert time.monotonic() - start < 2
    assert [url for url in tab.asked if not url.startswith("data:")] == [eleven.as_uri()]
    assert tab.complaints == []
    assert tab.failed == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_everything_fits_on_the_screen(eleven: Path, tab: Browser, screen: str, dark: bool) -> None:
    width, height = SCREENS[screen]
    tab.show(width=width, height=height, dark=dark, phone=screen == "phone")
    tab.open(eleven.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    overflowing = (
        "[...document.querySelectorAll('body *:not(svg *)')].filter((one) =>"
        " one.getBoundingClientRect().right > innerWidth"
        " || one.clientWidth && one.scrollWidth > one.clientWidth + 1)"
        ".map((one) => one.tagName + ' ' + one.textContent.slice(0, 60))"
    )
    assert tab.evaluate(overflowing) == []
    letters = (
        "[...document.querySelectorAll('svg')].filter((one) => [...one.querySelectorAll('text')]"
        ".some((text) => { const [a, b] = [text, one].map((x) => x.getBoundingClientRect());"
        " return a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1"
        " || a.top < b.top - 1; })).map((one) => one.ariaLabel)"
    )
    assert tab.evaluate(letters) == []
    ink = "getComputedStyle(document.querySelector('svg text')).fill"
    assert tab.evaluate(ink) == tab.evaluate("getComputedStyle(document.body).color")


def test_every_link_leads_to_a_heading_and_every_picture_is_described(
    eleven: Path, tab: Browser
) -> None:
    tab.open(eleven.as_uri())
    dead = (
        "[...document.querySelectorAll('nav a')]"
        ".filter((one) => !document.getElementById(one.hash.slice(1))).length"
    )
    assert tab.evaluate(dead) == 0
    assert tab.evaluate("[...document.querySelectorAll('img')].every((one) => one.alt)")
    assert tab.evaluate("[...document.querySelectorAll('svg')].every((one) => one.ariaLabel)")
    ids = "[...document.querySelectorAll('[id]')].map((one) => one.id)"
    found = tab.evaluate(ids)
    assert len(found) == len(set(found))
