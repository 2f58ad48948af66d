"""The whole benchmark as a Prefect flow: `python -m flows.benchmark [DATA SET ...]`.

With agents (`flows.agent`) the data sets run on their GPUs, as many at a time as there are agents,
and the results are brought here; without, one after the other in this process. No server is
needed; if one is set (`PD_PREFECT_API_URL`), the run is recorded there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed

from flows import artifacts, pipeline, slots
from flows.assignment import Outcome, available, run_by_agents
from flows.commands import PAPER, ROOT, PaperDataSet, RootDataSet, check_server, command
from flows.distill import distill_dataset
from pd_core.core.errors import BadParams, PdError
from pd_core.pipeline import provenance
from pd_core.pipeline.code_hash import CODE
from pd_core.pipeline.settings import load_settings
from pd_core.pipeline.stages.params import PARAMS, load_params

_DEPLOYMENT = "distill-dataset/gpu"


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
        by_agents = available()
        commit = _commit() if by_agents and shared else None
        with slots.recorded():
            if by_agents:
                parameters = {"profile_dir": str(profile_dir), "commit": commit}
                jobs = {name: {**parameters, "dataset": name} for name in names}
                outcomes = run_by_agents(_DEPLOYMENT, jobs)
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


def _run_here(dataset: str, profile_dir: Path) -> Outcome:
    distil = distill_dataset.with_options(flow_run_name=dataset)
    state: State[Any] = distil(dataset, profile_dir, return_state=True)
    reason = "" if state.is_completed() else str(state.message)
    return Outcome(dataset, state.state_details.flow_run_id, reason)


def _conclude(
    graph: pipeline.Graph, outcomes: Sequence[Outcome], profile_dir: Path, *, with_report: bool
) -> list[str]:
    """Gather and publish the results, unless a data set failed; return the reasons of failures."""
    rows: list[artifacts.Row] = []
    reasons = [f"{outcome.name}: {outcome.reason}" for outcome in outcomes if outcome.reason]
    if not reasons:
        names = [outcome.name for outcome in outcomes]
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
