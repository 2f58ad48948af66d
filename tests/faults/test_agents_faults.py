"""Faults around agents: storage is away, a disk is full, an agent is gone for good."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from agents import (
    DATASETS,
    STAGES,
    Server,
    agent,
    clone,
    environment,
    kill,
    serving,
    waiting_project,
)
from canary import CANARY, SECRETS, hostile_server, search, with_login
from faults import SHORT
from killed_runs import REPRO, copy_repository
from moto.server import ThreadedMotoServer
from s3_server import BUCKET, client
from waiting import free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FULL = "No space left on device"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, waiting_project(folder / "code")) as running:
        yield running


# Storage


def test_a_run_waits_for_storage_that_is_away_and_loses_nothing(
    server: Server, tmp_path: Path
) -> None:
    source = waiting_project(tmp_path / "source", seconds=3)
    port = free_port()
    settings = {
        "PD_DVC_REMOTE": f"s3://{BUCKET}/dvc",
        "PD_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "PD_S3_ACCESS_KEY_ID": "id",
        "PD_S3_SECRET_ACCESS_KEY": "secret",
    }
    folder = clone(source, tmp_path / "clone")
    with agent(folder, server.api, "--gpu", "0", **settings):
        with storage(port):
            client("s3", settings["PD_S3_ENDPOINT_URL"]).create_bucket(Bucket=BUCKET)
            run = server.run("distill-dataset/gpu", "no storage", dataset=DATASETS[0])
            wait_until(lambda: _runs_stage(server, run, "teacher"), "the second stage is at work")
        message = f"no answer from {settings['PD_S3_ENDPOINT_URL']}"
        wait_until(lambda: message in "\n".join(server.log(run)), "the run logs the wait")
        time.sleep(20)
        assert server.state(run)["type"] == "RUNNING"
        with storage(port):
            assert server.ended(run)["type"] == "COMPLETED"
            other = clone(source, tmp_path / "other")
            done = subprocess.run(
                [*REPRO, "--pull", f"evaluate@{DATASETS[0]}"],
                cwd=other, env=environment(other, **settings), capture_output=True, text=True,
            )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Running stage" not in done.stdout
    assert (other / "data" / "evaluate" / DATASETS[0] / "value").read_text().strip() == DATASETS[0]


@contextmanager
def storage(port: int) -> Iterator[None]:
    """Let an S3 server answer while the block runs; what it holds outlasts it."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    running.start()
    try:
        yield
    finally:
        running.stop()


# A disk


def test_a_full_disk_fails_a_run_in_one_line_and_with_room_it_goes_on(
    server: Server, tmp_path: Path
) -> None:
    name = "embedded_digits"
    copy_repository(tmp_path / "template", SHORT)
    folder = tmp_path / "clone"
    with small_disk(folder, megabytes=128) as (seen, within):
        template = str(tmp_path / "template")
        subprocess.run([*within, "git", "clone", "--quiet", template, "."], check=True)
        with agent(folder, server.api, "--gpu", "1", within=within):
            run = server.run("distill-dataset/gpu", "full", dataset=name)
            checkpoints = seen / "data" / "checkpoints" / "teacher" / name
            wait_until(lambda: any(checkpoints.glob("*.safetensors")), "the teacher is at work")
            _fill(seen)
            _fails_for_want_of_space(server, run)
            assert not (seen / "data" / "teacher" / name / "teacher.safetensors").exists()
            again = server.run("distill-dataset/gpu", "full before the start", dataset=name)
            _fails_for_want_of_space(server, again)
            (seen / "filler").unlink()
            server.ask(f"/flow_runs/{run}/set_state", state={"type": "SCHEDULED"}, force=True)
            assert server.ended(run)["type"] == "COMPLETED"
            log = server.log(run)
            assert [line for line in log if "continues from checkpoint" in line]
            ran = [line.removeprefix("Running stage ") for line in log if "Running stage" in line]
            expected = [stage for stage in STAGES for _ in range(2 if stage == "teacher" else 1)]
            assert ran == [f"'{stage}@{name}':" for stage in expected]


