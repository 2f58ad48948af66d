"""Runs are nested by commit and data set, and name the runs that they replace."""

import json
import os
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import git_repository
import pytest
from tracked import COMMIT, EXPERIMENT, PARENT, ran, runs, stage, store

from pd_core.core.errors import BadParams, Interrupted
from pd_core.mlops import tracking
from pd_core.mlops.tracking import nesting, recorder
from pd_core.pipeline import provenance

__all__ = ["store"]  # a fixture


def status_above(store: str) -> str:
    """Return the status of the benchmark's run, which the data set's has too."""
    statuses = {
        run.info.status for level in ("benchmark", "dataset") for run in runs(store, level=level)
    }
    (status,) = statuses
    return str(status)


def test_stages_are_below_their_data_sets_run_and_that_below_the_benchmarks(store: str) -> None:
    for dataset in ("greek", "latin"):
        for name in ("prepare", "teacher"):
            ran(store, name, dataset)
    ran(store, "report", "")

    (benchmark,) = runs(store, level="benchmark")
    greek, latin = runs(store, level="dataset")
    assert [greek.info.run_name, latin.info.run_name] == ["greek", "latin"]
    ids = {run.info.run_id: run.info.run_name for run in (benchmark, greek, latin)}
    assert {run.data.tags[PARENT] for run in (greek, latin)} == {benchmark.info.run_id}
    assert [(run.info.run_name, ids[run.data.tags[PARENT]]) for run in runs(store)] == [
        ("prepare@greek", "greek"), ("teacher@greek", "greek"),
        ("prepare@latin", "latin"), ("teacher@latin", "latin"), ("report", "benchmark"),
    ]  # fmt: skip


