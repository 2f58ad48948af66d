"""Prefect server set up for the flows: `python -m flows.server`.

It has a process work pool with a queue for runs that need a GPU, one for all others, and one for
each agent, which adds its own; the deployments of `prefect.yaml`; and an automation that marks runs
as crashed whose machine has died. Whatever is there already stays as it was set on the server; the
data sets that the deployments accept are those of the profiles, also when these change.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from httpx import HTTPError
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, PrefectException
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema

from flows.commands import PAPER, ROOT, check_server, command
from flows.slots import COORDINATOR_QUEUE, GPU_QUEUE, POOL, SILENT, WATCH
from pd_core.core.errors import MissingFile, PdError
from pd_core.pipeline.stages.params import PARAMS

_FILE = Path("prefect.yaml")
_PREFECT = (sys.executable, "-m", "prefect")
_WATCH_SECONDS = 2.0
_START_SECONDS = 180.0  # to create the database on a slow disk
_SILENCE = timedelta(seconds=90)  # three heartbeats
_ENDS = ("Completed", "Failed", "Cancelled", "Crashed")

# Defaults for the server; variables of the environment go first.
_SETTINGS = {
    # Leases outlive a restart, so that slots are freed.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    ),
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "1",
}


@command
def main(arguments: Sequence[str] | None) -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m flows.server", description=__doc__)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=4200, help="port to listen on (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    return serve(options.host, options.port)


def serve(host: str, port: int) -> int:
    """Run a server, set up for the flows; return its exit status.

    Raises:
        MissingFile: this folder has no `prefect.yaml`.
        PdError: the server does not start, or refuses a deployment.
    """
    if not _FILE.is_file():
        raise MissingFile(f"no '{_FILE}' in this folder; start the server in the repository")
    near = "127.0.0.1" if host == "0.0.0.0" else host
    address = f"http://{near}:{port}/api"
    environment = {**_SETTINGS, **os.environ, "PREFECT_API_URL": address}
    server = subprocess.Popen(
        [*_PREFECT, "server", "start", "--host", host, "--port", str(port)], env=environment
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _wait_for(server, address)
        set_up(address)
        _print(
            f"ready at {address}; for agents: `export PD_PREFECT_API_URL={address}`, then "
            "`python -m flows.agent --gpu 0` for each GPU, and `python -m flows.agent`"
        )
        _watch(server, address)
        return max(server.wait(), 0)
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait()


def set_up(address: str) -> None:
    """Create work pool, queues, automation and deployments, unless they exist.

    Raises:
        PdError: the server refuses a deployment.
    """
    with temporary_settings({PREFECT_API_URL: address}), get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        for queue in (GPU_QUEUE, COORDINATOR_QUEUE):
            with suppress(ObjectAlreadyExists):
                client.create_work_queue(queue, work_pool_name=POOL)
        if not client.read_automations_by_name(WATCH):
            client.create_automation(_crash_automation())
        there = {deployment.name: deployment for deployment in client.read_deployments(limit=200)}
    declared = {entry["name"]: entry for entry in _declared()}
    _deploy([name for name in declared if name not in there], address)
    for name in declared.keys() & there.keys():
        if other := _differences(declared[name], there[name]):
            _print(
                f"deployment '{name}' keeps its {', '.join(other)}, other than in {_FILE}; "
                f"`prefect deploy --name {name}` sets those of the file"
            )
    update_forms(address)


def _declared() -> list[dict[str, Any]]:
    """Return the deployments of `prefect.yaml`."""
    return list(yaml.safe_load(_FILE.read_text())["deployments"])


def _watch(server: subprocess.Popen[bytes], address: str) -> None:
    """Update the forms whenever the profiles have changed, until the server ends."""
    before = _profiles_changed()
    while server.poll() is None:
        time.sleep(_WATCH_SECONDS)
        if (now := _profiles_changed()) != before:
            update_forms(address)
            before = now


def _profiles_changed() -> list[float]:
    """Return when the profiles' parameters were last changed."""
    files = (folder / PARAMS for folder in (ROOT, PAPER))
    return [file.stat().st_mtime for file in files if file.is_file()]


def update_forms(address: str) -> None:
    """Have the deployments offer and accept the profiles' data sets, and change nothing else."""
    entrypoints = {entry["entrypoint"] for entry in _declared()}
    with temporary_settings({PREFECT_API_URL: address}), get_client(sync_client=True) as client:
        for there in client.read_deployments(limit=200):
            if there.entrypoint is None or there.entrypoint not in entrypoints:
                continue
            schema = parameter_schema(load_flow_from_entrypoint(there.entrypoint))
            if (there.parameter_openapi_schema or {}).get("properties") == schema.properties:
                continue
            try:
                update = DeploymentUpdate(parameter_openapi_schema=schema.model_dump(mode="json"))
                client.update_deployment(there.id, update)
                _print(f"deployment '{there.name}' has the data sets of {PARAMS} as it is now")
            except (PrefectException, HTTPError) as error:
                _print(f"deployment '{there.name}' keeps its data sets: {error}")


def _differences(declared: dict[str, Any], there: DeploymentResponse) -> list[str]:
    """Return what differs between an entry of `prefect.yaml` and the deployment on a server."""
    queue = declared.get("work_pool", {}).get("work_queue_name", "default")
    schedules = [
        (each.get("cron"), each.get("active", True)) for each in declared.get("schedules", ())
    ]
    on_server = [(getattr(each.schedule, "cron", None), each.active) for each in there.schedules]
    pairs = {
        "entrypoint": (declared["entrypoint"], there.entrypoint),
        "parameters": (declared.get("parameters", {}), there.parameters),
        "queue": (queue, there.work_queue_name),
        "schedules": (schedules, on_server),
        "tags": (declared.get("tags", []), there.tags),
    }
    return [key for key, (wanted, found) in pairs.items() if wanted != found]


def _deploy(names: Sequence[str], address: str) -> None:
    """Create deployments of `prefect.yaml`; PdError if the server refuses one."""
    if not names:
        return
    done = subprocess.run(
        [*_PREFECT, "--no-prompt", "deploy", *(f"--name={name}" for name in names)],
        env={**os.environ, "PREFECT_API_URL": address},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise PdError(f"the deployments of 'prefect.yaml' are refused: {done.stdout[-500:]}")


def _wait_for(server: subprocess.Popen[bytes], address: str) -> None:
    """Wait until the server responds; refuse one that ends, or takes too long."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            return check_server(address)
        except PdError:
            if server.poll() is not None:
                raise PdError(
                    f"Prefect's server ended with status {server.returncode}; see its log above"
                ) from None
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _crash_automation() -> AutomationCore:
    """Return the automation that marks runs without heartbeat as crashed.

    The benchmark then hands their data set to another agent.
    """
    runs = "prefect.flow-run"
    return AutomationCore(
        name=WATCH,
        description="A run that sends no heartbeat any more has crashed.",
        trigger=EventTrigger(
            after={f"{runs}.heartbeat"},
            expect={f"{runs}.{event}" for event in ("heartbeat", "AwaitingRetry", *_ENDS)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=_SILENCE,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=SILENT)],
    )


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
