"""A Prefect server and agents, as processes, and projects for them to work on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml
from git_repository import commit, git
from waiting import free_port, wait_until

ROOT = Path(__file__).parents[2]
DATASETS = ("embedded_arrows", "embedded_digits", "embedded_greek", "embedded_latin")
STAGES = ("prepare", "teacher", "class_vectors", "student", "evaluate")
DVC = (sys.executable, "-m", "dvc")


@dataclass(frozen=True)
class Server:
    """A Prefect server set up for the flows: API address, state folder, clone."""

    api: str
    home: Path
    code: Path

    def is_up(self) -> bool:
        """Return True if it responds."""
        with suppress(requests.ConnectionError):
            return requests.get(f"{self.api}/health", timeout=30).ok
        return False

    def ask(self, path: str, **body: Any) -> Any:
        """Post to its API; again while its database is busy, as Prefect's client does."""
        while True:
            response = requests.post(f"{self.api}{path}", json=body, timeout=30)
            if response.status_code != requests.codes.unavailable:
                break
            time.sleep(1)
        response.raise_for_status()
        return response.json() if response.content else None

    def runs(self) -> dict[str, dict[str, Any]]:
        """Return all flow runs by name, the newest of each."""
        return {run["name"]: run for run in self.ask("/flow_runs/filter", sort="START_TIME_ASC")}

    def run(self, deployment: str, name: str, **parameters: Any) -> str:
        """Start a run of a deployment, called `<flow>/<name>`; return its id."""
        entry = requests.get(f"{self.api}/deployments/name/{deployment}", timeout=30).json()
        path = f"/deployments/{entry['id']}/create_flow_run"
        return str(self.ask(path, name=name, parameters=parameters)["id"])

    def state(self, run: str) -> dict[str, Any]:
        """Return the state of a flow run."""
        return dict(requests.get(f"{self.api}/flow_runs/{run}", timeout=30).json()["state"])

    def ended(self, run: str, *, seconds: float = 300) -> dict[str, Any]:
        """Wait until a flow run has ended; return its state."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        wait_until(lambda: self.state(run)["type"] in final, f"run {run} ends", seconds=seconds)
        return self.state(run)

    def limits(self) -> dict[str, int]:
        """Return how many slots of each concurrency limit are taken."""
        limits = self.ask("/v2/concurrency_limits/filter")
        return {limit["name"]: limit["active_slots"] for limit in limits}

    def artifacts(self) -> dict[str, Any]:
        """Return the data of all artifacts by key, the newest of each."""
        artifacts = self.ask("/artifacts/filter", sort="UPDATED_DESC", limit=200)
        return {artifact["key"]: artifact["data"] for artifact in reversed(artifacts)}

    def log(self, run: str) -> list[str]:
        """Return the log of a flow run."""
        query = {"flow_run_id": {"any_": [run]}}
        lines = self.ask("/logs/filter", logs=query, sort="TIMESTAMP_ASC", limit=200)
        return [line["message"] for line in lines]

    def slot_times(self) -> dict[str, list[tuple[str, str]]]:
        """Return when each slot was taken and freed, in order: (time, `acquired` or `released`)."""
        prefix = "prefect.concurrency-limit."
        names = [f"{prefix}acquired", f"{prefix}released"]
        query = {"event": {"name": names}, "order": "ASC"}
        page = self.ask("/events/filter", filter=query, limit=50)
        times: dict[str, list[tuple[str, str]]] = {}
        while page["events"]:
            for event in page["events"]:
                name = event["resource"]["prefect.resource.name"]
                kind = event["event"].removeprefix(prefix)
                times.setdefault(name, []).append((event["occurred"], kind))
            if not page["next_page"]:
                break
            page = requests.get(page["next_page"], timeout=30).json()
        return times

    def never_double_booked(self) -> bool:
        """Return True if each slot was freed before it was taken again, and is free now."""
        return all(
            [kind for _, kind in times] == ["acquired", "released"] * (len(times) // 2)
            for times in self.slot_times().values()
        )


@contextmanager
def serving(folder: Path, code: Path, *, port: int | None = None) -> Iterator[Server]:
    """Run a Prefect server during the block."""
    port = free_port() if port is None else port
    home = folder / "prefect"
    command = [sys.executable, "-m", "flows.server", "--port", str(port)]
    log = folder / "server.log"
    before = log.read_text().count("\nready at") if log.is_file() else 0
    with running(command, code, log, PREFECT_HOME=str(home)) as process:
        wait_until(
            lambda: log.read_text().count("\nready at") > before,
            f"the server is there, see {log}",
            process,
        )
        yield Server(f"http://127.0.0.1:{port}/api", home, code)


@contextmanager
def agent(
    clone: Path, api: str, *arguments: str, within: Sequence[str] = (), **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run an agent in a clone during the block; `within` is a prefix of its command."""
    command = [*within, sys.executable, "-m", "flows.agent", *arguments]
    log = clone.parent / f"{clone.name}-agent{''.join(arguments)}.log"
    before = log.read_text().count("takes runs from") if log.is_file() else 0
    home = str(clone.parent / f"{clone.name}-home")
    address = {"PD_PREFECT_API_URL": api, "PREFECT_HOME": home}
    with running(command, clone, log, **address, **variables) as process:
        wait_until(
            lambda: log.read_text().count("takes runs from") > before,
            f"the agent is there, see {log}",
            process,
        )
        yield process


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and everything that it started, at once."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.suspend()  # so that none reacts to the end of another
    for member in family:
        member.kill()
    process.wait()


def environment(code: Path, **variables: str) -> dict[str, str]:
    """Return variables for a process that runs a clone's code with this environment's programs."""
    programs = str(Path(sys.executable).parent)
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PD_", "PREFECT_", "AWS_"))
    }
    return {
        **clean,
        "PATH": os.pathsep.join([programs, os.environ["PATH"]]),
        "PYTHONPATH": str(code),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        **variables,
    }


def clone(source: Path, target: Path) -> Path:
    """Clone a repository."""
    subprocess.run(["git", "clone", "--quiet", str(source), str(target)], check=True)
    return target


def waiting_project(folder: Path, *, seconds: float = 0, first: float | None = None) -> Path:
    """Clone this repository, with stages that wait some seconds (the first: `first`)."""
    clone(ROOT, folder)
    stages: dict[str, Any] = {}
    before = None
    for stage in STAGES:
        out = f"data/{stage}/${{key}}"
        if before is None:
            deps = ["fingerprints/${key}.json"]  # DVC shares no stage without dependencies
            work = f"echo ${{key}} > {out}/value"
        else:
            deps = [f"data/{before}/${{key}}"]
            work = f"cp {deps[0]}/value {out}/value"
        wait = seconds if before or first is None else first
        command = f"sleep {wait} && mkdir -p {out} && {work}"
        stages[stage] = {
            "foreach": dict.fromkeys(DATASETS, 1),
            "do": {"cmd": command, "deps": deps, "outs": [out]},
        }
        before = stage
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {}}))
    git(folder, "rm", "-rq", "data")
    with (folder / ".gitignore").open("a") as file:
        file.write("/data/\n")
    commit(folder)
    return folder


@contextmanager
def running(
    command: list[str], code: Path, log: Path, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with a clone's code during the block, and end all that it started."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=code,
            env=environment(code, **variables),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for member in family:
                if member.is_running():
                    member.kill()
