"""GPU slots: each GPU is a global concurrency limit of one on the Prefect server.

A slot is held by a lease, which whoever holds it renews. When a machine dies nobody does, and the
server frees the slot within a minute; an agent that is started again frees it at once
(`flows.recovery`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from prefect import runtime
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.context import ConcurrencyContext
from prefect.concurrency.sync import concurrency

from pd_core.core.errors import BadParams

VARIABLE = "PROMPTKD_GPUS"
"""Tells a flow run which GPUs its agent has, as `0` or `0,1`; only agents set it."""

LEASE_SECONDS = 60  # the least that Prefect allows


@dataclass(frozen=True)
class Slot:
    """The GPUs of one agent.

    Attributes:
        gpus: their numbers on the machine, in order.
        host: the machine's name.
    """

    gpus: tuple[int, ...]
    host: str = socket.gethostname().partition(".")[0].lower()

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
        return f"{self.host}-gpu-{'-'.join(map(str, self.gpus))}"

    @property
    def limits(self) -> list[str]:
        """The names of the concurrency limits: one a GPU, whichever agents share it."""
        return [f"{self.host}-gpu-{gpu}" for gpu in self.gpus]

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
    """Hold a slot while the block runs; wait until it is free.

    If the server cannot be reached for so long that it may have given the slot to another run,
    the block is ended.

    Yields:
        The leases by which it is held.
    """
    holder = ConcurrencyLeaseHolder(type="flow_run", id=UUID(runtime.flow_run.get_id()))
    with concurrency(slot.limits, strict=True, lease_duration=LEASE_SECONDS, holder=holder):
        context = ConcurrencyContext.get()
        yield list(context.cleanup_lease_ids) if context else []
