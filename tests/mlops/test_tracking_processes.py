"""Runs of real processes: four at once, watched, killed, served from DVC's cache, to a server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from command import dvc
from mlflow_server import mlflow_server, stop
from moto.server import ThreadedMotoServer
from tracked import PARENT, runs, store
from waiting import wait_until

from pd_core.mlops import tracking
from pd_core.pipeline.provenance import content_hash

__all__ = ["store"]  # a fixture

ROOT = Path(__file__).parents[2]
BUCKET = "artifacts"

pytestmark = pytest.mark.slow

# The first argument is the data set, the second how many seconds the work takes.
STAGE = """
import sys, time
from pathlib import Path
from pd_core.mlops import tracking
from pd_core.mlops.tracking import recorder
from pd_core.pipeline.settings import load_settings
store = tracking.open_store(Path(), load_settings().mlflow_tracking_uri)
stage = recorder.StageInfo(profile="quickstart", dataset=sys.argv[1], stage="teacher", params={},
                           deps=[], outs=[], seed=1, protocol="base_to_novel")
with recorder.stage_run(store, stage) as run:
    end = time.monotonic() + float(sys.argv[2])
    step = 0
    while step < 2 or time.monotonic() < end:
        step += 1
        time.sleep(0.01)
        run.progress(step, 10_000)
        if step % 10 == 0:
            run.epoch(step // 10, {"loss": 1 / step})
    Path("out.txt").write_text(sys.argv[1])
    run.log_file(Path("out.txt"))
"""


def start(folder: Path, dataset: str, seconds: float = 0, **environment: str) -> Any:
    usual = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACK", "AWS_"))}
    return subprocess.Popen(
        [sys.executable, "-c", STAGE, dataset, str(seconds)],
        cwd=folder,
        env={**usual, "PYTHONPATH": str(ROOT), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: Any) -> str:
    """Wait for a process that has to succeed; return its stderr."""
    stderr = str(process.communicate()[1])
    assert process.returncode == 0, stderr
    return stderr


def steps(store: str, run: Any, metric: str) -> list[int]:
    """Return the steps at which a run has a metric."""
    history = tracking.client(store).get_metric_history(run.info.run_id, metric)
    return [point.step for point in history]


def check_nested(store: str, datasets: tuple[str, ...]) -> None:
    (benchmark,) = runs(store, level="benchmark")
    above = {run.data.tags["dataset"]: run for run in runs(store, level="dataset")}
    stages = runs(store)
    assert sorted(above) == sorted(run.data.tags["dataset"] for run in stages) == sorted(datasets)
    for run in stages:
        parent = above[run.data.tags["dataset"]]
        assert run.data.tags[PARENT] == parent.info.run_id
        assert parent.data.tags[PARENT] == benchmark.info.run_id
        assert {each.info.status for each in (run, parent, benchmark)} == {"FINISHED"}


def test_a_run_can_be_watched_and_after_kill_9_the_next_one_replaces_it(
    store: str, tmp_path: Path
) -> None:
    process = start(tmp_path, "greek", seconds=60, MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="1")
    system = "system/system_memory_usage_megabytes"
    try:
        wait_until(lambda: any({"loss", system} <= run.data.metrics.keys() for run in runs(store)))
        (run,) = runs(store)
        assert run.info.status == "RUNNING"
        assert process.poll() is None
        seen = run.data.metrics
        assert 0 < seen["progress/steps_per_second"] <= 100
        assert 0 < seen["progress/percent"] < 100
        assert "system/cpu_utilization_percentage" in seen
        client = tracking.client(store)
        sample, *_ = client.get_metric_history(run.info.run_id, "progress/percent")
        assert sample.value == pytest.approx(sample.step / 100)
        epochs = steps(store, run, "loss")
        assert epochs == list(range(1, len(epochs) + 1))
    finally:
        process.kill()
        process.communicate()

    end(start(tmp_path, "greek"))

    killed, again = runs(store)
    assert [run.info.status for run in (killed, again)] == ["KILLED", "FINISHED"]
    assert killed.info.end_time > killed.info.start_time
    assert again.data.tags["replaces"] == killed.info.run_id
    assert killed.data.tags["replaced_by"] == again.info.run_id
    assert [run.info.status for run in runs(store, level="benchmark")] == ["FINISHED"]


def test_four_processes_without_a_database_make_one_benchmark_of_all_their_runs(
    tmp_path: Path,
) -> None:
    names = ("greek", "latin", "arrows", "digits")
    for process in [start(tmp_path, name) for name in names]:
        assert end(process) == ""
    check_nested(tracking.open_store(tmp_path), names)


def test_a_stage_that_dvc_takes_from_its_cache_makes_no_second_run(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "stage.py").write_text(STAGE)
    assert dvc(tmp_path, "init", "-q", "--no-scm").returncode == 0
    for dataset in ("greek", "greek", "latin", "greek"):
        (tmp_path / "out.txt").unlink(missing_ok=True)
        command = f"{sys.executable} stage.py {dataset} 0"
        stage = {"cmd": command, "deps": ["stage.py"], "outs": ["out.txt"]}
        (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"teacher": stage}}))
        assert dvc(tmp_path, "repro", "-q").returncode == 0
        assert (tmp_path / "out.txt").read_text() == dataset

    assert [run.data.tags["dataset"] for run in runs(store)] == ["greek", "latin"]


def test_verbs_record_their_data_their_epochs_their_losses_and_their_progress(
    store: str, tmp_path: Path
) -> None:
    for folder in ("pd_core", "fingerprints"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["teacher"].update(epochs=2, gpa_mean=2, templates=2)
    params["student"].update(epochs=1)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    for verb in ("prepare", "teacher", "class-vectors", "student"):
        command = [sys.executable, "-m", "pd_core", verb, "embedded_digits"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)

    stages = runs(store)
    inputs = [
        (entry.dataset.name, entry.dataset.digest, entry.dataset.source, entry.tags[0].value)
        for run in stages
        for entry in run.inputs.dataset_inputs
    ]
    fingerprint, prepared = "fingerprints/embedded_digits.json", "data/prepare/embedded_digits"
    assert inputs == [
        ("embedded_digits", content_hash(tmp_path / path), json.dumps({"uri": path}), context)
        for path, context in [(fingerprint, "preparation"), *[(prepared, "training")] * 3]
    ]
    _, teacher, _, student = stages
    assert steps(store, teacher, "accuracy") == [1, 2]
    assert steps(store, teacher, "train/loss") == [20, 40]  # an epoch is shorter than 50 steps
    assert steps(store, student, "train/loss") == [50, 100, 112]
    assert teacher.data.metrics["train/loss"] == pytest.approx(teacher.data.metrics["loss"])
    assert teacher.data.metrics["progress/percent"] == 100
    (dataset,) = runs(store, level="dataset")
    assert {run.data.tags[PARENT] for run in stages} == {dataset.info.run_id}


@pytest.mark.timeout(240)
def test_a_servers_runs_are_nested_and_their_files_go_to_its_bucket_without_our_credentials(
    tmp_path: Path, empty_database: Path
) -> None:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    endpoint = "http://{}:{}".format(*moto.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret-of-the-server"}
    s3 = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="id",
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    s3.create_bucket(Bucket=BUCKET)
    names = ("greek", "latin", "arrows", "digits")
    options = ("--artifacts-destination", f"s3://{BUCKET}/runs")
    with mlflow_server(
        empty_database, tmp_path / "server", *options, **keys, MLFLOW_S3_ENDPOINT_URL=endpoint,
        AWS_DEFAULT_REGION="us-east-1",
    ) as (address, _):  # fmt: skip
        for process in [start(tmp_path, name, PD_MLFLOW_TRACKING_URI=address) for name in names]:
            assert end(process) == ""
        check_nested(address, names)
        stages = runs(address)

    stored = {entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]}
    for run in stages:
        folder = f"runs/{run.info.experiment_id}/{run.info.run_id}/artifacts"
        assert {f"{folder}/out.txt", f"{folder}/lineage.json"} <= stored
    moto.stop()
    assert not (tmp_path / tracking.DATABASE).exists()


@pytest.mark.timeout(240)
def test_a_server_that_dies_while_a_stage_works_costs_one_warning(
    tmp_path: Path, empty_database: Path
) -> None:
    with mlflow_server(empty_database, tmp_path / "server") as (address, group):
        process = start(
            tmp_path, "greek", seconds=10, PD_MLFLOW_TRACKING_URI=address,
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        )  # fmt: skip
        wait_until(lambda: [run.info.status for run in runs(address)] == ["RUNNING"])
        stop(group)
        stderr = end(process)

    assert (tmp_path / "out.txt").read_text() == "greek"
    assert stderr.count("\n") == 1
    assert stderr.startswith(f"run 'teacher@greek' is not recorded in '{address}': ")
