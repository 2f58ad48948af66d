"""A search in MLflow: one run, and below it one for each trial that has ended."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import Run

from pd_core.mlops import tracking
from pd_core.mlops.tracking import PARENT
from pd_core.mlops.tracking.search_runs import SEARCH, TRIAL, SearchRun, TrialRun

COMPLETE = TrialRun(
    number=1, params={"lr": 0.005, "crop_scale": [0.5, 1.0]},
    curve=({"loss": 3.0, "agreement": 20.0}, {"loss": 2.0, "agreement": 30.0}),
    rungs={0: 40.0, 1: 50.0}, value=60.0, cpu_seconds=12.5, started=1_700_000_000_000,
    ended=1_700_000_015_000, reason="",
)  # fmt: skip
PRUNED = replace(COMPLETE, number=2, rungs={0: 30.0}, value=None)


@pytest.fixture
def search(tmp_path: Path, empty_database: Path) -> SearchRun:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    store = tracking.open_store(tmp_path)
    return SearchRun(store, "promptkd-test", "student-1", "flowers", "student", "accuracy", "none")


def runs(search: SearchRun) -> tuple[list[Run], list[Run]]:
    """Return the runs of searches, and those of trials."""
    mlflow = tracking.client(search.store)
    experiment = tracking.experiment_id(mlflow, search.store, search.experiment)
    both = tracking.search(mlflow, experiment, {})
    parents = [run for run in both if SEARCH in run.data.tags]
    trials = sorted(
        (run for run in both if TRIAL in run.data.tags), key=lambda run: run.data.tags[TRIAL]
    )
    return parents, trials


def test_each_trial_is_a_run_below_that_of_the_search(search: SearchRun) -> None:
    search.record([COMPLETE, PRUNED])

    (parent,), (complete, pruned) = runs(search)
    assert parent.info.run_name == "tune student@flowers"
    assert parent.data.tags["objective"] == "accuracy"
    assert parent.data.metrics == {"trials": 2, "cpu_seconds": 25.0, "objective": 60.0}
    for run in (complete, pruned):
        assert run.data.tags[PARENT] == parent.info.run_id
        assert run.data.params == {
            "student.lr": "0.005", "student.crop_scale": "[0.5, 1.0]"
        }  # fmt: skip
        assert run.info.status == "FINISHED"
        assert (run.info.start_time, run.info.end_time) == (COMPLETE.started, COMPLETE.ended)
    assert complete.data.metrics["objective"] == 60.0
    assert complete.data.metrics["agreement"] == 30.0
    assert (complete.data.tags["state"], pruned.data.tags["state"]) == ("complete", "pruned")
    assert "objective" not in pruned.data.metrics


def test_recording_again_adds_what_is_missing_and_nothing_twice(search: SearchRun) -> None:
    search.record([COMPLETE])
    search.record([COMPLETE, PRUNED])
    search.record([COMPLETE, PRUNED])

    parents, trials = runs(search)
    assert len(parents) == 1
    assert [run.data.tags[TRIAL] for run in trials] == ["1", "2"]


def test_a_run_that_a_killed_process_left_is_written_anew(search: SearchRun) -> None:
    search.record([COMPLETE])
    (parent,), _ = runs(search)
    mlflow = tracking.client(search.store)
    tags = {PARENT: parent.info.run_id, TRIAL: "2"}
    left = mlflow.create_run(parent.info.experiment_id, tags=tags)
    search.record([COMPLETE, PRUNED])

    _, trials = runs(search)
    assert left.info.run_id not in [run.info.run_id for run in trials]
    assert [run.info.status for run in trials] == ["FINISHED", "FINISHED"]


def test_two_searches_have_a_run_each(search: SearchRun) -> None:
    search.record([COMPLETE])
    replace(search, name="student-2").record([COMPLETE])

    parents, trials = runs(search)
    assert len(parents) == 2
    assert len({run.data.tags[PARENT] for run in trials}) == 2
