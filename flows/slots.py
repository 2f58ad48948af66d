"""The agents' work pool, its queues and GPU slots, and recovery of killed flow runs.

Each GPU is a concurrency limit of one on the server. The holder of a slot renews a lease: the
server frees the slot of a machine that died within a minute. An agent that is started again frees
it at once, since each flow run records itself in a file of the clone: if the file is there and its
process is not, the run was killed. Its slot is freed, and it is scheduled again, to resume.
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
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.context import ConcurrencyContext
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import AwaitingRetry, Cancelled

from pd_core.core.atomic import write_bytes
from pd_core.core.errors import BadParams
from pd_core.pipeline.dvc import works

POOL = "promptkd"
GPU_QUEUE = "gpu"  # for any agent with a GPU
COORDINATOR_QUEUE = "coordinator"  # for the agent without one

VARIABLE = "PROMPTKD_GPUS"
"""Environment variable with the GPUs of a flow run's agent, as `0` or `0,1`; set by agents only."""

HOST = socket.gethostname().partition(".")[0].lower()

_LEASE_SECONDS = 60  # the least that Prefect allows
_RECORDS = Path(".dvc", "tmp", "promptkd-runs")  # ignored by Git, left alone by DVC

WATCH = "runs whose machine is gone"
"""Name of the server's automation that marks them as crashed."""

SILENT = "it went silent, as if its machine had died"
"""Message of a run that the server's automation has declared crashed."""


@dataclass(frozen=True)
class Slot:
    """GPUs of one agent, by their numbers on the machine, in order."""

    gpus: tuple[int, ...]

    @classmethod
    def of(cls, gpus: Sequence[int]) -> Slot:
        """Make the slot of some GPUs of this machine.

        Raises:
            BadParams: a number is negative, or given twice.
        """
        if len(set(gpus)) < len(gpus) or min(gpus) < 0:
            given = " ".join(map(str, gpus))
            raise BadParams(f"--gpu {given}: give numbers from 0, as nvidia-smi does, each once")
        return cls(tuple(sorted(gpus)))

    @property
    def name(self) -> str:
        """Name of the agent, and of its own work queue."""
        return f"{HOST}-gpu-{'-'.join(map(str, self.gpus))}"

    @property
    def limits(self) -> list[str]:
        """Names of the concurrency limits: one a GPU, whichever agents share it."""
        return [f"{HOST}-gpu-{gpu}" for gpu in self.gpus]

    @property
    def visible(self) -> str:
        """Value of CUDA_VISIBLE_DEVICES."""
        return ",".join(map(str, self.gpus))


def has_pool() -> bool:
    """Return True if `flows.server` has set up the server."""
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            return False
    return True


def by_agent() -> bool:
    """Return True if an agent runs this process."""
    return VARIABLE in os.environ


def own() -> Slot | None:
    """Return the slot of this flow run's agent, if there is one."""
    gpus = os.environ.get(VARIABLE, "")
    return Slot.of([int(gpu) for gpu in gpus.split(",")]) if gpus else None


@contextmanager
def held(slot: Slot) -> Iterator[list[UUID]]:
    """Wait for a slot and hold it during the block; yields its leases.

    The block is ended if the server is out of reach for so long that it may have given the slot to
    another run.
    """
    holder = ConcurrencyLeaseHolder(type="flow_run", id=UUID(runtime.flow_run.get_id()))
    with concurrency(slot.limits, strict=True, lease_duration=_LEASE_SECONDS, holder=holder):
        context = ConcurrencyContext.get()
        yield list(context.cleanup_lease_ids) if context else []


@dataclass(frozen=True)
class Record:
    """A flow run in progress.

    Attributes:
        run: its id on the server.
        process: process id.
        started: start time of the process, since ids are reused.
        leases: of its slot.
    """

    run: str
    process: int
    started: float
    leases: Sequence[str] = ()

    @property
    def is_alive(self) -> bool:
        """True while the process is at work."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process)
            return bool(process.create_time() == self.started) and works(process)
        return False


@contextmanager
def recorded() -> Iterator[Callable[[Sequence[UUID]], None]]:
    """Record the flow run of this process during the block, if an agent runs it.

    Yields:
        A function that adds the leases of the run's slot.
    """
    if not by_agent():
        yield lambda _: None
        return
    process = psutil.Process(os.getpid())
    run = str(runtime.flow_run.get_id())
    file = _RECORDS / f"{run}.json"

    def write(leases: Sequence[UUID] = ()) -> None:
        record = Record(run, process.pid, process.create_time(), [str(lease) for lease in leases])
        write_bytes(file, json.dumps(asdict(record)).encode())

    write()
    try:
        yield write
    finally:
        file.unlink(missing_ok=True)


def recover(client: SyncPrefectClient, log: Callable[[str], None]) -> None:
    """Free the slots of this clone's killed runs, and schedule these again; log each."""
    for file in sorted(_RECORDS.glob("*.json")):
        record = Record(**json.loads(file.read_bytes()))
        if record.is_alive:
            continue
        for lease in record.leases:
            with suppress(PrefectHTTPStatusError, ObjectNotFound):  # it has expired
                client.release_concurrency_slots_with_lease(UUID(lease))
        _reschedule(client, UUID(record.run), log)
        file.unlink(missing_ok=True)


def _reschedule(client: SyncPrefectClient, run_id: UUID, log: Callable[[str], None]) -> None:
    try:
        run = client.read_flow_run(run_id)
    except ObjectNotFound:  # the server has been emptied
        return
    state = run.state
    if state is None or run.deployment_id is None:
        return
    # Crashed for lack of its agent, and not part of a benchmark, which would hand it to another.
    missed = state.is_crashed() and state.message == SILENT and run.parent_task_run_id is None
    if state.is_final() and not missed:
        return
    if state.is_cancelling():
        client.set_flow_run_state(run_id, Cancelled(), force=True)
        return
    # Its process is gone; as long as the server has its id, cancelling would wait for it.
    client.request(
        "PATCH", "/flow_runs/{id}", path_params={"id": run_id}, json={"infrastructure_pid": None}
    )
    client.set_flow_run_state(run_id, AwaitingRetry(), force=True)
    log(f"run '{run.name}' was cut off and goes on")