@contextmanager
def small_disk(folder: Path, *, megabytes: int) -> Iterator[tuple[Path, list[str]]]:
    """Mount a small file system at a folder, in a name space of its own.

    Yields:
        Where this process sees it, and what a command that is to work in the folder follows.
    """
    folder.mkdir()
    mount = f"mount -t tmpfs -o size={megabytes}m tmpfs {folder} && echo there && exec cat"
    holder = subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", mount], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"there\n"
        spaces = ["nsenter", "--preserve-credentials", "-U", "-m", "-t", str(holder.pid)]
        yield (
            Path(f"/proc/{holder.pid}/root{folder}"),
            [*spaces, "sh", "-c", f'cd {folder} && exec "$@"', "sh"],
        )
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass


def _fails_for_want_of_space(server: Server, run: str) -> None:
    state = server.ended(run)
    assert state["type"] == "FAILED", state
    assert FULL in state["message"]
    assert "\n" not in state["message"]
    log = "\n".join(server.log(run))
    assert "Traceback" not in log
    assert "AwaitingRetry" not in log
    wait_until(lambda: _taken(server, "1") == 0, "the slot is free", seconds=10)


# Agents


def test_when_agents_are_gone_another_takes_over_and_what_nobody_takes_waits_for_its_own(
    server: Server, tmp_path: Path
) -> None:
    folder = waiting_project(tmp_path / "clone", first=30)
    shared, alone = DATASETS[:2]
    with ExitStack() as stack:
        agents = {
            gpu: stack.enter_context(agent(folder, server.api, "--gpu", gpu)) for gpu in "234"
        }
        benchmark = _start_benchmark(folder, server.api, shared)
        wait_until(lambda: _taken(server, "234") == 1, "a data set of the benchmark is at work")
        run = server.run("distill-dataset/gpu", "alone", dataset=alone)
        wait_until(lambda: _taken(server, "234") == 2, "a data set of its own is at work")
        gone = [gpu for gpu in agents if server.limits()[_slot_of(server, gpu)] == 1]
        for gpu in gone:
            kill(agents[gpu])
        wait_until(lambda: _taken(server, "234") == 0, "their slots are free", seconds=62)
        output = benchmark.communicate(timeout=300)[0]
    assert benchmark.returncode == 0, output
    assert output.count("its agent is gone, another one takes it") == 1
    assert server.runs()[shared]["state_type"] == "CRASHED"
    assert server.runs()[f"{shared}, attempt 2"]["state_type"] == "COMPLETED"

    assert server.state(run)["type"] == "CRASHED"
    with agent(folder, server.api, "--gpu", gone[0]):
        wait_until(lambda: server.state(run)["type"] == "COMPLETED", "the run has gone on")
    assert f"{shared}, attempt 3" not in server.runs()
    for name in (shared, alone):
        assert (folder / "data" / "evaluate" / name / "value").read_text().strip() == name


def test_a_run_that_waits_for_its_agent_to_be_free_is_not_taken_for_dead(
    server: Server, tmp_path: Path
) -> None:
    folder = waiting_project(tmp_path / "clone", first=95)
    with agent(folder, server.api, "--gpu", "5") as process:
        cut_off = server.run("distill-dataset/gpu", "cut off", dataset=DATASETS[0])
        wait_until(lambda: _taken(server, "5") == 1, "the run has its slot")
        before = server.run("distill-dataset/gpu", "before it", dataset=DATASETS[1])
        kill(process)
    with agent(folder, server.api, "--gpu", "5"):
        wait_until(lambda: _runs_stage(server, before, "teacher"), "three heartbeats have passed")
        assert server.state(cut_off)["name"] == "AwaitingRetry"
        server.ask(f"/flow_runs/{cut_off}/set_state", state={"type": "CANCELLING"})
        assert server.state(cut_off)["type"] == "CANCELLED"  # at once, no process is left
        assert server.ended(before)["type"] == "COMPLETED"


