"""The whole benchmark as a Prefect flow: `python -m flows.benchmark [DATA SET ...]`.

With agents (`flows.agent`) the data sets run on their GPUs, as many at a time as there are agents,
and the results are brought here; without, one after the other in this process. No server is
needed; if one is set (`PD_PREFECT_API_URL`), the run is recorded there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import State, flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling, Completed, Failed

from flows import artifacts, pipeline, slots
from flows.commands import PAPER, ROOT, PaperDataSet, RootDataSet, check_server, command
from flows.distill import distill_dataset
from pd_core.core.errors import BadParams, PdError
from pd_core.pipeline import provenance
from pd_core.pipeline.code_hash import CODE
from pd_core.pipeline.settings import load_settings
from pd_core.pipeline.stages.params import PARAMS, load_params

_DEPLOYMENT = "distill-dataset/gpu"
_POLL_SECONDS = 2.0
_MAX_ATTEMPTS = 3  # at a data set whose agents die


@dataclass(frozen=True)
class Outcome:
    """Result of one data set: its last flow run, and the reason of a failure."""

    dataset: str
    run: UUID | None
    reason: str = ""


@flow(name="benchmark")
def benchmark(
    datasets: list[RootDataSet] | None = None,
    profile_dir: Path = ROOT,
    report: bool | None = None,
) -> State[Any]:
    """Run all stages of some data sets, then the report over all of them.

    Args:
        datasets: their names; all by default.
        profile_dir: folder of the profile's `dvc.yaml`, as seen from the repository.
        report: make the report; by default if no data sets are chosen.

    Returns:
        Completed; or failed if a data set failed: the others have run all the same, and there is
        no report.
    """
    report = not datasets if report is None else report
    try:
        graph = pipeline.read_graph(profile_dir)
        names = pipeline.choose(graph, datasets or ())
        shared = load_settings().dvc_remote is not None
        by_agents = bool(PREFECT_API_URL.value()) and (slots.by_agent() or _has_agents())
        commit = _commit() if by_agents and shared else None
        with slots.recorded():
            if by_agents:
                parameters = {"profile_dir": str(profile_dir), "commit": commit}
                outcomes = _run_by_agents(names, parameters)
            else:
                outcomes = [_run_here(name, profile_dir) for name in names]
            reasons = _conclude(graph, outcomes, profile_dir, with_report=report)
            if not reasons and commit is not None:
                _commit_lock(profile_dir)
    except PdError as error:
        return Failed(message=str(error))
    if reasons:
        return Failed(message="; ".join(reasons))
    return Completed(message=f"{len(names)} data sets are up to date")


@flow(name="benchmark")
def paper(datasets: list[PaperDataSet] | None = None, report: bool | None = None) -> State[Any]:
    """Run the benchmark of the profile `paper`.

    Args:
        datasets: their names; all by default.
        report: make the report; by default if no data sets are chosen.

    Returns:
        As `benchmark`.
    """
    return benchmark.fn(datasets, PAPER, report)


@command
def main(arguments: Sequence[str] | None) -> State[Any]:
    """Run the flow from the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.benchmark", description=__doc__)
    parser.add_argument(
        "datasets", nargs="*", metavar="DATA_SET", help="data sets to run (default: all)"
    )
    parser.add_argument(
        "--profile-dir", type=Path, default=Path(), help="directory with dvc.yaml (default: .)"
    )
    options = parser.parse_args(arguments)
    check_server(PREFECT_API_URL.value())
    # Bad input is refused before Prefect starts.
    pipeline.choose(pipeline.read_graph(options.profile_dir), options.datasets)
    load_settings()
    return benchmark(options.datasets or None, options.profile_dir, return_state=True)


def _has_agents() -> bool:
    """Return True if there are agents with GPUs on the server."""
    if not slots.has_pool():
        return False
    agents = _agents()
    if not agents:
        get_run_logger().warning("no agent has a GPU to offer; the stages run here")
    return bool(agents)


def _agents() -> list[str]:
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


def _run_here(dataset: str, profile_dir: Path) -> Outcome:
    distil = distill_dataset.with_options(flow_run_name=dataset)
    state: State[Any] = distil(dataset, profile_dir, return_state=True)
    reason = "" if state.is_completed() else str(state.message)
    return Outcome(dataset, state.state_details.flow_run_id, reason)


@dataclass
class _Job:
    """A data set that agents distil, and its current flow run."""

    dataset: str
    run: FlowRun
    attempts: int = 1


def _run_by_agents(datasets: Sequence[str], parameters: dict[str, Any]) -> list[Outcome]:
    """Have agents distil data sets; wait until all have ended.

    A data set whose agent dies is handed to another one. If this is interrupted, its runs are
    cancelled.
    """
    jobs = [_Job(name, _submit(name, parameters, attempt=1)) for name in datasets]
    agents = ", ".join(_agents()) or "agents, of which none is at work"
    get_run_logger().info(f"{len(jobs)} data sets for {agents}")
    with get_client(sync_client=True) as client:
        try:
            pending = jobs
            while pending := [job for job in pending if not _has_ended(client, job)]:
                for job in pending:
                    if job.run.state is not None and job.run.state.is_crashed():
                        job.attempts += 1
                        job.run = _submit(job.dataset, parameters, attempt=job.attempts)
                time.sleep(_POLL_SECONDS)
        except BaseException:
            for job in jobs:
                state = client.read_flow_run(job.run.id).state
                if state is not None and not state.is_final():
                    client.set_flow_run_state(job.run.id, Cancelling())
            raise
    return [Outcome(job.dataset, job.run.id, _reason(job.run)) for job in jobs]


