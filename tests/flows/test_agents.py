"""Agents take data sets from the server, one a GPU at a time, and survive what can happen to them.

The stages wait instead of computing, so that two cores do not decide.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
import requests
from agents import (
    DATASETS,
    STAGES,
    Server,
    agent,
    environment,
    free_port,
    kill,
    serving,
    wait_until,
    waiting_project,
)

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
    """Run the benchmark by agents; return how many seconds it took."""
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


def never_double_booked(server: Server) -> None:
    for name, times in server.slot_times().items():
        kinds = [kind for _, kind in times]
        assert kinds == ["acquired", "released"] * (len(kinds) // 2), (name, times)


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
    taken = server.slot_times()
    assert sum(len(times) for times in taken.values()) == 2 * 2 * len(DATASETS)
    assert len(taken) == 2
    never_double_booked(server)


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
        wait_until(lambda: line in server.log(run), "the log has what the stage said", seconds=20)
        again = server.run("distill-dataset/gpu", "again", dataset=DATASETS[0])
        assert server.ended(again)["type"] == "COMPLETED"
        rows = json.loads(server.artifacts()["stages-embedded-arrows"])
        assert {row["state"] for row in rows} == {"up to date"}


def test_the_slot_of_a_killed_agent_is_free_within_a_minute_and_its_run_goes_on(
    server: Server, tmp_path: Path
) -> None:
    clone = project(tmp_path, first=15)
    with agent(clone, server.api, "--gpu", "5") as first:
        run = server.run("distill-dataset/gpu", "killed", dataset=DATASETS[0])
        slot = _slot_of(server, "gpu-5")
        wait_until(lambda: server.limits()[slot] == 1, "the run has its slot")
        time.sleep(5)  # in the middle of the first stage
        kill(first)
    assert server.limits()[slot] == 1
    waited = wait_until(lambda: server.limits()[slot] == 0, "the slot is free", seconds=62)
    assert waited > 1  # by its lease, nobody else freed it
    with agent(clone, server.api, "--gpu", "5"):
        assert server.ended(run)["type"] == "COMPLETED"
    assert (clone / "data" / "evaluate" / DATASETS[0] / "value").is_file()


def test_an_agent_that_is_started_again_frees_its_slot_at_once(
    server: Server, tmp_path: Path
) -> None:
    clone = project(tmp_path, first=15)
    with agent(clone, server.api, "--gpu", "6") as first:
        run = server.run("distill-dataset/gpu", "killed again", dataset=DATASETS[0])
        slot = _slot_of(server, "gpu-6")
        wait_until(lambda: server.limits()[slot] == 1, "the run has its slot")
        time.sleep(3)
        kill(first)
    with agent(clone, server.api, "--gpu", "6"):
        assert server.limits()[slot] == 0
        wait_until(lambda: server.limits()[slot] == 1, "the run has its slot again", seconds=40)
        assert server.ended(run)["type"] == "COMPLETED"


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


def test_parameters_that_cannot_be_are_refused_once_and_at_once(
    server: Server, tmp_path: Path
) -> None:
    clone = project(tmp_path)
    with agent(clone, server.api, "--gpu", "8"):
        run = server.run("distill-dataset/gpu", "nowhere", dataset=DATASETS[0], commit="0" * 40)
        state = server.ended(run)
        assert state["type"] == "FAILED"
        assert "commit 000000000000 is asked for" in state["message"]
        assert "`git fetch && git checkout" in state["message"]
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
        found = requests.get(f"{server.api}/deployments/name/{name}", timeout=30).json()
        shown = json.dumps(found["parameter_openapi_schema"])
        assert key in found["parameter_openapi_schema"]["properties"]
        assert '"embedded_greek"' in shown
        assert '"dtd"' in shown
        assert found["enforce_parameter_schema"]
        assert found["tags"]


def test_of_two_agents_in_a_clone_the_second_is_refused(server: Server, tmp_path: Path) -> None:
    clone = project(tmp_path)
    with agent(clone, server.api, "--gpu", "9"):
        done = _agent(clone, server.api, "--gpu", "9")
        assert done.returncode == 2
        assert done.stderr == "error: another agent is at work in this clone; end it first\n"
    remote = str(tmp_path / "remote")
    with agent(clone, server.api, "--gpu", "9", PD_DVC_REMOTE=remote):
        done = _agent(clone, server.api, PD_DVC_REMOTE=remote)  # they would share dvc.lock
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "each needs a clone of its own" in done.stderr


def test_an_agent_says_what_it_lacks(server: Server, tmp_path: Path) -> None:
    clone = project(tmp_path)
    done = _agent(clone, "")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no Prefect server is set; set PD_PREFECT_API_URL" in done.stderr
    done = _agent(clone, "http://127.0.0.1:9/api")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no Prefect server answers at 'http://127.0.0.1:9/api'" in done.stderr
    done = _agent(tmp_path, server.api, code=clone)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "start agents in a clone of the repository" in done.stderr
    done = _agent(clone, server.api, "--gpu", "0", "0")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "each once" in done.stderr


def _agent(
    folder: Path, api: str, *arguments: str, code: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Start an agent that is to end by itself."""
    home = {"PD_PREFECT_API_URL": api, "PREFECT_HOME": str(folder / "home")}
    return subprocess.run(
        [sys.executable, "-m", "flows.agent", *arguments],
        cwd=folder,
        env=environment(code or folder, **home, **variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _ran(clone: Path) -> list[str]:
    """Return the stages that an agent in a clone says that it has run."""
    log = clone.with_name(f"{clone.name}-agent--gpu0.log").read_text()
    return re.findall(r"Running stage '(.*)':", log)


def _commands() -> set[str]:
    """Return the command lines of all processes."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found.add(" ".join(process.cmdline()))
    return found


def _slot_of(server: Server, end: str) -> str:
    (name,) = [limit for limit in server.limits() if limit.endswith(end)]
    return name
