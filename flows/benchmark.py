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
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed

from flows import dispatch, pipeline, slots, stages, tables
from flows.addresses import check_server, refuse
from flows.datasets import DataSet
from flows.dispatch import Outcome
from flows.distill import distill_dataset, publish_page
from flows.recovery import noted
from pd_core.core.errors import BadParams, PdError
from pd_core.pipeline import provenance
from pd_core.pipeline.redaction import masked_tracebacks
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
        with noted() if slots.by_agent() else nullcontext():
            done = (_by_agents if by_agents else _here)(names, profile_dir, commit)
            reasons = _conclude(graph, done, profile_dir, with_report=report)
            if not reasons and commit is not None:
                _commit_lock(profile_dir)
    except PdError as error:
        return Failed(message=str(error))
    if reasons:
        return Failed(message="; ".join(reasons))
    return Completed(message=f"{len(names)} data sets are up to date")


@masked_tracebacks()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow from the command line.

    Returns:
        The exit status: 0, or 2 after one line on stderr.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.benchmark", description=__doc__)
    parser.add_argument("datasets", nargs="*", metavar="DATA_SET", help="all by default")
    parser.add_argument("--profile-dir", type=Path, default=Path(), help="folder of dvc.yaml")
    given = parser.parse_args(arguments)
    try:
        check_server(PREFECT_API_URL.value())
        # Bad input, before Prefect starts.
        pipeline.choose(pipeline.read_graph(given.profile_dir), given.datasets)
        load_settings()
        state = benchmark(given.datasets or None, given.profile_dir, return_state=True)
    except PdError as error:
        return refuse(str(error))
    return 0 if state.is_completed() else refuse(str(state.message))


def _is_served() -> bool:
    """Whether agents can be asked; if so, they are."""
    if not dispatch.has_pool():
        return False
    found = dispatch.agents()
    if not found:
        get_run_logger().warning("no agent has a GPU to offer; the stages run here")
    return bool(found)


def _here(names: Sequence[str], profile_dir: Path, _commit: str | None) -> list[Outcome]:
    """Run the data sets in this process."""
    states: dict[str, State[Any]] = {
        name: distill_dataset.with_options(flow_run_name=name)(name, profile_dir, return_state=True)
        for name in names
    }
    return [
        Outcome(
            name,
            state.state_details.flow_run_id,
            "" if state.is_completed() else str(state.message),
        )
        for name, state in states.items()
    ]


def _by_agents(names: Sequence[str], profile_dir: Path, commit: str | None) -> list[Outcome]:
    """Have agents run the data sets."""
    parameters = {"profile_dir": str(profile_dir), "commit": commit}
    return dispatch.distill(names, parameters, get_run_logger().info)


def _conclude(
    graph: pipeline.Graph, done: Sequence[Outcome], profile_dir: Path, *, with_report: bool
) -> list[str]:
    """Gather what was computed, unless something failed, and publish it; return what failed."""
    rows: list[tables.Row] = []
    reasons = [f"{one.dataset}: {one.reason}" for one in done if one.reason]
    if not reasons:
        names = [one.dataset for one in done]
        reasons = _gather(graph, names, profile_dir, rows, with_report=with_report)
    _publish(profile_dir, [*tables.stages_of(one.run for one in done), *tables.as_table(rows)])
    return reasons


def _gather(
    graph: pipeline.Graph,
    names: Sequence[str],
    profile_dir: Path,
    rows: list[tables.Row],
    *,
    with_report: bool,
) -> list[str]:
    """Bring here what was computed elsewhere, and make the report; return why that failed."""
    shared = load_settings().dvc_remote is not None
    found: list[tables.Row] = []
    planned = [stage for name in names for stage in pipeline.plan(graph, name)]
    wanted = {"gather": pipeline.ends(graph, planned)}
    if with_report:
        wanted["report"] = [stage for stage in graph if "@" not in stage]
    for title, group in wanted.items():
        if not group:  # a profile without a report
            continue
        state: State[Any] = stages.reproduce.with_options(task_run_name=title)(
            group, profile_dir, shared=shared, on_row=found.append, return_state=True
        )
        if not state.is_completed():
            return [str(state.message)]
    rows += [row for row in found if "@" not in row.stage or row.state == pipeline.How.COMPUTED]
    return []


def _publish(profile_dir: Path, table: list[dict[str, Any]]) -> None:
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
    """Return the commit that agents are to work at.

    Raises:
        BadParams: there is none, or files differ from it.
    """
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
    changed = subprocess.run([*git, "diff", "--cached", "--quiet", "--", *paths], check=False)
    if changed.returncode == 0:
        return
    named = subprocess.run([*git, "config", "user.email"], capture_output=True, check=False)
    who = () if named.returncode == 0 else _FALLBACK
    message = "Results of the benchmark"
    done = subprocess.run(
        [*git, *who, "commit", "--quiet", "-m", message, "--", *paths],
        capture_output=True,
        text=True,
        check=False,
    )
    log = get_run_logger()
    if done.returncode == 0:
        log.info("dvc.lock is committed; `git push` sends it on")
    else:
        log.warning("dvc.lock could not be committed, commit it by hand: %s", done.stderr.strip())


if __name__ == "__main__":
    sys.exit(main())
