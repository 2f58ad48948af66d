"""`promptkd compare` of two git revisions, in real repositories of git and DVC."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

import pytest
from command import promptkd
from compared import evaluate, evaluation, make_project, right
from git_repository import commit
from scipy import stats

from pd_core.core.artifacts import write_json
from pd_core.reporting.comparison import Comparison, MetricDifference, compare
from pd_core.reporting.comparison_sources import find_side
from pd_core.reporting.report import summarise

ROOT = Path(__file__).parents[2]
NAMES = ("arrows", "digits", "greek", "latin")
SAME = evaluation(skill=1.0, seed=9)
BEFORE = {name: evaluation(skill=1.0, seed=place) for place, name in enumerate(NAMES)}
AFTER = {name: evaluation(skill=1.6, seed=50 + place) for place, name in enumerate(NAMES)}


def params(lr: float, **more: Any) -> dict[str, Any]:
    return {
        "run": {"seed": 1},
        "student": {"lr": lr, "crop": [0.8, 1.0], "max_grad_norm": None, **more},
        "datasets": {
            **{name: {"student": {}} for name in (*NAMES, "same")},
            "digits": {"student": {"lr": 0.5}},
        },
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project of two revisions, `HEAD~1` and `HEAD`."""
    folder = make_project(tmp_path_factory.mktemp("compared") / "project")
    evaluate(folder, params(0.001), {**BEFORE, "same": SAME})
    evaluate(folder, params(0.002, flip=True), {**AFTER, "same": SAME})
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """Copy it, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "project", symlinks=True))


def no_store() -> str:
    raise AssertionError("git revisions need no store of MLflow")


def compared(project: Path, first: str = "HEAD~1", second: str = "HEAD") -> Comparison:
    return compare(*(find_side(given, project, no_store) for given in (first, second)))


def found(
    comparison: Comparison, who: str = "student"
) -> Mapping[tuple[str, str], MetricDifference]:
    rows = [*comparison.metrics, *comparison.averages]
    return {(one.dataset or "average", one.metric): one for one in rows if one.who == who}


def test_parameters_differ_where_they_are_in_force(made: Path) -> None:
    found = {one.name: one for one in compared(made).params}
    everybody = tuple(sorted((*NAMES, "same")))
    assert set(found) == {"student.lr", "student.flip"}
    assert (found["student.lr"].first, found["student.lr"].second) == (0.001, 0.002)
    assert found["student.lr"].datasets == tuple(n for n in everybody if n != "digits")
    assert (found["student.flip"].first, found["student.flip"].second) == (None, True)
    assert found["student.flip"].datasets == everybody


def test_metrics_that_differ_are_those_of_the_stages(made: Path) -> None:
    rows = found(compared(made))
    for name in NAMES:
        one, other = BEFORE[name].metrics["student"], AFTER[name].metrics["student"]
        for metric in ("base", "novel", "hm", "all"):
            if one[metric] != other[metric]:
                row = rows[name, metric]
                assert (row.first, row.second) == (one[metric], other[metric])
    assert not found(compared(made), "teacher")
    assert not any(name == "same" for name, _ in rows)
    assert "the same metrics on both sides: same" in compared(made).notes


@pytest.mark.parametrize("metric", ["base", "novel", "all"])
def test_each_accuracys_significance_is_mcnemars_on_its_own_pictures(
    made: Path, metric: str
) -> None:
    rows = found(compared(made))
    for name in NAMES:
        first, second = (right(side[name], "student", metric) for side in (BEFORE, AFTER))
        apart = int((first != second).sum())
        expected = stats.binomtest(int((first & ~second).sum()), apart).pvalue
        assert rows[name, metric].p == pytest.approx(expected)
        assert rows[name, metric].pairs == len(first)


def test_the_harmonic_mean_has_a_significance_of_its_own(made: Path) -> None:
    rows = found(compared(made))
    for name in NAMES:
        row = rows[name, "hm"]
        assert (row.pairs, 0 < (row.p or 0) <= 1) == (100, True)
    assert (rows["greek", "hm"].p or 1) < 0.05  # 14 points


def test_averages_are_the_tables_and_tested_over_the_data_sets(made: Path) -> None:
    rows = found(compared(made))
    everybody = [*BEFORE.values(), SAME], [*AFTER.values(), SAME]
    base, novel = (
        [fmean(one.metrics["student"][key] for one in side) for side in everybody]
        for key in ("base", "novel")
    )
    row = rows["average", "hm"]
    assert row.first == pytest.approx(harmonic_mean([base[0], novel[0]]), abs=0.006)
    assert row.second == pytest.approx(harmonic_mean([base[1], novel[1]]), abs=0.006)
    differences = [
        one.metrics["student"]["hm"] - other.metrics["student"]["hm"]
        for one, other in zip(*everybody, strict=True)
    ]
    expected = stats.wilcoxon([value for value in differences if value], method="exact").pvalue
    assert row.p == pytest.approx(expected)
    assert row.pairs == len(differences)


def test_revisions_are_read_from_dvcs_cache_whatever_lies_in_the_project(project: Path) -> None:
    before = compared(project)
    shutil.rmtree(project / "data")
    (project / "params.yaml").unlink()
    assert compared(project).metrics == before.metrics
    assert compared(project).params == before.params


@pytest.mark.parametrize("content", [None, "[]"])
def test_missing_or_corrupt_predictions_leave_no_significance(
    project: Path, content: str | None
) -> None:
    forget(project, "latin", "predictions", content)
    rows = found(compared(project))
    assert rows["latin", "hm"].p is None
    assert rows["greek", "hm"].p is not None
    (note,) = (note for note in compared(project).notes if "significance" in note)
    assert "on the second side the file is not in DVC's cache" in note
    assert "`dvc pull`" in note
    assert note.endswith(": latin")


def test_data_sets_without_metrics_at_hand_are_named(project: Path) -> None:
    forget(project, "latin", "metrics")
    comparison = compared(project)
    assert ("latin", "hm") not in found(comparison)
    (note,) = (note for note in comparison.notes if "no metrics" in note)
    assert "no metrics on the second side" in note
    assert note.endswith(": latin")
    assert found(comparison)["average", "hm"].pairs == 4


def test_revisions_whose_metrics_are_not_at_hand_have_parameters_only(project: Path) -> None:
    empty_cache(project)
    done = promptkd(project, "compare", "HEAD~1", "HEAD")
    assert done.returncode == 0, done.stderr
    assert "student.lr" in done.stdout
    (note,) = (line for line in done.stdout.splitlines() if "no metrics" in line)
    assert "on the first and the second side, the file is not in DVC's cache" in note
    assert "`dvc fetch --all-commits`" in note


def test_metrics_that_are_not_at_hand_are_those_of_the_report_in_git(tmp_path: Path) -> None:
    folder = make_project(tmp_path / "project")
    for lr, evaluations in ((0.001, BEFORE), (0.002, AFTER)):
        scores = {name: one.metrics for name, one in evaluations.items()}
        write_json(folder / "reports" / "tiny" / "summary.json", summarise("tiny", scores))
        evaluate(folder, {**params(lr), "profile": {"name": "tiny"}}, evaluations)
    complete = found(compared(folder))
    empty_cache(folder)
    comparison = compared(folder)
    for name in NAMES:
        row, expected = found(comparison)[name, "hm"], complete[name, "hm"]
        assert (row.first, row.second) == (round(expected.first, 2), round(expected.second, 2))
        assert row.p is None
    assert found(comparison)["average", "hm"].p == pytest.approx(complete["average", "hm"].p)
    for side in ("first", "second"):
        note = f"metrics on the {side} side are those of reports/tiny/summary.json"
        assert f"{note}: {', '.join(NAMES)}" in comparison.notes
    assert any("no significance" in note and "`dvc pull`" in note for note in comparison.notes)
    workspace = compared(folder, "HEAD", "workspace")
    assert not workspace.metrics
    assert not workspace.params


def empty_cache(project: Path) -> None:
    """Leave what a clone without a remote has."""
    shutil.rmtree(project / "data")
    shutil.rmtree(project / ".dvc" / "cache")


def test_the_last_commit_and_the_workspace_are_compared_by_default(project: Path) -> None:
    (project / "params.yaml").write_text(json.dumps(params(0.004)))
    done = promptkd(project, "compare", "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert (value["first"]["given"], value["second"]["given"]) == ("HEAD", "workspace")
    changed = {row["name"]: (row["first"], row["second"]) for row in value["params"]}
    assert changed["student.lr"] == (0.002, 0.004)
    assert not any(row["difference"] for row in value["metrics"])
    assert "second  workspace" in promptkd(project, "compare").stdout


def test_a_revision_that_has_not_been_run_has_parameters_only(project: Path) -> None:
    (project / "dvc.lock").unlink()
    commit(project)
    comparison = compared(project)
    assert not comparison.params  # those of HEAD~1, which has the same
    assert comparison.metrics == ()
    assert any("second side" in note for note in comparison.notes)


def test_other_pictures_are_not_paired(project: Path) -> None:
    evaluate(project, params(0.1), BEFORE, pictures="others")
    comparison = compared(project)
    assert found(comparison)["greek", "hm"].p is None
    assert any("images, by their fingerprint: arrows" in note for note in comparison.notes)


def test_seeds_are_compared_one_by_one_and_averaged_by_data_set(tmp_path: Path) -> None:
    folder = make_project(tmp_path / "project")
    for skill in (1.0, 1.6):
        seeds = {
            f"{name}{suffix}": evaluation(skill=skill, seed=place)
            for place, (name, suffix) in enumerate(
                (name, suffix) for name in ("digits", "greek") for suffix in ("", "-2")
            )
        }
        evaluate(folder, params(skill), seeds)
    rows = found(compared(folder))
    assert ("greek-2", "hm") in rows
    assert (rows["average", "hm"].pairs, rows["average", "hm"].p) == (2, None)  # too few
    changed = {one.name: one.datasets for one in compared(folder).params}
    assert "greek-2" in changed["student.lr"]
    assert "digits-2" not in changed["student.lr"]  # it has a rate of its own


def test_the_verb_prints_plain_tables_or_json(project: Path) -> None:
    done = promptkd(project, "compare", "HEAD~1", "HEAD")
    assert done.returncode == 0, done.stderr
    comparison = compared(project)
    expected = found(comparison)["greek", "hm"]
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("greek"))
    numbers = [f"{expected.first:.2f}", f"{expected.second:.2f}", f"{expected.difference:+.2f}"]
    assert any(numbers == line.split()[3:6] for line in done.stdout.splitlines())
    assert row[:2] == ["greek", "student"]
    assert "│" not in done.stdout
    assert "all but digits" in done.stdout
    assert not (project / "mlflow.db").exists()

    value = json.loads(promptkd(project, "compare", "HEAD~1", "HEAD", "--json").stdout)
    assert value["first"]["given"] == "HEAD~1"
    assert {row["name"] for row in value["params"]} == {"student.lr", "student.flip"}
    rows = {(row["dataset"], row["who"], row["metric"]): row for row in value["metrics"]}
    written = rows["greek", "student", "hm"]
    assert (written["p"], written["difference"]) == (expected.p, expected.difference)
    assert len(value["averages"]) == len(comparison.averages)
    assert value["notes"] == list(comparison.notes)


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ("nothing", "'nothing' is no git revision, no MLflow run and no model version"),
        ("greek/1", "'greek/1' is no git revision, no MLflow run and no model version"),
        ("HEAD~3", "revision 'HEAD~3' has no params.yaml"),
        ("HEAD", ":dvc.lock is no lock file of DVC"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    project: Path, empty_database: Path, second: str, text: str
) -> None:
    (project / "dvc.lock").write_text("stages: [1]")
    commit(project)
    shutil.copyfile(empty_database, project / "mlflow.db")
    shutil.copyfile(ROOT / "params.yaml", project / "params.yaml")
    done = promptkd(project, "compare", "HEAD~1", second)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert text in line


def forget(project: Path, name: str, kind: str, content: str | None = None) -> None:
    """Take what the second revision has of a data set out of project and cache."""
    path = project / "data" / "evaluate" / name / f"{kind}.json"
    digest = next(
        entry["md5"]
        for entry in outs(project, f"evaluate@{name}")
        if entry["path"].endswith(path.name)
    )
    path.unlink()
    cached = project / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    cached.unlink()
    if content is not None:
        cached.write_text(content)


def outs(project: Path, stage: str) -> list[dict[str, str]]:
    import yaml

    lock = yaml.safe_load((project / "dvc.lock").read_text())
    found: list[dict[str, str]] = lock["stages"][stage]["outs"]
    return found
