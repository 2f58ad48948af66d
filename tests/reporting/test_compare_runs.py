"""`promptkd compare` of MLflow runs and model versions, in a real store."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tracked
from compared import Evaluation, evaluate, evaluation, make_project
from typer.testing import CliRunner

from pd_core.cli import verbs
from pd_core.core.errors import UnknownName
from pd_core.mlops import tracking
from pd_core.reporting.comparison import Comparison, compare
from pd_core.reporting.comparison_sources import find_side

NAME = "greek"
FIRST, SECOND = evaluation(skill=1.0, seed=1), evaluation(skill=1.6, seed=2)

# SQLAlchemy's, about MLflow's use of it.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")


@dataclass(frozen=True)
class Project:
    """A folder in which stages run, and the store that records them."""

    folder: Path
    store: str

    def stage(self, name: str, params: Mapping[str, Any], deps: tuple[str, ...] = ()) -> Any:
        """Record a block as a stage's run."""
        return tracked.stage(
            self.store, name, NAME, params={"run": {"seed": 1}, name: params},
            deps=[Path("data", dep, NAME) for dep in deps], outs=[Path("data", name, NAME)],
            project=self.folder,
        )  # fmt: skip

    def student(self, lr: float) -> str:
        """Run the stage `student`; what it writes depends on the rate."""
        with self.stage("student", {"lr": lr, "crop": [0.8, 1.0]}) as run:
            out = self.folder / "data" / "student" / NAME
            out.mkdir(parents=True, exist_ok=True)
            (out / "student.safetensors").write_text(str(lr))
        (out / ".gitignore").write_text("/student.safetensors\n")  # as DVC does behind it
        return str(run.run_id)

    def evaluate(self, one: Evaluation, *, keep: bool = True) -> str:
        """Run the stage `evaluate`."""
        out = self.folder / "data" / "evaluate" / NAME
        with self.stage("evaluate", {"split": "test"}, ("student",)) as run:
            one.write(out)
            run.log_metrics(one.metrics)
            if keep:
                run.log_file(out / "predictions.json")
        (out / ".gitignore").write_text("/predictions.json\n")
        return str(run.run_id)

    def version(self, run_id: str | None, one: Evaluation) -> int:
        """Register a student; its files are of no concern here."""
        mlflow = tracking.client(self.store)
        if not mlflow.search_registered_models():
            mlflow.create_registered_model(f"promptkd-{NAME}")
        numbers = {
            f"{who}.{key}": f"{value:.2f}"
            for who, row in one.metrics.items()
            for key, value in row.items()
        }
        tags = {"seed": "1", "protocol": "base_to_novel", "selection": "last", **numbers}
        made = mlflow.create_model_version(
            f"promptkd-{NAME}", str(self.folder), run_id=run_id, tags=tags
        )
        return int(made.version)

    def compare(self, first: str, second: str) -> Comparison:
        return compare(
            *(find_side(given, self.folder, lambda: self.store) for given in (first, second))
        )


