"""Runs are nested by commit and data set, and say what they replace."""

import json
import os
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import git_repository
import pytest
from tracked import COMMIT, EXPERIMENT, PARENT, runs, stage, store

from pd_core.core.errors import BadParams, Interrupted
from pd_core.mlops import tracking
from pd_core.mlops.tracking import recorder
from pd_core.pipeline import provenance

__all__ = ["store"]  # a fixture


def status_of(store: str, level: str, **tags: str) -> str:
    (found,) = runs(store, level=level, **tags)
    return str(found.info.status)


def test_stages_are_below_their_data_sets_run_and_that_below_the_benchmarks(store: str) -> None:
    for dataset in ("greek", "latin"):
        for name in ("prepare", "teacher"):
            with stage(store, name, dataset):
                pass
    with stage(store, "report", ""):
        pass

    (benchmark,) = runs(store, level="benchmark")
    datasets = runs(store, level="dataset")
    assert [run.info.run_name for run in datasets] == ["greek", "latin"]
    assert {run.data.tags[PARENT] for run in datasets} == {benchmark.info.run_id}
    above = {run.data.tags["dataset"]: run.info.run_id for run in datasets}
    below = runs(store, level="stage")
    assert [run.info.run_name for run in below] == [
        "prepare@greek", "teacher@greek", "prepare@latin", "teacher@latin", "report",
    ]  # fmt: skip
    assert [run.data.tags[PARENT] for run in below] == [
        *[above["greek"]] * 2, *[above["latin"]] * 2, benchmark.info.run_id,
    ]  # fmt: skip


def test_each_commit_has_a_benchmark_of_its_own(store: str, tmp_path: Path) -> None:
    git_repository.git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("/mlflow.db*\n/mlruns/\n")
    commits = []
    for number in range(2):
        (tmp_path / "code.py").write_text(str(number))
        git_repository.commit(tmp_path)
        commits.append(provenance.commit_of(tmp_path, "HEAD"))
        for name in ("prepare", "teacher"):
            with stage(store, name, project=tmp_path):
                pass

    benchmarks = runs(store, level="benchmark")
    assert [run.data.tags[COMMIT] for run in benchmarks] == commits
    assert [run.info.run_name for run in benchmarks] == [f"benchmark@{str(c)[:7]}" for c in commits]
    assert len(runs(store, level="dataset")) == 2


def test_runs_above_run_as_long_as_one_below_and_end_with_the_last(store: str) -> None:
    levels = ("benchmark", "dataset")
    with stage(store):
        assert [status_of(store, level) for level in levels] == ["RUNNING"] * 2
    assert [status_of(store, level) for level in levels] == ["FINISHED"] * 2
    (benchmark,) = runs(store, level="benchmark")
    (last,) = runs(store, level="stage")
    assert last.info.end_time <= benchmark.info.end_time <= last.info.end_time + 5000

    with stage(store, "student"):
        with stage(store, "report", ""):
            pass
        assert [status_of(store, level) for level in levels] == ["RUNNING"] * 2
    assert [status_of(store, level) for level in levels] == ["FINISHED"] * 2


def test_runs_above_end_as_the_worst_below_until_that_is_replaced(store: str) -> None:
    with stage(store, "prepare"):
        pass
    with pytest.raises(Interrupted), stage(store, "teacher"):
        raise Interrupted("told to end")
    assert status_of(store, "dataset") == status_of(store, "benchmark") == "KILLED"
    with pytest.raises(BadParams), stage(store, "student"):
        raise BadParams("wrong")
    assert status_of(store, "dataset") == status_of(store, "benchmark") == "FAILED"

    for name in ("teacher", "student"):
        with stage(store, name):
            pass
    assert status_of(store, "dataset") == status_of(store, "benchmark") == "FINISHED"


def test_how_a_stage_ended_is_shown_on_the_run_above_it(store: str) -> None:
    with stage(store, "evaluate") as run:
        run.log_metrics({"student": {"hm": 71.5}, "teacher": {"hm": 75.0}})
    with stage(store, "report", "") as run:
        run.log_metrics({"student": {"hm": 70.0}})
    fails(store)

    (dataset,) = runs(store, level="dataset")
    (benchmark,) = runs(store, level="benchmark")
    assert dataset.data.metrics == {"student/hm": 71.5, "teacher/hm": 75.0}
    assert benchmark.data.metrics == {"student/hm": 70.0}


def fails(store: str) -> None:
    def work() -> None:
        with stage(store, "evaluate") as run:
            run.log_metrics({"student": {"hm": 1.0}})
            raise BadParams("wrong")

    with pytest.raises(BadParams):
        work()