def _submit(dataset: str, parameters: dict[str, Any], *, attempt: int) -> FlowRun:
    """Create a flow run, or return the one that this flow created before it was cut off."""
    return run_deployment(
        _DEPLOYMENT,
        parameters={**parameters, "dataset": dataset},
        timeout=0,
        flow_run_name=dataset if attempt == 1 else f"{dataset}, attempt {attempt}",
        idempotency_key=f"{runtime.flow_run.get_id()}-{dataset}-{attempt}",
        tags=[dataset],
    )  # type: ignore[return-value]  # a coroutine only where there is an event loop


def _has_ended(client: SyncPrefectClient, job: _Job) -> bool:
    """Update a job's run, log a new state; return True if nothing more is to come of it."""
    before = job.run.state_name
    job.run = client.read_flow_run(job.run.id)
    state, log = job.run.state, get_run_logger()
    if state is None:
        return False
    if job.run.state_name != before:
        log.info(f"{job.dataset}: {job.run.state_name}")
    if state.is_crashed() and job.attempts < _MAX_ATTEMPTS:
        log.info(f"{job.dataset}: its agent is gone, another one takes it")
        return False
    return state.is_final()


def _reason(run: FlowRun) -> str:
    state = run.state
    if state is None or state.is_completed():
        return ""
    return state.message or f"its run is {run.state_name}"


def _conclude(
    graph: pipeline.Graph, outcomes: Sequence[Outcome], profile_dir: Path, *, with_report: bool
) -> list[str]:
    """Gather and publish the results, unless a data set failed; return the reasons of failures."""
    rows: list[artifacts.Row] = []
    reasons = [f"{outcome.dataset}: {outcome.reason}" for outcome in outcomes if outcome.reason]
    if not reasons:
        names = [outcome.dataset for outcome in outcomes]
        rows, reasons = _gather(graph, names, profile_dir, with_report=with_report)
    _publish(profile_dir, [*artifacts.stages_of(outcome.run for outcome in outcomes), *rows])
    return reasons


def _gather(
    graph: pipeline.Graph, names: Sequence[str], profile_dir: Path, *, with_report: bool
) -> tuple[list[artifacts.Row], list[str]]:
    """Fetch results that were computed elsewhere, and make the report.

    Returns:
        Rows about the stages, and reasons of a failure.
    """
    planned = [stage for name in names for stage in pipeline.plan(graph, name)]
    ends = [stage for stage in graph if "@" not in stage and stage != CODE]
    report = ends if with_report else []
    groups = {"gather": pipeline.ends(graph, planned), "report": report}
    rows: list[artifacts.Row] = []
    shared = load_settings().dvc_remote is not None
    failed = pipeline.first_failed(groups, profile_dir, rows, shared=shared)
    if failed is not None:
        return [], [str(failed.message)]
    return [
        row for row in rows if "@" not in row["stage"] or row["state"] == pipeline.How.COMPUTED
    ], []


def _publish(profile_dir: Path, table: list[artifacts.Row]) -> None:
    """Publish the table of stages, the link to MLflow and the report as artifacts."""
    profile = load_params(profile_dir / PARAMS).profile.name
    create_table_artifact(
        table=table,
        key=artifacts.key_of("stages", profile),
        description="State of each stage, and the slot that it ran on." + artifacts.legend(table),
    )
    artifacts.publish_mlflow(profile_dir)
    report = profile_dir / "reports" / profile / "summary.md"
    made = [row for row in table if row["stage"] == pipeline.REPORT and row["state"] != "failed"]
    if made and report.is_file():
        create_markdown_artifact(
            key=artifacts.key_of("report", profile),
            markdown=report.read_text("utf-8"),
            description=f"The report of {profile}.",
        )


def _commit() -> str:
    """Return the commit that agents have to be at; refuse a working tree that differs from it."""
    commit = provenance.code_commit(Path())
    if commit is None or provenance.commit_tags(Path()).get("git_dirty") != "false":
        raise BadParams(
            "agents work at a commit, and tracked files here differ from it; `git status` shows "
            "them, commit them and push them to the agents' clones"
        )
    return commit


def _commit_lock(profile_dir: Path) -> None:
    """Commit `dvc.lock` and the report, if they have changed: once, for all agents."""
    git = ["git", "-C", str(profile_dir)]
    results = ("dvc.lock", f"reports/{load_params(profile_dir / PARAMS).profile.name}")
    paths = [path for path in results if (profile_dir / path).exists()]
    subprocess.run([*git, "add", "--", *paths], check=True, capture_output=True)
    if subprocess.run([*git, "diff", "--cached", "--quiet", "--", *paths]).returncode == 0:
        return
    message = "Results of the benchmark"
    done = subprocess.run(
        [*git, *provenance.identity(profile_dir), "commit", "--quiet", "-m", message, "--", *paths],
        capture_output=True,
        text=True,
    )
    log = get_run_logger()
    if done.returncode == 0:
        log.info("dvc.lock is committed; `git push` sends it on")
    else:
        log.warning("dvc.lock could not be committed, commit it by hand: %s", done.stderr.strip())


if __name__ == "__main__":
    sys.exit(main())