@pytest.fixture
def project(tmp_path: Path, empty_database: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copyfile(empty_database, folder / tracking.DATABASE)
    return Project(folder, tracking.open_store(folder))


@pytest.fixture
def two_runs(project: Project) -> tuple[str, str]:
    """Distil and evaluate twice, with another rate."""
    project.student(0.001)
    first = project.evaluate(FIRST)
    project.student(0.002)
    return first, project.evaluate(SECOND)


def params(found: Comparison) -> dict[str, tuple[Any, Any]]:
    return {one.name: (one.first, one.second) for one in found.params}


def significance(found: Comparison) -> dict[str, float | None]:
    return {one.metric: one.p for one in found.metrics if one.who == "student"}


def test_runs_differ_in_the_parameters_of_the_stages_they_come_from(
    project: Project, two_runs: tuple[str, str]
) -> None:
    assert params(project.compare(*two_runs)) == {"student.lr": (0.001, 0.002)}


def test_runs_differ_in_what_they_measured_with_its_significance(
    project: Project, two_runs: tuple[str, str]
) -> None:
    found = project.compare(*two_runs)
    rows = {one.metric: one for one in found.metrics}
    for metric, row in rows.items():
        assert row.first == FIRST.metrics["student"][metric]
        assert row.second == SECOND.metrics["student"][metric]
    assert None not in significance(found).values()
    assert significance(found).keys() == {"base", "novel", "hm", "all"}


def test_a_data_sets_and_a_benchmarks_run_are_what_is_current_below_them(
    project: Project, two_runs: tuple[str, str]
) -> None:
    first, second = two_runs
    mlflow = tracking.client(project.store)
    dataset = mlflow.get_run(second).data.tags["mlflow.parentRunId"]
    benchmark = mlflow.get_run(dataset).data.tags["mlflow.parentRunId"]
    straight = project.compare(first, second)
    for above in (dataset, benchmark, f"runs:/{benchmark}"):
        found = project.compare(first, above)
        assert found.metrics == straight.metrics
        assert params(found) == params(straight)


def test_a_run_that_keeps_no_predictions_is_given_the_projects_if_they_are_its_own(
    project: Project,
) -> None:
    first, second = (project.evaluate(one, keep=False) for one in (FIRST, SECOND))
    found = project.compare(first, second)
    assert set(significance(found).values()) == {None}
    (note,) = (note for note in found.notes if "significance" in note)
    assert f"on the first side run {first} keeps no predictions" in note
    third = project.evaluate(FIRST)
    project.evaluate(SECOND, keep=False)
    assert None not in significance(project.compare(third, second)).values()


def test_a_run_that_measured_nothing_has_parameters_only(project: Project) -> None:
    first, second = project.student(0.001), project.student(0.002)
    found = project.compare(first, second)
    assert params(found) == {"student.lr": (0.001, 0.002)}
    assert found.metrics == ()
    assert any("nothing was measured" in note for note in found.notes)


def test_versions_are_compared_by_the_runs_they_were_logged_to(
    project: Project, two_runs: tuple[str, str]
) -> None:
    numbers = [
        project.version(run, one) for run, one in zip(two_runs, (FIRST, SECOND), strict=True)
    ]
    mlflow = tracking.client(project.store)
    mlflow.set_registered_model_alias(f"promptkd-{NAME}", "champion", str(numbers[1]))
    found = project.compare(f"{NAME}/{numbers[0]}", f"models:/promptkd-{NAME}@champion")
    assert found.second.title.startswith(f"version promptkd-{NAME}/{numbers[1]}")
    straight = project.compare(*two_runs)
    assert found.metrics == straight.metrics
    assert params(found) == params(straight)


def test_a_version_without_a_run_has_what_its_tags_say(project: Project) -> None:
    numbers = [project.version(None, one) for one in (FIRST, SECOND)]
    found = project.compare(*(f"{NAME}/{number}" for number in numbers))
    rows = {one.metric: one for one in found.metrics}
    assert rows["hm"].first == round(FIRST.metrics["student"]["hm"], 2)
    assert set(significance(found).values()) == {None}
    assert any("no predictions are kept" in note for note in found.notes)


def test_a_revision_is_compared_with_a_run_and_with_a_version(
    tmp_path: Path, empty_database: Path
) -> None:
    folder = make_project(tmp_path / "both")
    shutil.copyfile(empty_database, folder / tracking.DATABASE)
    project = Project(folder, tracking.open_store(folder))
    project.student(0.002)
    run = project.evaluate(SECOND)
    version = f"{NAME}/{project.version(run, SECOND)}"
    shutil.rmtree(folder / "data")
    committed = {"student": {"lr": 0.1}, "datasets": {NAME: {"student": {"lr": 0.001}}}}
    evaluate(folder, committed, {NAME: FIRST})
    for other in (run, version):
        found = project.compare("HEAD", other)
        assert params(found) == {"student.lr": (0.001, 0.002)}
        assert None not in significance(found).values()
        assert any("not all parameters of `evaluate`" in note for note in found.notes)


def test_the_verb_opens_the_store_of_the_project(
    project: Project, two_runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(Path(__file__).parents[2] / "params.yaml", project.folder / "params.yaml")
    monkeypatch.chdir(project.folder)
    monkeypatch.delenv("PD_MLFLOW_TRACKING_URI", raising=False)
    result = CliRunner().invoke(verbs.app, ["compare", *two_runs])
    assert result.exit_code == 0, result.output
    assert "student.lr  0.001  0.002" in result.stdout


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("f" * 32, "unknown model 'promptkd-ffff"),
        ("runs:/abc", "names no model"),
        (f"{NAME}/7", "unknown version"),
        (f"{NAME}@champion", "has no champion"),
        ("", "names no model"),
    ],
)
def test_a_name_of_nothing_is_refused(project: Project, given: str, reason: str) -> None:
    project.version(None, FIRST)
    with pytest.raises(UnknownName, match="is no git revision, no MLflow run") as refusal:
        project.compare(given, f"{NAME}/1")
    assert reason in str(refusal.value)
