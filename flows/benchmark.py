"""The whole benchmark as a Prefect flow: `python -m flows.benchmark [DATA SET ...]`.

With agents (`flows.agent`) the data sets run on their GPUs, as many at a time as there are agents,
and their results are brought here; without, one after the other in this process. No server is
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

from flows import dispatch, pipeline, slots, tables
from flows.commands import check_server, command
from flows.datasets import DataSet
from flows.dispatch import Outcome
from flows.distill import distill_dataset, publish_page
from pd_core.core.errors import BadParams, PdError
from pd_core.pipeline import provenance
from pd_core.pipeline.settings import load_settings
from pd_core.pipeline.stages.params import PARAMS, load_params

_FALLBACK = ("-c", "user.name=promptkd", "-c", "user.email=promptkd@localhost")


@flow(name="benchmark")
def benchmark(
    datasets: list[DataSet] | None = None, profile_dir: Path = Path(), report: bool | None = None
) -> State[Any]:
    """Run all stages of some data sets, then the report over all of them.

    Args:
        datasets: which; all by default.
        profile_dir: folder of the profile's `dvc.yaml`, as seen from the repository.
        report: whether to make the report; by default if no data sets are chosen.

    Returns:
        Completed; or failed if a data set failed, then the others have run all the same, and there
        is no report.
    """
    report = not datasets if report is None else report
    try:
        graph = pipeline.read_graph(profile_dir)
        names = pipeline.choose(graph, datasets or ())
        shared = load_settings().dvc_remote is not None
        by_agents = bool(PREFECT_API_URL.value()) and (slots.by_agent() or _is_served())
        commit = _commit() if by_agents and shared else None
        with slots.noted():
            if by_agents:
                parameters = {"profile_dir": str(profile_dir), "commit": commit}
                done = dispatch.distill(names, parameters, get_run_logger().info)
            else:
                done = _here(names, profile_dir)
            reasons = _conclude(graph, done, profile_dir, with_report=report)
            if not reasons and commit is not None:
                _commit_lock(profile_dir)
    except PdError as error:
        return Failed(message=str(error))
    if reasons:
        return Failed(message="; ".join(reasons))
    return Completed(message=f"{len(names)} data sets are up to date")


@command
def main(arguments: Sequence[str] | None) -> State[Any]:
    """Run the flow from the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.benchmark", description=__doc__)
    parser.add_argument("datasets", nargs="*", metavar="DATA_SET", help="all by default")
    parser.add_argument("--profile-dir", type=Path, default=Path(), help="folder of dvc.yaml")
    given = parser.parse_args(arguments)
    check_server(PREFECT_API_URL.value())
    # Bad input, before Prefect starts.
    pipeline.choose(pipeline.read_graph(given.profile_dir), given.datasets)
    load_settings()
    return benchmark(given.datasets or None, given.profile_dir, return_state=True)


def _is_served() -> bool:
    """Whether agents can be asked; if so, they are."""
    if not dispatch.has_pool():
        return False
    found = dispatch.agents()
    if not found:
        get_run_logger().warning("no agent has a GPU to offer; the stages run here")
    return bool(found)


def _here(names: Sequence[str], profile_dir: Path) -> list[Outcome]:
    """Run the data sets in this process."""
    done = []
    for name in names:
        distil = distill_dataset.with_options(flow_run_name=name)
        state: State[Any] = distil(name, profile_dir, return_state=True)
        reason = "" if state.is_completed() else str(state.message)
        done.append(Outcome(name, state.state_details.flow_run_id, reason))
    return done


def _conclude(
    graph: pipeline.Graph, done: Sequence[Outcome], profile_dir: Path, *, with_report: bool
) -> list[str]:
    """Gather what was computed, unless something failed, and publish it; return what failed."""
    rows: list[tables.Row] = []
    reasons = [f"{one.dataset}: {one.reason}" for one in done if one.reason]
    if not reasons:
        names = [one.dataset for one in done]
        rows, reasons = _gather(graph, names, profile_dir, with_report=with_report)
    _publish(profile_dir, [*tables.stages_of(one.run for one in done), *rows])
    return reasons


def _gather(
    graph: pipeline.Graph, names: Sequence[str], profile_dir: Path, *, with_report: bool
) -> tuple[list[tables.Row], list[str]]:
    """Bring here what was computed elsewhere, and make the report.

    Returns:
        What became of the stages, and why that failed.
    """
    planned = [stage for name in names for stage in pipeline.plan(graph, name)]
    report = [stage for stage in graph if "@" not in stage] if with_report else []
    groups = {"gather": pipeline.ends(graph, planned), "report": report}
    rows: list[tables.Row] = []
    shared = load_settings().dvc_remote is not None
    failed = pipeline.first_failed(groups, profile_dir, rows, shared=shared)
    if failed is not None:
        return [], [str(failed.message)]
    return [
        row for row in rows if "@" not in row["stage"] or row["state"] == pipeline.How.COMPUTED
    ], []


def _publish(profile_dir: Path, table: list[tables.Row]) -> None:
    """Keep what there is to look at as artifacts."""
    profile = load_params(profile_dir / PARAMS).profile.name
    create_table_artifact(
        table=table,
        key=tables.key_of("stages", profile),
        description="What became of each stage, and where.",
    )
    publish_page(profile_dir)
    report = profile_dir / "reports" / profile / "summary.md"
    made = [row for row in table if row["stage"] == pipeline.REPORT and row["state"] != "failed"]
    if made and report.is_file():
        create_markdown_artifact(
            key=tables.key_of("report", profile),
            markdown=report.read_text("utf-8"),
            description=f"The report of {profile}.",
        )


def _commit() -> str:
    """Return the commit that agents are to work at; refuse files that differ from it."""
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
    changed = subprocess.run([*git, "diff", "--cached", "--quiet", "--", *paths])
    if changed.returncode == 0:
        return
    named = subprocess.run([*git, "config", "user.email"], capture_output=True)
    who = () if named.returncode == 0 else _FALLBACK
    message = "Results of the benchmark"
    done = subprocess.run(
        [*git, *who, "commit", "--quiet", "-m", message, "--", *paths],
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
