"""Flow runs that the coordinator assigns to agents, and to other ones if their agents die."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect import get_run_logger, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling

from flows import slots

_POLL_SECONDS = 2.0
_MAX_ATTEMPTS = 3  # at a job whose agents die


@dataclass(frozen=True)
class Outcome:
    """Result of a job: its name, its last flow run, and the reason of a failure."""

    name: str
    run: UUID | None
    reason: str = ""


def available() -> bool:
    """Return True if an agent runs this flow, or there are agents with GPUs on the server."""
    if not PREFECT_API_URL.value():
        return False
    if slots.by_agent():
        return True
    if not slots.has_pool():
        return False
    if not agents():
        get_run_logger().warning("no agent has a GPU to offer; the work is done here")
    return bool(agents())


def agents() -> list[str]:
    """Return the names of the agents with GPUs that are online."""
    with get_client(sync_client=True) as client:
        response = client.request(
            "POST",
            "/work_pools/{work_pool_name}/workers/filter",
            path_params={"work_pool_name": slots.POOL},
            json={},
        )
    return sorted(
        worker["name"]
        for worker in response.json()
        if worker["status"] == "ONLINE" and "-gpu-" in worker["name"]
    )


def run_by_agents(deployment: str, jobs: Mapping[str, Mapping[str, Any]]) -> list[Outcome]:
    """Have agents run jobs; wait until all have ended.

    A job whose agent dies is assigned to another one. If this is interrupted, its runs are
    cancelled.

    Args:
        deployment: `<flow>/<name>`, whose queue is that of agents with GPUs.
        jobs: parameters of the deployment, by the job's name.
    """
    pending = all_jobs = [_Job.submitted(deployment, name, each) for name, each in jobs.items()]
    names = ", ".join(agents()) or "agents, of which none is at work"
    get_run_logger().info(f"{len(all_jobs)} runs of {deployment} for {names}")
    with get_client(sync_client=True) as client:
        try:
            while pending := [job for job in pending if not job.has_ended(client)]:
                for job in pending:
                    if job.run.state is not None and job.run.state.is_crashed():
                        job.submit_again()
                time.sleep(_POLL_SECONDS)
        except BaseException:
            for job in all_jobs:
                state = client.read_flow_run(job.run.id).state
                if state is not None and not state.is_final():
                    client.set_flow_run_state(job.run.id, Cancelling())
            raise
    return [Outcome(job.name, job.run.id, _reason(job.run)) for job in all_jobs]


@dataclass
class _Job:
    """A job, and its current flow run."""

    deployment: str
    name: str
    parameters: Mapping[str, Any]
    run: FlowRun
    attempts: int = 1

    @classmethod
    def submitted(cls, deployment: str, name: str, parameters: Mapping[str, Any]) -> _Job:
        """Submit the first run of a job."""
        run = _submit(deployment, name, parameters, attempt=1)
        return cls(deployment, name, parameters, run)

    def submit_again(self) -> None:
        """Submit a run in place of one whose agent has died."""
        self.attempts += 1
        self.run = _submit(self.deployment, self.name, self.parameters, attempt=self.attempts)

    def has_ended(self, client: SyncPrefectClient) -> bool:
        """Update the run, log a new state; return True if nothing more is to come of it."""
        before = self.run.state_name
        self.run = client.read_flow_run(self.run.id)
        state, log = self.run.state, get_run_logger()
        if state is None:
            return False
        if self.run.state_name != before:
            log.info(f"{self.name}: {self.run.state_name}")
        if state.is_crashed() and self.attempts < _MAX_ATTEMPTS:
            log.info(f"{self.name}: its agent is gone, another one takes it")
            return False
        return state.is_final()


def _submit(deployment: str, name: str, parameters: Mapping[str, Any], *, attempt: int) -> FlowRun:
    """Create a flow run, or return the one that this flow created before it was cut off."""
    return run_deployment(
        deployment,
        parameters={**parameters},
        timeout=0,
        flow_run_name=name if attempt == 1 else f"{name}, attempt {attempt}",
        idempotency_key=f"{runtime.flow_run.get_id()}-{name}-{attempt}",
        tags=[name],
    )  # type: ignore[return-value]  # a coroutine only where there is an event loop


def _reason(run: FlowRun) -> str:
    state = run.state
    if state is None or state.is_completed():
        return ""
    return state.message or f"its run is {run.state_name}"
