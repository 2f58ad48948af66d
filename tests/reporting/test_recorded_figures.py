"""MLflow has the page's curves: numbers of every epoch, and the figures as files of the runs."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tracked
import yaml
from page_project import NAME, ROOT, copy, gathered, job, make
from sklearn.metrics import f1_score, precision_score, recall_score

from pd_core.data.loading.prepared import read_prepared
from pd_core.mlops import tracking
from pd_core.reporting import page_dataset as recorded
from pd_core.reporting import page_figures

FIGURES = [recorded.CONFUSION, recorded.CURVES, recorded.CLASSES]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module", name="made")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def project(
    made: Path, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Copy these outputs into a folder of a test's own, and go there."""
    copy(made, tmp_path)
    shutil.copy(empty_database, tmp_path / tracking.DATABASE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluation(store: str | None) -> Any:
    return tracked.stage(store, "evaluate", NAME)


def files(store: str, run_id: str | None, folder: Path) -> dict[str, str]:
    """Return the files of a run as texts, by name."""
    assert run_id is not None
    folder.mkdir()
    tracking.client(store).download_artifacts(run_id, "", str(folder))
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def lines(figure: str, colour: str) -> list[list[float]]:
    """Return the heights of the points of each line of a colour."""
    found = []
    for path in ElementTree.fromstring(figure).iter(f"{SVG}path"):
        style = path.get("style") or ""
        if "fill: none" in style and f"stroke: {colour}" in style:
            numbers = re.findall(r"[-.\d]+", path.get("d") or "")
            found.append([-float(y) for y in numbers[1::2]])  # SVG counts downwards
    return found


def assert_drawn(line: list[float], values: list[float]) -> None:
    """Compare a line with values, in units of its own height."""
    drawn, meant = (np.array(one) for one in (line, values))
    assert len(drawn) == len(meant)
    scaled = [(one - one.min()) / np.ptp(one) for one in (drawn, meant)]
    assert scaled[0] == pytest.approx(scaled[1], abs=1e-3)


def test_the_learning_curves_are_drawn_through_what_the_trainings_wrote(project: Path) -> None:
    rows = {
        "teacher": [{"loss": 3.0, "accuracy": 20.0}, {"loss": 1.0, "accuracy": 70.0},
                    {"loss": 2.5, "accuracy": 60.0}],
        "student": [{"loss": 90.0, "agreement": 5.0}, {"loss": 50.0, "agreement": 25.0},
                    {"loss": 40.0, "agreement": 15.0}, {"loss": 45.0, "agreement": 80.0}],
    }  # fmt: skip
    for stage, history in rows.items():
        (project / "data" / stage / NAME / "history.json").write_text(json.dumps(history))
    drawn = recorded.of_evaluation(job(project, NAME))[recorded.CURVES]
    for stage, history in rows.items():
        keys = ("loss", "accuracy" if stage == "teacher" else "agreement")
        for line, key in zip(lines(drawn, page_figures.COLOURS[stage]), keys, strict=True):
            assert_drawn(line, [row[key] for row in history])


def test_figures_and_accuracies_by_class_are_files_of_the_run(
    project: Path, tmp_path: Path
) -> None:
    store = tracking.open_store(project)
    with evaluation(store) as run:
        run.log_texts(lambda: recorded.of_evaluation(job(project, NAME)))
    kept = files(store, run.run_id, tmp_path / "kept")
    assert set(kept) == {*FIGURES, tracking.LINEAGE_FILE}
    for name in (recorded.CONFUSION, recorded.CURVES):
        root = ElementTree.fromstring(kept[name])
        assert root.tag == f"{SVG}svg"
        assert root.get("style") == "background: white; color: black"  # MLflow's page may be dark

    predicted = json.loads((project / "data" / "evaluate" / NAME / "predictions.json").read_text())
    labels = [row["label"] for row in predicted]
    table = list(csv.DictReader(kept[recorded.CLASSES].splitlines()))
    classes = read_prepared(project / "data" / "prepare" / NAME).classes
    assert [row["class"] for row in table] == list(classes)
    assert [int(row["images"]) for row in table] == np.bincount(labels).tolist()
    for who in ("teacher", "student"):
        guesses = [row[who][1] for row in predicted]
        for column, score in (
            (who, recall_score), (f"{who}_precision", precision_score), (f"{who}_f1", f1_score)
        ):  # fmt: skip
            values = score(labels, guesses, labels=range(len(classes)), average=None,
                           zero_division=np.nan)  # fmt: skip
            ours = [float(row[column] or "nan") for row in table]
            assert ours == pytest.approx(100 * values, abs=0.01, nan_ok=True)


def test_where_no_test_image_has_a_label_there_are_learning_curves_alone(project: Path) -> None:
    path = project / "data" / "evaluate" / NAME / "predictions.json"
    # as `estimate` writes it
    path.write_text(json.dumps([{"path": "1.png", "teacher": 0, "student": 1}]))
    assert list(recorded.of_evaluation(job(project, NAME))) == [recorded.CURVES]
    (page,) = gathered(project).pages
    assert page.people == {}


def test_figures_that_cannot_be_drawn_cost_a_warning_and_nothing_else(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = project / "data" / "evaluate" / NAME / "predictions.json"
    path.write_text("[{")
    store = tracking.open_store(project)
    with caplog.at_level(logging.WARNING), evaluation(store) as run:
        run.log_metrics({"student": {"hm": 70.0}})
        run.log_file(path)
        run.log_texts(lambda: recorded.of_evaluation(job(project, NAME)))
    assert f"run 'evaluate@{NAME}' goes without its figures: " in caplog.text
    assert "is not recorded" not in caplog.text
    assert set(files(store, run.run_id, tmp_path / "kept")) == {
        "predictions.json",
        tracking.LINEAGE_FILE,
    }
    stored = tracking.client(store).get_run(run.run_id)
    assert (stored.info.status, stored.data.metrics["student/hm"]) == ("FINISHED", 70.0)


def test_without_a_store_nothing_is_drawn() -> None:
    drawn: list[str] = []
    with evaluation(None) as run:
        run.log_texts(lambda: drawn.append("a figure") or {})  # type: ignore[func-returns-value]
    assert drawn == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_verbs_record_the_curves_that_the_stages_wrote_and_the_page(
    tmp_path: Path, empty_database: Path
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copyfile(empty_database, folder / tracking.DATABASE)
    for name in ("pd_core", "fingerprints"):
        (folder / name).symlink_to(ROOT / name)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["teacher"].update(epochs=2, gpa_mean=2, templates=2)
    params["student"].update(epochs=2)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    verbs = ("prepare", "teacher", "class-vectors", "student", "evaluate")
    for arguments in (*([verb, NAME] for verb in verbs), ["page", "--record"]):
        assert promptkd(folder, *arguments).returncode == 0

    store = tracking.open_store(folder)
    client = tracking.client(store)
    experiment = tracking.experiment_id(client, store, "promptkd-quickstart")
    runs = {run.data.tags.get("stage"): run for run in client.search_runs([experiment])}
    for stage in ("teacher", "student"):
        history = json.loads((folder / "data" / stage / NAME / "history.json").read_text())
        assert {"loss", "lr", "agreement" if stage == "student" else "accuracy"} <= set(history[0])
        for key in history[0]:
            points = client.get_metric_history(runs[stage].info.run_id, key)
            found = [(point.step, point.value) for point in points]
            assert found == [(number, row[key]) for number, row in enumerate(history, start=1)]

    kept = files(store, runs["evaluate"].info.run_id, tmp_path / "evaluate")
    assert {*FIGURES, "predictions.json"} <= set(kept)
    page = files(store, runs["page"].info.run_id, tmp_path / "page")
    report = {"report.html", "report.md", "report.json", f"calibration/{NAME}.svg"}
    assert set(page) == {*report, tracking.LINEAGE_FILE}
    built = folder / "build" / "report" / "quickstart"
    assert page["report.html"] == (built / "report.html").read_text()
    people = json.loads((built / "report.json").read_text())["pages"][0]["people"]
    for who in ("teacher", "student"):
        error = runs["page"].data.metrics[f"{NAME}/{who}/calibration_error"]
        assert error == people[who]["calibration"]["error"]

    client.delete_experiment(experiment)
    client.delete_registered_model(f"promptkd-{NAME}")
    evaluated = promptkd(folder, "evaluate", NAME)
    assert evaluated.returncode == 0
    assert "warning: the student is not registered, the experiment" in evaluated.stderr
    remedy = evaluated.stderr.partition("restore it: ")[2].partition("\n")[0].partition(";")[0]
    variable, *command = shlex.split(remedy)  # as a shell does
    subprocess.run(command, env={**os.environ, **dict([variable.split("=", 1)])}, check=True)
    registered = promptkd(folder, "registry", "register", NAME)
    assert f"promptkd-{NAME}  version 1, new" in registered.stdout


def promptkd(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pd_core", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