def test_stages_of_an_experiment_of_dvc_are_below_a_run_with_its_name(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(store)
    monkeypatch.setenv("DVC_EXP_NAME", "warm-lr")
    ran(store)
    plain, experiment = runs(store, level="benchmark")
    assert plain.info.run_name != "warm-lr"
    assert experiment.info.run_name == "warm-lr"
    tagged = runs(store, dvc_experiment="warm-lr")
    assert [run.info.run_name for run in tagged] == ["warm-lr", "greek", "teacher@greek"]


def test_each_commit_has_a_benchmark_of_its_own(store: str, tmp_path: Path) -> None:
    git_repository.git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("/mlflow.db*\n/mlruns/\n")
    commits = []
    for number in range(2):
        (tmp_path / "code.py").write_text(str(number))
        git_repository.commit(tmp_path)
        commits.append(str(provenance.commit_of(tmp_path, "HEAD")))
        for name in ("prepare", "teacher"):
            ran(store, name, project=tmp_path)

    benchmarks = runs(store, level="benchmark")
    assert [run.data.tags[COMMIT] for run in benchmarks] == commits
    assert [run.info.run_name for run in benchmarks] == [f"benchmark@{c[:7]}" for c in commits]
    assert len(runs(store, level="dataset")) == 2


def test_runs_above_run_as_long_as_one_below_and_end_with_the_last(store: str) -> None:
    with stage(store):
        assert status_above(store) == "RUNNING"
    assert status_above(store) == "FINISHED"
    (benchmark,) = runs(store, level="benchmark")
    (last,) = runs(store)
    assert last.info.end_time <= benchmark.info.end_time <= last.info.end_time + 5000

    with stage(store, "student"):
        ran(store, "report", "")
        assert status_above(store) == "RUNNING"
    assert status_above(store) == "FINISHED"


def test_runs_above_end_as_the_worst_below_until_that_is_replaced(store: str) -> None:
    ran(store, "prepare")
    with pytest.raises(Interrupted), stage(store, "teacher"):
        raise Interrupted("told to end")
    assert status_above(store) == "KILLED"
    with pytest.raises(BadParams), stage(store, "student"):
        raise BadParams("wrong")
    assert status_above(store) == "FAILED"
    for name in ("teacher", "student"):
        ran(store, name)
    assert status_above(store) == "FINISHED"


def test_the_final_metrics_of_a_stage_are_on_the_run_above_it_unless_it_failed(store: str) -> None:
    with stage(store, "evaluate") as run:
        run.log_metrics({"student": {"hm": 71.5}, "teacher": {"hm": 75.0}})
    with stage(store, "report", "") as run:
        run.log_metrics({"student": {"hm": 70.0}})
    with suppress(BadParams), stage(store, "evaluate") as run:
        run.log_metrics({"student": {"hm": 1.0}})
        raise BadParams("wrong")

    (dataset,) = runs(store, level="dataset")
    (benchmark,) = runs(store, level="benchmark")
    assert dataset.data.metrics == {"student/hm": 71.5, "teacher/hm": 75.0}
    assert benchmark.data.metrics == {"student/hm": 70.0}


def test_a_stage_that_runs_again_names_the_run_that_it_replaces(store: str) -> None:
    others = [ran(store, "teacher", "latin"), ran(store, "student")]
    first, second, third = (ran(store) for _ in range(3))

    tags = {run.info.run_id: run.data.tags for run in runs(store)}
    links = [(tags[run].get("replaces"), tags[run].get("replaced_by")) for run in tags]
    assert links == [(None, None)] * len(others) + [
        (None, second), (first, third), (second, None),
    ]  # fmt: skip


def left_running(store: str, process: str) -> str:
    """Make a run as a stage leaves it that is killed; return its id."""
    run_id = ran(store)
    client = tracking.client(store)
    client.update_run(run_id, "RUNNING")
    client.set_tag(run_id, nesting.PROCESS, process)
    return run_id


def test_a_run_that_a_killed_process_left_is_marked_as_killed(store: str) -> None:
    with subprocess.Popen(["true"]) as process:
        left = left_running(store, f"{socket.gethostname()} {process.pid} {time.time()}")
    with stage(store) as run:
        assert status_above(store) == "RUNNING"

    killed, again = runs(store)
    assert (killed.info.run_id, killed.info.status) == (left, "KILLED")
    assert again.data.tags["replaces"] == left
    assert killed.data.tags["replaced_by"] == run.run_id
    assert killed.info.end_time <= again.info.start_time  # its last sign of life
    assert status_above(store) == "FINISHED"


@pytest.mark.parametrize(
    ("process", "status"),
    [
        (nesting.this_process(), "RUNNING"),
        ("elsewhere 1 1.0", "RUNNING"),
        (f"{socket.gethostname()} {os.getpid()} 1.0", "KILLED"),  # its number is given again
    ],
    ids=["this", "elsewhere", "number reused"],
)
def test_a_run_is_left_alone_as_long_as_its_process_may_live(
    store: str, process: str, status: str
) -> None:
    left = left_running(store, process)
    again = ran(store)

    client = tracking.client(store)
    assert client.get_run(left).info.status == status
    assert ("replaced_by" in client.get_run(left).data.tags) is (status == "KILLED")
    assert ("replaces" in client.get_run(again).data.tags) is (status == "KILLED")


def test_of_two_benchmarks_created_at_once_the_earlier_stays(store: str) -> None:
    with stage(store):
        (own,) = runs(store, level="benchmark")
        client = tracking.client(store)
        key = {name: own.data.tags[name] for name in (COMMIT, "level")}
        earlier = client.create_run(own.info.experiment_id, start_time=1, tags=key)
    (kept,) = runs(store, level="benchmark")
    (dataset,) = runs(store, level="dataset")
    assert kept.info.run_id == earlier.info.run_id == dataset.data.tags[PARENT]
    assert status_above(store) == "FINISHED"
    assert client.get_run(own.info.run_id).info.lifecycle_stage == "deleted"


def test_eight_that_look_at_once_without_a_lock_agree_by_the_second_look(store: str) -> None:
    clients = [tracking.client(store) for _ in range(8)]
    experiment = tracking.experiment_id(clients[0], store, EXPERIMENT)
    for commit in map(str, range(5)):
        looks = [nesting.Nesting(client, experiment, "greek", commit) for client in clients]
        with ThreadPoolExecutor(8) as threads:
            for _ in range(2):
                list(threads.map(nesting.Nesting.find_or_create, looks))
        (above,) = {look.above for look in looks}
        (benchmark,) = runs(store, level="benchmark", **{COMMIT: commit})
        (dataset,) = runs(store, level="dataset", **{COMMIT: commit})
        assert (dataset.info.run_id, benchmark.info.run_id) == above
        assert dataset.data.tags[PARENT] == benchmark.info.run_id


def test_the_data_sets_that_a_stage_reads_are_inputs_of_its_run(store: str, tmp_path: Path) -> None:
    prepared = tmp_path / "data" / "prepare" / "greek"
    prepared.mkdir(parents=True)
    (prepared / "split.json").write_text("{}")
    inputs = [
        recorder.DataInput("embedded_greek", prepared, "training"),
        recorder.DataInput("not there", tmp_path / "absent", "evaluation"),
    ]
    ran(store, inputs=inputs, project=tmp_path)

    (run,) = runs(store)
    (entry,) = run.inputs.dataset_inputs
    assert entry.dataset.name == "embedded_greek"
    assert entry.dataset.digest == provenance.content_hash(prepared)
    assert json.loads(entry.dataset.source) == {"uri": "data/prepare/greek"}
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "training")]
