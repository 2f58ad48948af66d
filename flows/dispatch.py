"""Handing data sets to agents: as many at a time as there are agents, each on a GPU of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

POOL = "promptkd"
GPU_QUEUE = "gpu"  # what any agent with a GPU takes
COORDINATOR_QUEUE = "coordinator"  # what the agent without one takes
DEPLOYMENT = "distill-dataset/gpu"

_SECONDS = 2.0  # between two looks
_MOST_ATTEMPTS = 3  # of a data set whose agents die under it
_GPU = "-gpu-"  # in the name of an agent that has one


@dataclass(frozen=True)
class Outcome:
    """What became of a data set."""

    dataset: str
    run: UUID | None  # the flow run that did it, or tried to
    reason: str = ""  # why it failed; empty if it did not


@dataclass
class _Work:
    """A data set that is to be distilled."""

    dataset: str
    run: FlowRun  # that does it now
    attempts: int = 1


def agents() -> list[str]:
    """Return the names of the agents with GPUs that are at work now."""
    with get_client(sync_client=True) as client:
        answer = client.request(
            "POST",
            "/work_pools/{work_pool_name}/workers/filter",
            path_params={"work_pool_name": POOL},
            json={},
        )
    return sorted(
        worker["name"]
        for worker in answer.json()
        if worker["status"] == "ONLINE" and _GPU in worker["name"]
    )


def has_pool() -> bool:
    """Whether the server is one that `flows.server` has set up."""
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            return False
    return True


def distill(
    datasets: Sequence[str], parameters: dict[str, Any], say: Callable[[str], None]
) -> list[Outcome]:
    """Have agents distil data sets; wait until all have ended.

    A data set whose agent dies is handed to another one. If this is interrupted, what the agents
    do for it is cancelled.

    Args:
        datasets: their names.
        parameters: of `distill_dataset`, beside the data set.
        say: called with a line for each event.
    """
    works = [_Work(name, _submit(name, parameters, attempt=1)) for name in datasets]
    say(f"{len(works)} data sets for {', '.join(agents()) or 'agents, of which none is at work'}")
    with get_client(sync_client=True) as client:
        try:
            open_works = works
            while open_works := [work for work in open_works if not _look(client, work, say)]:
                for work in open_works:
                    if work.run.state is not None and work.run.state.is_crashed():
                        work.attempts += 1
                        work.run = _submit(work.dataset, parameters, attempt=work.attempts)
                time.sleep(_SECONDS)
        except BaseException:
            _cancel(client, works)
            raise
    return [Outcome(work.dataset, work.run.id, _reason(work.run)) for work in works]


def _submit(dataset: str, parameters: dict[str, Any], *, attempt: int) -> FlowRun:
    """Ask for a run; if this flow has asked for it before it was cut off, it is the same one."""
    return run_deployment(
        DEPLOYMENT,
        parameters={**parameters, "dataset": dataset},
        timeout=0,
        flow_run_name=dataset if attempt == 1 else f"{dataset}, attempt {attempt}",
        idempotency_key=f"{runtime.flow_run.get_id()}-{dataset}-{attempt}",
        tags=[dataset],
    )  # type: ignore[return-value]  # a coroutine only where there is an event loop


def _look(client: SyncPrefectClient, work: _Work, say: Callable[[str], None]) -> bool:
    """Look how a data set's run is; return whether nothing more is to come of it."""
    before = work.run.state_name
    work.run = _read(client, work.run.id)
    state = work.run.state
    if state is None:
        return False
    if work.run.state_name != before:
        say(f"{work.dataset}: {work.run.state_name}")
    if state.is_crashed() and work.attempts < _MOST_ATTEMPTS:
        say(f"{work.dataset}: its agent is gone, another one takes it")
        return False
    return state.is_final()


def _reason(run: FlowRun) -> str:
    """Return why a run that has ended did not succeed, or nothing."""
    state = run.state
    if state is None or state.is_completed():
        return ""
    return state.message or f"its run is {run.state_name}"


def _read(client: SyncPrefectClient, run: UUID) -> FlowRun:
    (found,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
    return found


def _cancel(client: SyncPrefectClient, works: Sequence[_Work]) -> None:
    for work in works:
        state = _read(client, work.run.id).state
        if state is not None and not state.is_final():
            client.set_flow_run_state(work.run.id, Cancelling())
