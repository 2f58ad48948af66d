"""The whole benchmark as a Prefect flow: `python -m flows.benchmark [DATA SET ...]`.

Every stage is a task that calls `promptkd repro -s` for it, so the flow gives the bytes that
`dvc repro` gives, and a stage that is up to date is skipped. No server is needed; if one is set
(`PD_PREFECT_API_URL`), the run is recorded there.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger, task
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed

from flows.addresses import check_server, refuse
from pd_core.errors import MissingFile, PdError, unknown
from pd_core.masking import masked, masked_tracebacks

Graph = Mapping[str, frozenset[str]]  # stage -> the stages that it needs

_GROUP = "evaluate@"  # the last stage of a data set; the name is what follows
_LAST = "report"
_NODE = re.compile(r'^\s*"([^":]+)";$')
_EDGE = re.compile(r'^\s*"([^":]+)" -> "([^":]+)";$')


@flow(name="benchmark")
def benchmark(datasets: list[str] | None = None, profile_dir: Path = Path()) -> State[Any]:
    """Run all stages of some data sets, then the report over all of them.

    Args:
        datasets: which; all by default. With a choice there is no report, which is over all.
        profile_dir: folder of the profile's `dvc.yaml`.

    Returns:
        Completed; or failed at the first stage that failed, those after it did not run.

    Raises:
        UnknownName: there is no such data set.
        MissingFile: the folder has no `dvc.yaml`.
        PdError: DVC refuses the pipeline.
    """
    stages = plan(read_graph(profile_dir), datasets or ())
    for stage in stages:
        named = reproduce.with_options(task_run_name=stage)
        state: State[Any] = named(stage, profile_dir, return_state=True)
        if not state.is_completed():
            return Failed(message=state.message)
    return Completed(message=f"{len(stages)} stages are up to date")


@task(name="stage")
def reproduce(stage: str, profile_dir: Path) -> State[Any]:
    """Bring one stage up to date; its output appears in the log as it comes.

    Returns:
        Completed or failed. (An exception would fill the log with Prefect's own frames.)
    """
    log = get_run_logger()
    command = [*_PROMPTKD, "repro", "--single-item", stage]
    with subprocess.Popen(
        command,
        cwd=profile_dir,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            if line.strip():
                log.info("%s", masked(line.rstrip()))
    if process.returncode == 0:
        return Completed(message=f"'{stage}' is up to date")
    return Failed(
        message=f"stage '{stage}' failed with status {process.returncode}; the log says why, "
        f"`dvc repro {stage}` runs it again"
    )


def read_graph(profile_dir: Path) -> Graph:
    """Ask DVC which stages the profile has and which of them each needs.

    Raises:
        MissingFile: the folder has no `dvc.yaml`.
        PdError: DVC refuses the pipeline.
    """
    if not (profile_dir / "dvc.yaml").is_file():
        raise MissingFile(f"no 'dvc.yaml' in '{profile_dir}'; give a profile's folder")
    done = subprocess.run(
        [*_DVC, "dag", "--dot", "dvc.yaml"],
        cwd=profile_dir,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = masked(done.stderr or done.stdout)
        raise PdError(f"DVC refuses '{profile_dir / 'dvc.yaml'}': {reason}")
    return _parse(done.stdout)


def plan(graph: Graph, datasets: Iterable[str] = ()) -> list[str]:
    """Order the stages: one data set after the other, each stage after those it needs.

    Args:
        graph: what `read_graph` returned.
        datasets: which; all by default, and then the report too.

    Returns:
        The stages' names.

    Raises:
        UnknownName: there is no such data set.
    """
    known = [stage.removeprefix(_GROUP) for stage in graph if stage.startswith(_GROUP)]
    chosen = list(datasets)
    for name in chosen:
        if name not in known:
            raise unknown("data set", name, known)
    targets = [f"{_GROUP}{name}" for name in chosen] or [*_after_the_groups(graph)]
    ordered: dict[str, None] = {}  # a set that keeps its order
    for target in targets:
        _visit(target, graph, ordered)
    return list(ordered)


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
        plan(read_graph(given.profile_dir), given.datasets)  # bad input, before Prefect starts
        state = benchmark(given.datasets, given.profile_dir, return_state=True)
    except PdError as error:
        return refuse(str(error))
    return 0 if state.is_completed() else refuse(str(state.message))


# The very DVC of this environment, whether or not the environment is activated.
_DVC = (sys.executable, "-m", "dvc")
_PROMPTKD = (sys.executable, "-m", "pd_core.cli")


def _environment() -> dict[str, str]:
    programs = str(Path(sys.executable).parent)  # stages call `promptkd`
    return {**os.environ, "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")])}


def _parse(dot: str) -> Graph:
    needs: dict[str, set[str]] = {}
    for line in dot.splitlines():
        if node := _NODE.match(line):
            needs.setdefault(node[1], set())
        elif edge := _EDGE.match(line):
            needs.setdefault(edge[2], set()).add(edge[1])
    return {stage: frozenset(needed) for stage, needed in needs.items()}


def _after_the_groups(graph: Graph) -> list[str]:
    """Return all stages, those of a data set together and the report last."""
    return sorted(graph, key=lambda stage: (stage == _LAST, not stage.startswith(_GROUP)))


def _visit(stage: str, graph: Graph, ordered: dict[str, None]) -> None:
    for needed in sorted(graph[stage]):
        if needed not in ordered:
            _visit(needed, graph, ordered)
    ordered[stage] = None


if __name__ == "__main__":
    sys.exit(main())
