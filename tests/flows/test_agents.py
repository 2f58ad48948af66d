"""Agents take data sets from the server, one a GPU at a time, and resume after a failure.

The stages wait instead of computing, so that the number of cores does not matter.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import requests
from agents import DATASETS, STAGES, Server, agent, environment, kill, serving, waiting_project
from waiting import free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    code = waiting_project(folder / "code", seconds=3)
    with serving(folder, code) as running:
        yield running


def project(tmp_path: Path, *, seconds: float = 0, first: float | None = None) -> Path:
    return waiting_project(tmp_path / "clone", seconds=seconds, first=first)


def benchmark(clone: Path, api: str, *datasets: str) -> float:
    """Run the benchmark by agents; return the seconds that it took."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "flows.benchmark", *datasets],
        cwd=clone,
        env=environment(clone, PD_PREFECT_API_URL=api, PREFECT_HOME=str(clone.parent / "home")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return time.monotonic() - start


@pytest.mark.ci
def test_two_agents_take_four_data_sets_in_at_most_065_of_the_time_of_one(
    server: Server, tmp_path: Path
) -> None:
    times = []
    for number, gpus in enumerate((("0",), ("0", "1"))):
        clone = project(tmp_path / str(number), seconds=5)
        with ExitStack() as stack:
            for gpu in gpus:
                stack.enter_context(agent(clone, server.api, "--gpu", gpu))
            times.append(benchmark(clone, server.api))
        done = [clone / "data" / "evaluate" / name / "value" for name in DATASETS]
        assert [file.read_text().strip() for file in done] == list(DATASETS)
    assert times[1] <= 0.65 * times[0], times
    events = 2 * 2 * len(DATASETS)
    wait_until(lambda: sum(map(len, server.slot_times().values())) == events, seconds=20)
    assert len(server.slot_times()) == 2
    assert server.never_double_booked()


def test_a_run_leaves_the_table_of_its_stages_and_their_log(server: Server, tmp_path: Path) -> None:
    clone = project(tmp_path)
    with agent(clone, server.api, "--gpu", "0"):
        run = server.run("distill-dataset/gpu", "first", dataset=DATASETS[0])
        assert server.ended(run)["type"] == "COMPLETED"
        rows = json.loads(server.artifacts()["stages-embedded-arrows"])
        assert [row["stage"] for row in rows] == [f"{stage}@{DATASETS[0]}" for stage in STAGES]
        assert {row["state"] for row in rows} == {"computed"}
        assert {row["slot"].partition("-gpu-")[2] for row in rows} == {"0"}
        line = f"Running stage 'student@{DATASETS[0]}':"  # lines are sent every few seconds
        wait_until(lambda: line in server.log(run), "the log has the stage's output", seconds=20)
        again = server.run("distill-dataset/gpu", "again", dataset=DATASETS[0])
        assert server.ended(again)["type"] == "COMPLETED"
        rows = json.loads(server.artifacts()["stages-embedded-arrows"])
        assert {row["state"] for row in rows} == {"up to date"}


@pytest.mark.parametrize("gpu", ["5", "6"], ids=["within a minute", "at once if started again"])
def test_the_slot_of_a_killed_agent_is_freed_and_its_run_resumes(
    server: Server, tmp_path: Path, gpu: str
) -> None:
    clone = project(tmp_path, first=15)
    with agent(clone, server.api, "--gpu", gpu) as first:
        run = server.run("distill-dataset/gpu", f"killed {gpu}", dataset=DATASETS[0])
        slot = _slot_of(server, f"gpu-{gpu}")
        wait_until(lambda: server.limits()[slot] == 1, "the run has its slot")
        time.sleep(4)  # in the middle of the first stage
        kill(first)
    if gpu == "5":
        assert server.limits()[slot] == 1
        waited = wait_until(lambda: server.limits()[slot] == 0, "the slot is free", seconds=62)
        assert waited > 1  # until its lease has expired
    with agent(clone, server.api, "--gpu", gpu):
        assert server.limits()[slot] == 0
        wait_until(lambda: server.limits()[slot] == 1, "the run has its slot again", seconds=40)
        assert server.ended(run)["type"] == "COMPLETED"
    assert (clone / "data" / "evaluate" / DATASETS[0] / "value").is_file()


def test_a_cancelled_run_ends_its_stage_and_frees_its_slot(server: Server, tmp_path: Path) -> None:
    clone = project(tmp_path, first=61.5)
    with agent(clone, server.api, "--gpu", "7"):
        run = server.run("distill-dataset/gpu", "cancelled", dataset=DATASETS[0])
        wait_until(lambda: "sleep 61.5" in _commands(), "the stage is at work")
        server.ask(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"})
        assert server.ended(run, seconds=90)["type"] == "CANCELLED"
        assert "sleep 61.5" not in _commands()
        slot = _slot_of(server, "gpu-7")
        wait_until(lambda: server.limits()[slot] == 0, "the slot is free", seconds=10)
    assert not (clone / "data" / "prepare" / DATASETS[0]).exists()


def test_another_commit_and_an_unknown_data_set_are_refused(server: Server, tmp_path: Path) -> None:
    clone = project(tmp_path)
    with agent(clone, server.api, "--gpu", "8"):
        run = server.run("distill-dataset/gpu", "nowhere", dataset=DATASETS[0], commit="0" * 40)
        state = server.ended(run)
        assert state["type"] == "FAILED"
        assert "git checkout 000000000000" in state["message"]
    with pytest.raises(Exception, match="422|409"):
        server.run("distill-dataset/gpu", "unknown", dataset="embedded_greec")


def test_a_server_that_is_started_again_finds_the_stage_at_work(tmp_path: Path) -> None:
    clone = project(tmp_path, first=40)
    port = free_port()
    with ExitStack() as agents:
        with serving(tmp_path, clone, port=port) as server:
            agents.enter_context(agent(clone, server.api, "--gpu", "0"))
            run = server.run("distill-dataset/gpu", "long", dataset=DATASETS[0])
            wait_until(lambda: len(_ran(clone)) == 1, "the first stage is at work")
        time.sleep(10)
        with serving(tmp_path, clone, port=port) as server:
            assert server.ended(run)["type"] == "COMPLETED"
            wait_until(lambda: set(server.limits().values()) == {0}, "the slot is free", seconds=10)
    assert _ran(clone) == [f"{stage}@{DATASETS[0]}" for stage in STAGES]


def test_the_forms_offer_the_data_sets(server: Server) -> None:
    for name, key in (("distill-dataset/gpu", "dataset"), ("benchmark/quickstart", "datasets")):
        deployment = requests.get(f"{server.api}/deployments/name/{name}", timeout=30).json()
        schema = deployment["parameter_openapi_schema"]
        assert key in schema["properties"]
        assert '"embedded_greek"' in json.dumps(schema)
        assert ('"dtd"' in json.dumps(schema)) is (key == "dataset")
        assert deployment["enforce_parameter_schema"]
        assert deployment["tags"]


def test_of_two_agents_in_a_clone_the_second_is_refused(server: Server, tmp_path: Path) -> None:
    clone = project(tmp_path)
    with agent(clone, server.api, "--gpu", "9"):
        assert "end it first" in _refused(clone, server.api, "--gpu", "9")
    remote = str(tmp_path / "remote")
    with agent(clone, server.api, "--gpu", "9", PD_DVC_REMOTE=remote):
        reason = _refused(clone, server.api, PD_DVC_REMOTE=remote)  # they would share dvc.lock
    assert "a clone of its own" in reason


def test_an_agent_refuses_to_start_without_its_requirements(server: Server, tmp_path: Path) -> None:
    clone = project(tmp_path)
    assert "set PD_PREFECT_API_URL" in _refused(clone, "")
    assert "http://127.0.0.1:9/api" in _refused(clone, "http://127.0.0.1:9/api")
    assert "in a clone" in _refused(tmp_path, server.api, code=clone)
    assert "each once" in _refused(clone, server.api, "--gpu", "0", "0")


def _refused(
    folder: Path, api: str, *arguments: str, code: Path | None = None, **variables: str
) -> str:
    """Start an agent that is to refuse by one line; return this."""
    home = {"PD_PREFECT_API_URL": api, "PREFECT_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "flows.agent", *arguments],
        cwd=folder,
        env=environment(code or folder, **home, **variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    return done.stderr


def _ran(clone: Path) -> list[str]:
    """Return the stages that an agent has run, by its log."""
    log = clone.with_name(f"{clone.name}-agent--gpu0.log").read_text()
    return re.findall(r"Running stage '(.*)':", log)


def _commands() -> set[str]:
    """Return the command lines of all processes."""
    processes = psutil.process_iter(["cmdline"])
    return {" ".join(process.info["cmdline"] or ()) for process in processes}


def _slot_of(server: Server, end: str) -> str:
    (name,) = [limit for limit in server.limits() if limit.endswith(end)]
    return name
