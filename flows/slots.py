"""GPU slots, and the runs that hold them: each GPU is a concurrency limit of one on the server.

A slot is held by a lease, which whoever holds it renews. When a machine dies nobody does, and the
server frees the slot within a minute; an agent that is started again frees it at once: a run notes
itself in a file of the clone while it lasts. If the file is there and its process is not, the run
was killed: its slot is freed, and it is scheduled again, to go on where it was.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID

import psutil
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.context import ConcurrencyContext
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import AwaitingRetry, Cancelled

from pd_core.core.atomic import write_bytes
from pd_core.core.errors import BadParams
from pd_core.pipeline.dvc import works

VARIABLE = "PROMPTKD_GPUS"
"""Tells a flow run which GPUs its agent has, as `0` or `0,1`; only agents set it."""

HOST = socket.gethostname().partition(".")[0].lower()
"""The machine's name."""

LEASE_SECONDS = 60  # the least that Prefect allows

NOTES = Path(".dvc", "tmp", "promptkd-runs")
"""Git ignores it, and DVC keeps what it does not know there."""

SILENT = "it went silent, as if its machine had died"
"""What `flows.server` says of a run that it declares crashed."""


@dataclass(frozen=True)
class Slot:
    """The GPUs of one agent, by their numbers on the machine, in order."""

    gpus: tuple[int, ...]

    @classmethod
    def of(cls, gpus: Sequence[int]) -> Slot:
        """Make the slot of some GPUs of this machine.

        Raises:
            BadParams: a number is below zero, or comes twice.
        """
        if len(set(gpus)) < len(gpus) or min(gpus) < 0:
            given = " ".join(map(str, gpus))
            raise BadParams(f"--gpu {given}: give numbers from 0, as nvidia-smi does, each once")
        return cls(tuple(sorted(gpus)))

    @property
    def name(self) -> str:
        """The name of the agent, and of the work queue that is its own."""
        return f"{HOST}-gpu-{'-'.join(map(str, self.gpus))}"

    @property
    def limits(self) -> list[str]:
        """The names of the concurrency limits: one a GPU, whichever agents share it."""
        return [f"{HOST}-gpu-{gpu}" for gpu in self.gpus]

    @property
    def visible(self) -> str:
        """The value of CUDA_VISIBLE_DEVICES."""
        return ",".join(map(str, self.gpus))


def by_agent() -> bool:
    """Whether an agent runs this process."""
    return VARIABLE in os.environ


def own() -> Slot | None:
    """Return the slot that this flow run's agent has; None without an agent, or if it has none."""
    told = os.environ.get(VARIABLE, "")
    return Slot.of([int(gpu) for gpu in told.split(",")]) if told else None


def name() -> str:
    """Return the name of the slot that this flow run's agent has, or nothing."""
    slot = own()
    return slot.name if slot else ""


@contextmanager
def held(slot: Slot) -> Iterator[list[UUID]]:
    """Hold a slot, by the leases that the block gets; wait until it is free.

    If the server cannot be reached for so long that it may have given the slot to another run,
    the block is ended.
    """
    holder = ConcurrencyLeaseHolder(type="flow_run", id=UUID(runtime.flow_run.get_id()))
    with concurrency(slot.limits, strict=True, lease_duration=LEASE_SECONDS, holder=holder):
        context = ConcurrencyContext.get()
        yield list(context.cleanup_lease_ids) if context else []


@dataclass(frozen=True)
class Note:
    """A run that is at work."""

    run: str  # id on the server
    process: int  # id
    started: float  # when the process started, since ids are used again
    leases: Sequence[str] = ()  # by which it holds its slot

    @property
    def is_alive(self) -> bool:
        """Whether its process is still there."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process)
            return bool(process.create_time() == self.started) and works(process)
        return False


@contextmanager
def noted() -> Iterator[Callable[[Sequence[UUID]], None]]:
    """Note the flow run of this process while the block lasts, if an agent runs it.

    Yields:
        What adds the leases that it has got.
    """
    if not by_agent():
        yield lambda _: None
        return
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
    """Free the slots of runs of this clone that were killed; schedule them again, and say so."""
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
    # Declared crashed while its agent was away, and no other agent takes it, as one of a benchmark.
    missed = state.is_crashed() and state.message == SILENT and found.parent_task_run_id is None
    if state.is_final() and not missed:
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