def test_a_coordinator_that_is_started_again_goes_on_with_its_benchmark(
    server: Server, tmp_path: Path
) -> None:
    folder = waiting_project(tmp_path / "clone", seconds=4)
    names = list(DATASETS[2:])
    with agent(folder, server.api, "--gpu", "6"):
        with agent(folder, server.api) as coordinator:
            run = server.run("benchmark/quickstart", "benchmark", datasets=names)
            wait_until(lambda: _taken(server, "6") == 1, "a data set is at work")
            kill(coordinator)
        assert server.state(run)["type"] == "RUNNING"
        with agent(folder, server.api):
            assert server.ended(run)["type"] == "COMPLETED"
    expected = ["acquired", "released"] * len(names)  # one at a time, each once
    slot = _slot_of(server, "6")
    wait_until(  # the server notes events a little later
        lambda: [kind for _, kind in server.slot_times().get(slot, [])] == expected,
        f"the slot was {expected}",
        seconds=20,
    )
    for name in names:
        assert server.runs()[name]["state_type"] == "COMPLETED"
        assert f"{name}, attempt 2" not in server.runs()


def test_a_cancelled_benchmark_leaves_nothing_at_work_or_in_a_queue(
    server: Server, tmp_path: Path
) -> None:
    folder = waiting_project(tmp_path / "clone", first=100)
    names = DATASETS[:2]
    with agent(folder, server.api, "--gpu", "8"), agent(folder, server.api):
        run = server.run("benchmark/quickstart", "cancelled", datasets=list(names))
        wait_until(lambda: _taken(server, "8") == 1, "a data set is at work")
        server.ask(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"})
        assert server.ended(run)["type"] == "CANCELLED"
        runs = server.runs()
        states = [server.ended(runs[name]["id"], seconds=60)["type"] for name in names]
        assert states == ["CANCELLED", "CANCELLED"]
        wait_until(lambda: _taken(server, "8") == 0, "the slot is free", seconds=10)


# Secrets


def test_no_secret_of_an_agent_reaches_the_server_or_a_file(server: Server, tmp_path: Path) -> None:
    folder = waiting_project(tmp_path / "clone")
    _let_stages_tell(folder)
    with hostile_server(healthy=True) as mlflow:
        secrets = {**SECRETS, "PD_MLFLOW_TRACKING_URI": with_login(mlflow)}
        with agent(folder, server.api, "--gpu", "7", **secrets):
            run = server.run("distill-dataset/gpu", "tells", dataset=DATASETS[0])
            state = server.ended(run)
    assert state["type"] == "FAILED"
    assert "***" in state["message"]
    log = "\n".join(server.log(run))
    assert "PD_S3_SECRET_ACCESS_KEY=***" in log
    assert CANARY not in log
    paths = [*search(server.home.parent), *search(tmp_path)]
    assert {path.name for path in paths} == {"test_secrets.py"}  # in the clones


def _let_stages_tell(folder: Path) -> None:
    """Let the last stage print its variables, some of them as an error, and fail."""
    file = folder / "dvc.yaml"
    pipeline = yaml.safe_load(file.read_text())
    echo = 'echo "error: $PD_S3_SECRET_ACCESS_KEY at $PD_MLFLOW_TRACKING_URI"'
    pipeline["stages"]["evaluate"]["do"]["cmd"] = f"env | grep PD_; {echo}; false"
    file.write_text(yaml.safe_dump(pipeline))


def _runs_stage(server: Server, run: str, stage: str) -> bool:
    return any(line.startswith(f"Running stage '{stage}@") for line in server.log(run))


def _slot_of(server: Server, gpu: str) -> str:
    (name,) = [limit for limit in server.limits() if limit.endswith(f"-gpu-{gpu}")]
    return name


def _taken(server: Server, gpus: str) -> int:
    """Return the number of taken slots of some GPUs."""
    return sum(server.limits()[_slot_of(server, gpu)] for gpu in gpus)


def _start_benchmark(folder: Path, api: str, *names: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.benchmark", *names],
        cwd=folder, env=environment(folder, PD_PREFECT_API_URL=api, PREFECT_HOME=f"{folder}-home"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
