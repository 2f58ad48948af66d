"""Prefect's own commands, without `flows.server` and `flows.agent`, run everything."""

import subprocess
import sys
from pathlib import Path

import pytest
from agents import DATASETS, Server, agent, environment, running, waiting_project
from waiting import free_port, wait_until

PREFECT = [sys.executable, "-m", "prefect"]

pytestmark = [pytest.mark.slow, pytest.mark.ci, pytest.mark.timeout(400)]


def test_a_server_a_pool_a_deployment_and_a_worker_of_prefect_run_a_data_set(
    tmp_path: Path,
) -> None:
    code, port = waiting_project(tmp_path / "code"), free_port()
    api, home = f"http://127.0.0.1:{port}/api", tmp_path / "prefect"
    shell = {"PREFECT_API_URL": api, "PREFECT_HOME": str(home), "PWD": str(code)}

    def prefect(*arguments: str) -> None:
        done = subprocess.run(
            [*PREFECT, "--no-prompt", *arguments], cwd=code, env=environment(code, **shell),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    serve = [*PREFECT, "server", "start", "--port", str(port)]
    work = [*PREFECT, "worker", "start", "--pool", "promptkd", "-q", "gpu"]
    with running(serve, code, tmp_path / "server.log", **shell) as started:
        server = Server(api, home, code)
        wait_until(server.is_up, "the server is up", started, seconds=180)
        prefect("work-pool", "create", "promptkd", "--type", "process")
        prefect("deploy", "--all")
        with running(work, code, tmp_path / "worker.log", **shell):
            run = server.run("distill-dataset/gpu", "plain", dataset=DATASETS[0])
            state = server.ended(run)
        with agent(code, api):
            log = (tmp_path / "code-agent.log").read_text()

    assert state["type"] == "COMPLETED", (state, (tmp_path / "worker.log").read_text()[-3000:])
    assert "does not mark the runs of dead machines as crashed" in log
    assert (code / "data" / "evaluate" / DATASETS[0] / "value").read_text() == f"{DATASETS[0]}\n"
