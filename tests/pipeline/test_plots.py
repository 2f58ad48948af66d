"""`dvc plots` shows what every training wrote, of one revision or of two over each other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import browser
from command import promptkd
from git_repository import commit
from test_jobs import NAME, OTHER, clone, dvc

REVISIONS = ("HEAD~1", "HEAD")
PANELS = {
    "teacher": [("loss", "loss"), ("accuracy", "accuracy on the few labels, %")],
    "student": [("loss", "loss"), ("agreement", "agreement with the teacher, %")],
    "tuned_student": [("loss", "loss"), ("accuracy", "accuracy on the few labels, %")],
}

# In place of a stage's work: files of its outputs' names, other ones for each seed.
WRITE = """
import json, sys
from pathlib import Path
seed, *paths = sys.argv[1:]
for path in map(Path, paths):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name == "history.json":
        rows = [{"loss": int(seed) / epoch, "lr": 0.1,
                 "agreement" if "/student/" in str(path) else "accuracy": 10 * epoch + int(seed)}
                for epoch in (1, 2, 3)]
        path.write_text(json.dumps(rows))
    elif path.name == "predictions.json":
        rows = [{"path": f"{n}.png", "label": n % 3, "teacher": [0, n % 3],
                 "student": [0, (n * int(seed)) % 3]} for n in range(6)]
        path.write_text(json.dumps(rows))
    elif path.suffix:
        path.write_text("{}")
    else:
        path.mkdir(exist_ok=True)
        (path / "summary.png").write_text(f"picture of seed {seed}")
"""


@dataclass(frozen=True)
class Project:
    """A DVC project with two revisions, and what was written in each."""

    folder: Path
    written: dict[str, Path]  # a copy of its data by revision

    def diff(self, *arguments: str) -> dict[str, Any]:
        return plots(self.folder, "diff", *arguments, *REVISIONS)

    def history(self, revision: str, path: str) -> Any:
        return json.loads((self.written[revision] / path).read_text())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Run the pipeline for two seeds, with stages that take no time."""
    folder = clone(tmp_path_factory.mktemp("plots") / "promptkd")
    _without_work(folder / "dvc.yaml")
    written = {}
    for seed, revision in enumerate(REVISIONS, 1):
        _revision(folder, seed=seed)
        written[revision] = folder.parent / revision
        shutil.copytree(folder / "data", written[revision] / "data")
    return Project(folder, written)


def plots(folder: Path, *arguments: str) -> dict[str, Any]:
    """Return the plots that DVC would draw, by name."""
    drawn = json.loads(dvc(folder, "plots", *arguments[:1], "--json", *arguments[1:]))
    assert "errors" not in drawn
    data: dict[str, Any] = drawn["data"]
    return data


def _without_work(pipeline: Path) -> None:
    (pipeline.parent / "write.py").write_text(WRITE)
    content = yaml.safe_load(pipeline.read_text())
    for name in ("prepare", "class_vectors"):
        del content["stages"][name]  # which have nothing to plot
    for stage in content["stages"].values():
        body = stage.get("do", stage)
        outputs = [body.get(kind, []) for kind in ("outs", "plots", "metrics")]
        paths = [out if isinstance(out, str) else next(iter(out)) for out in sum(outputs, [])]
        body["cmd"] = " ".join(["python3 ${profile.root}/write.py ${run.seed}", *paths])
        del body["deps"]
    pipeline.write_text(yaml.safe_dump(content, sort_keys=False))


def _revision(folder: Path, *, seed: int) -> None:
    """Run two data sets, the first one with the baseline, and commit."""
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["run"]["seed"] = seed
    params["datasets"] = {name: params["datasets"][name] for name in (NAME, OTHER)}
    params["tuned_student"] = {NAME: {}}
    path.write_text(yaml.safe_dump(params))
    dvc(folder, "repro", "--quiet")
    commit(folder)


def trainings(*datasets: str) -> dict[str, str]:
    """Return the stages by the paths of their histories."""
    pairs = [(stage, name) for stage in ("teacher", "student") for name in datasets]
    pairs.append(("tuned_student", datasets[0]))
    return {f"data/{stage}/{name}/history.json": stage for stage, name in pairs}


