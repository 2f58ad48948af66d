"""What an agent that is started again does about the runs that its predecessor left behind.

A run notes itself in a file of the clone while it lasts. If the file is there and its process is
not, the run was killed: its slot is freed, and it is scheduled again, to go on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID

import psutil
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import AwaitingRetry, Cancelled

from pd_core.core.atomic import write_bytes
from pd_core.pipeline.dvc import works

NOTES = Path(".dvc", "tmp", "promptkd-runs")
"""Git ignores it, and DVC keeps what it does not know there."""

SILENT = "it went silent, as if its machine had died"
"""What `flows.server` says of a run that it declares crashed."""


@dataclass(frozen=True)
class Note:
    """A run that is at work.

    Attributes:
        run: its id on the server.
        process: the id of its process.
        started: when the process started, since ids are used again.
        leases: by which it holds its slot.
    """

    run: str
    process: int
    started: float
    leases: Sequence[str] = ()

    @property
    def is_alive(self) -> bool:
        """Whether its process is still there."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process)
            return bool(process.create_time() == self.started) and works(process)
        return False


@contextmanager
def noted() -> Iterator[Callable[[Sequence[UUID]], None]]:
    """Note the flow run of this process while the block lasts.

    Yields:
        What adds the leases that it has got.

    Raises:
        PdError: it cannot be noted: the disk is full, for example.
    """
    process = psutil.Process(os.getpid())
    run = str(runtime.flow_run.get_id())
    file = NOTES / f"{run}.json"

    def write(leases: Sequence[UUID] = ()) -> None:
        note = Note(run, process.pid, process.create_time(), [str(lease) for lease in leases])
        write_bytes(file, json.dumps(asdict(note)).encode())

    write()
    try:
        yield write
    finally:
        file.unlink(missing_ok=True)


def recover(client: SyncPrefectClient, say: Callable[[str], None]) -> None:
    """Free the slots of runs of this clone that were killed, and schedule the runs again.

    Args:
        client: of the server.
        say: called with a line for each.
    """
    for file in sorted(NOTES.glob("*.json")):
        note = Note(**json.loads(file.read_bytes()))
        if note.is_alive:
            continue
        for lease in note.leases:
            with suppress(PrefectHTTPStatusError, ObjectNotFound):  # it has expired
                client.release_concurrency_slots_with_lease(UUID(lease))
        _schedule_again(client, UUID(note.run), say)
        file.unlink(missing_ok=True)


def _schedule_again(client: SyncPrefectClient, run: UUID, say: Callable[[str], None]) -> None:
    try:
        found = client.read_flow_run(run)
    except ObjectNotFound:  # the server has been emptied
        return
    state = found.state
    if state is None or found.deployment_id is None:
        return
    if state.is_final() and not _is_missed(found):
        return
    if state.is_cancelling():
        client.set_flow_run_state(run, Cancelled(), force=True)
        return
    # No process of it is left; while the server thinks so, cancelling it would wait for one.
    client.request(
        "PATCH", "/flow_runs/{id}", path_params={"id": run}, json={"infrastructure_pid": None}
    )
    client.set_flow_run_state(run, AwaitingRetry(), force=True)
    say(f"run '{found.name}' was cut off and goes on")


def _is_missed(run: FlowRun) -> bool:
    """Whether a run was declared crashed while its agent was away, and no other agent takes it.

    One of a benchmark is handed to another agent (`flows.dispatch`).
    """
    return (
        run.state is not None
        and run.state.is_crashed()
        and run.state.message == SILENT
        and run.parent_task_run_id is None
    )