def test_a_stage_that_runs_again_says_which_run_it_replaces(store: str) -> None:
    for name, dataset in (("teacher", "greek"), ("teacher", "latin"), ("student", "greek")):
        with stage(store, name, dataset):
            pass
    with stage(store):
        pass
    with stage(store):
        pass

    first, second, third = runs(store, level="stage", stage="teacher", dataset="greek")
    assert [run.data.tags.get("replaces") for run in (first, second, third)] == [
        None, first.info.run_id, second.info.run_id,
    ]  # fmt: skip
    assert [run.data.tags.get("replaced_by") for run in (first, second, third)] == [
        second.info.run_id, third.info.run_id, None,
    ]  # fmt: skip
    for other in (*runs(store, stage="teacher", dataset="latin"), *runs(store, stage="student")):
        assert not {"replaces", "replaced_by"} & other.data.tags.keys()


def left_running(store: str, process: str) -> str:
    """Make a run as a stage leaves it that is killed; return its id."""
    with stage(store) as run:
        pass
    client = tracking.client(store)
    client.update_run(run.run_id, "RUNNING")
    client.set_tag(run.run_id, recorder.PROCESS, process)
    return str(run.run_id)


def a_dead_process() -> str:
    with subprocess.Popen(["true"]) as process:
        return f"{socket.gethostname()} {process.pid} {time.time()}"


def test_what_a_killed_process_left_running_is_marked_as_killed(store: str) -> None:
    left = left_running(store, a_dead_process())
    with stage(store) as run:
        assert status_of(store, "dataset") == "RUNNING"

    killed, again = runs(store, level="stage")
    assert (killed.info.run_id, killed.info.status) == (left, "KILLED")
    assert again.data.tags["replaces"] == left
    assert killed.data.tags["replaced_by"] == run.run_id
    assert killed.info.end_time <= again.info.start_time  # its last sign of life
    assert status_of(store, "dataset") == "FINISHED"


def test_a_process_that_has_a_dead_ones_number_is_not_it(store: str) -> None:
    left = left_running(store, f"{socket.gethostname()} {os.getppid()} 1.0")
    with stage(store):
        pass
    assert tracking.client(store).get_run(left).info.status == "KILLED"


@pytest.mark.parametrize("process", [recorder.this_process(), "elsewhere 1 1.0"])
def test_a_stage_that_may_still_run_is_left_alone(store: str, process: str) -> None:
    left = left_running(store, process)
    client = tracking.client(store)
    with stage(store) as run:
        pass

    assert client.get_run(left).info.status == "RUNNING"
    assert "replaced_by" not in client.get_run(left).data.tags
    assert "replaces" not in client.get_run(run.run_id).data.tags
    assert status_of(store, "dataset") == "RUNNING"


def test_of_two_benchmarks_created_at_once_the_earlier_stays(store: str) -> None:
    with stage(store):
        (mine,) = runs(store, level="benchmark")
        client = tracking.client(store)
        key = {name: mine.data.tags[name] for name in (COMMIT, "level")}
        earlier = client.create_run(mine.info.experiment_id, start_time=1, tags=key)
    (kept,) = runs(store, level="benchmark")
    (dataset,) = runs(store, level="dataset")
    assert kept.info.run_id == earlier.info.run_id == dataset.data.tags[PARENT]
    assert kept.info.status == "FINISHED"
    assert client.get_run(mine.info.run_id).info.lifecycle_stage == "deleted"


def test_eight_that_look_at_once_without_a_lock_agree_by_the_second_look(store: str) -> None:
    clients = [tracking.client(store) for _ in range(8)]
    experiment = tracking.experiment_id(clients[0], store, EXPERIMENT)
    for commit in map(str, range(5)):
        looks = [recorder._Nesting(client, experiment, "greek", commit) for client in clients]
        with ThreadPoolExecutor(8) as threads:
            for _ in range(2):
                list(threads.map(recorder._Nesting.find_or_create, looks))
        (above,) = {look.above for look in looks}
        (benchmark,) = runs(store, level="benchmark", **{COMMIT: commit})
        (dataset,) = runs(store, level="dataset", **{COMMIT: commit})
        assert (dataset.info.run_id, benchmark.info.run_id) == above
        assert dataset.data.tags[PARENT] == benchmark.info.run_id


def test_the_data_sets_that_a_stage_reads_are_inputs_of_its_run(store: str, tmp_path: Path) -> None:
    prepared = tmp_path / "data" / "prepare" / "greek"
    prepared.mkdir(parents=True)
    (prepared / "split.json").write_text("{}")
    given = [
        recorder.DataInput("embedded_greek", prepared, "training"),
        recorder.DataInput("not there", tmp_path / "absent", "evaluation"),
    ]
    with stage(store, inputs=given, project=tmp_path):
        pass

    (run,) = runs(store, level="stage")
    (found,) = run.inputs.dataset_inputs
    assert found.dataset.name == "embedded_greek"
    assert found.dataset.digest == provenance.content_hash(prepared)
    assert json.loads(found.dataset.source) == {"uri": "data/prepare/greek"}
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]