def curves(plot: dict[str, Any], revision: str) -> list[dict[str, Any]]:
    """Return the rows that a plot has of a revision, without what DVC added."""
    rows = [row for row in plot["content"]["data"]["values"] if row["rev"] == revision]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    added = ("rev", "step", "filename", "field")
    return [{key: row[key] for key in row if key not in added} for row in rows]


def panels(plot: dict[str, Any], *revisions: str) -> list[tuple[str, str]]:
    """Return field and title of the vertical axes, side by side over epochs."""
    content = plot["content"]
    assert content["transform"] == [{"calculate": "datum.step + 1", "as": "epoch"}]
    encodings = [panel["encoding"] for panel in content["hconcat"]]
    for encoding in encodings:
        assert (encoding["x"]["field"], encoding["x"]["title"]) == ("epoch", "epoch")
        assert encoding["color"]["field"] == "rev"
        assert set(encoding["color"]["scale"]["domain"]) == set(revisions)
    return [(encoding["y"]["field"], encoding["y"]["title"]) for encoding in encodings]


def test_every_training_has_its_curves_of_both_revisions(project: Project) -> None:
    drawn = project.diff()
    stages = trainings(NAME, OTHER)
    assert set(drawn) == {*stages, "reports/quickstart/summary.png"}
    for path, stage in stages.items():
        (plot,) = drawn[path]
        assert panels(plot, *REVISIONS) == PANELS[stage]
        assert path.split("/")[2] in plot["content"]["title"]
        rows = [curves(plot, revision) for revision in REVISIONS]
        assert rows == [project.history(revision, path) for revision in REVISIONS]
        assert rows[0] != rows[1]


def test_the_summarys_figure_is_there_of_both_revisions(project: Project, tmp_path: Path) -> None:
    drawn = project.diff("--out", str(tmp_path))
    figures = drawn["reports/quickstart/summary.png"]
    texts = {plot["revisions"][0]: Path(plot["url"]).read_text() for plot in figures}
    assert texts == {"HEAD~1": "picture of seed 1", "HEAD": "picture of seed 2"}


def test_a_confusion_matrix_is_counted_from_the_predictions_of_both_revisions(
    project: Project,
) -> None:
    path = f"data/evaluate/{NAME}/predictions.json"
    ((plot,),) = project.diff("--template", "confusion_matrix", "--targets", path, "--").values()
    rows = [curves(plot, revision) for revision in REVISIONS]
    assert rows == [project.history(revision, path) for revision in REVISIONS]
    assert rows[0] != rows[1]
    steps = plot["content"]["transform"]
    assert {"fold": ["teacher", "student"], "as": ["who", "answers"]} in steps
    assert {"calculate": "datum.answers[1]", "as": "answer"} in steps  # of all classes
    (counted,) = [step["groupby"] for step in steps if "aggregate" in step]
    assert counted == ["rev", "who", "label", "answer"]


@pytest.mark.slow
@pytest.mark.ci
def test_plots_are_drawn_without_a_network(project: Project, tmp_path: Path) -> None:
    """The browser loads the page alone, and has drawn all curves."""
    folder = Path(shutil.copytree(project.folder, tmp_path / "project", symlinks=True))
    before = subprocess.check_output(["git", "status", "--short"], cwd=folder)
    done = promptkd(folder, "offline-plots")
    assert done.returncode == 0, done.stderr
    assert subprocess.check_output(["git", "status", "--short"], cwd=folder) == before
    page = dvc(folder, "plots", "diff", *REVISIONS).strip()
    curves = "document.querySelectorAll('svg.marks .mark-line path').length"
    with browser(tmp_path / "profile") as tab:
        tab.open(page)
        panels = 2 * len(trainings(NAME, OTHER))
        tab.wait_for(f"{curves} == {panels * len(REVISIONS)}")
        assert {address.partition(":")[0] for address in tab.asked} <= {"file", "data"}


def test_without_the_library_offline_plots_name_the_package(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    done = promptkd(project.folder, "offline-plots")
    assert done.returncode == 2
    assert "`pip install -c constraints.txt vl-convert-python`" in done.stderr
    assert not (project.folder / ".dvc" / "offline_plots").exists()
