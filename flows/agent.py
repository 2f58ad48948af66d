"""Agent that takes flow runs from the Prefect server and runs them in this clone.

`python -m flows.agent --gpu 0` distils data sets on a GPU; `python -m flows.agent`, the
coordinator, runs all other flows, of which `benchmark` hands out data sets. With `PD_DVC_REMOTE`
each agent needs a clone of its own, at the coordinator's commit; without it all share one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_WORKER_HEARTBEAT_SECONDS,
    PREFECT_WORKER_QUERY_SECONDS,
    temporary_settings,
)
from prefect.workers.process import ProcessWorker

from flows import slots
from flows.commands import CLONE, PROJECT, check_server, command
from flows.slots import Slot
from pd_core.core.errors import BadParams, MissingFile, PdError
from pd_core.pipeline.settings import load_settings

# Prefect's settings in the agent and in the runs that it starts.
_SETTINGS: Mapping[Any, Any] = {
    PREFECT_CLIENT_MAX_RETRIES: 10,  # enough for a restart of the server
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30,  # seconds, the least that Prefect allows
    PREFECT_WORKER_HEARTBEAT_SECONDS: 10,
    PREFECT_WORKER_QUERY_SECONDS: 2,
}


def use_clone() -> dict[str, str]:
    """Change to the clone of the run's agent or worker; a pull step of `prefect.yaml`.

    Raises:
        MissingFile: the worker was started elsewhere.
    """
    if not (PROJECT / ".dvc").is_dir():
        raise MissingFile(
            f"the worker was started in '{os.environ.get('PWD')}', which has no '.dvc'; start it in"
            " a clone of the repository"
        )
    os.chdir(PROJECT)
    return {"directory": str(PROJECT.resolve())}


@command
def main(arguments: Sequence[str] | None) -> None:
    """Work until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m flows.agent", description=__doc__)
    parser.add_argument(
        "--gpu",
        type=int,
        nargs="+",
        metavar="N",
        help="GPUs to use (default: none, as the coordinator)",
    )
    gpus = parser.parse_args(arguments).gpu
    slot = Slot.of(gpus) if gpus else None
    if slot is not None:
        check_gpus(slot)
    with _locked(slot), temporary_settings(_SETTINGS):
        _prepare(slot)
        _work(slot)


def check_gpus(slot: Slot) -> None:
    """Refuse numbers of no GPU, BadParams; without NVIDIA's driver they are only names."""
    if shutil.which("nvidia-smi") is None:
        return
    listed = subprocess.run(
        ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False
    )
    count = len(listed.stdout.splitlines())
    if listed.returncode == 0 and max(slot.gpus) >= count:
        raise BadParams(f"--gpu {max(slot.gpus)}: this machine has {count} GPUs, counted from 0")


def _locked(slot: Slot | None) -> FileLock:
    """Acquire the lock of this agent; refuse a folder that is not a clone, or already in use."""
    folder = Path(".dvc", "tmp")
    if not folder.parent.is_dir():
        raise MissingFile("no '.dvc' in this folder; start agents in a clone of the repository")
    folder.mkdir(exist_ok=True)
    shared = load_settings().dvc_remote is not None
    name = "agent" if shared else f"agent-{_name(slot)}"
    lock = FileLock(folder / f"promptkd-{name}.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        clone = "with PD_DVC_REMOTE each needs a clone of its own: `git clone . <folder>`, start it"
        remedy = f"{clone} there" if shared else "end it first"
        raise PdError(f"another agent is at work in this clone; {remedy}") from None
    if shared:
        # DVC finds out by process ids that a holder died, and ids are reused.
        (folder / "rwlock").unlink(missing_ok=True)
    return lock


def _prepare(slot: Slot | None) -> None:
    """Set the variables of runs, and make queue and limits on the server; recover killed runs."""
    address = PREFECT_API_URL.value()
    if not address:
        raise BadParams(
            "no Prefect server is set; set PD_PREFECT_API_URL, as http://127.0.0.1:4200/api"
        )
    check_server(address)
    if not slots.has_pool():
        raise PdError(
            f"the Prefect server at '{address}' has no work pool '{slots.POOL}'; start it with "
            "`python -m flows.server`"
        )
    os.environ.update({CLONE: str(Path.cwd()), slots.VARIABLE: slot.visible if slot else ""})
    paths = [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ.update({setting.name: str(value) for setting, value in _SETTINGS.items()})
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(slots.WATCH):
            _print(
                "note: this server does not mark the runs of dead machines as crashed; one that is"
                " started with `python -m flows.server` does"
            )
        if slot is not None:
            for limit in slot.limits:
                client.upsert_global_concurrency_limit_by_name(limit, 1)
            with suppress(ObjectAlreadyExists):
                client.create_work_queue(slot.name, concurrency_limit=1, work_pool_name=slots.POOL)
        slots.recover(client, _print)


def _work(slot: Slot | None) -> None:
    queues = [slots.COORDINATOR_QUEUE] if slot is None else [slot.name, slots.GPU_QUEUE]
    worker = ProcessWorker(
        work_pool_name=slots.POOL,
        work_queues=queues,
        name=_name(slot),
        limit=None if slot is None else 1,
        create_pool_if_not_found=False,
    )
    _print(f"{_name(slot)} takes runs from {' and '.join(queues)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the worker ends its runs first
    with suppress(KeyboardInterrupt):
        asyncio.run(worker.start())
    _print(f"{_name(slot)} has ended")


def _name(slot: Slot | None) -> str:
    return slot.name if slot else f"{slots.HOST}-coordinator"


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
