"""DVC's pipeline in the flows: its graph, and the task that reproduces stages.

The task runs `dvc repro`, so its results are those of a run by hand, byte for byte.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from prefect import State, get_run_logger, task
from prefect.states import Completed, Failed

from flows import slots
from flows.artifacts import Row, metrics_of, row_of
from flows.commands import unreachable
from pd_core.core.errors import MissingFile, PdError, unknown
from pd_core.pipeline.code_hash import CODE
from pd_core.pipeline.processes import DVC, EXIT_STATUS, PROMPTKD, Ended, environment, run
from pd_core.pipeline.redaction import masked

Graph = Mapping[str, frozenset[str]]  # stage -> the stages that it needs

REPORT = "report"
_GROUP = "evaluate@"  # the last stage of a data set; the name is what follows
_NODE = re.compile(r'^\s*"([^":]+)";$')
_EDGE = re.compile(r'^\s*"([^":]+)" -> "([^":]+)";$')
# A shell reports 128 + the signal's number.
_CUT_OFF = re.compile(rf"exited with (-\d+|{EXIT_STATUS}|137|143)\b")

_TRANSIENT = "Passing"
"""Name of a task's state after a failure that may be gone later: storage, network, a kill."""

_RETRY_SECONDS = [5.0, 15.0, 60.0, 180.0, 600.0]


class How(StrEnum):
    """Ways in which a stage can have come up to date."""

    COMPUTED = "computed"
    CACHED = "from the cache"
    CURRENT = "up to date"


def read_graph(profile_dir: Path) -> Graph:
    """Read the graph of a profile's stages from `dvc dag`.

    Raises:
        MissingFile: the folder has no `dvc.yaml`.
    """
    if not (profile_dir / "dvc.yaml").is_file():
        raise MissingFile(f"no 'dvc.yaml' in '{profile_dir}'; give a profile's folder")
    needs: dict[str, set[str]] = {}
    for line in ask_dvc(profile_dir, "dag", "--dot", "dvc.yaml").splitlines():
        if node := _NODE.match(line):
            needs.setdefault(node[1], set())
        elif edge := _EDGE.match(line):
            needs.setdefault(edge[2], set()).add(edge[1])
    return {stage: frozenset(needed) for stage, needed in needs.items()}


def ask_dvc(profile_dir: Path, *arguments: str) -> str:
    """Return the output of a DVC command.

    Raises:
        PdError: DVC refuses the pipeline.
    """
    command = [*DVC, *arguments]
    done = subprocess.run(
        command, cwd=profile_dir, env=environment(), capture_output=True, text=True
    )
    if done.returncode != 0:
        reason = masked(done.stderr or done.stdout)
        raise PdError(f"DVC refuses '{profile_dir / 'dvc.yaml'}': {reason}")
    return done.stdout


def choose(graph: Graph, datasets: Iterable[str] = ()) -> list[str]:
    """Return the given data sets, each once, or all of the graph.

    Raises:
        UnknownName: the graph has no such data set.
    """
    names = [stage.removeprefix(_GROUP) for stage in graph if stage.startswith(_GROUP)]
    chosen = list(dict.fromkeys(datasets))
    for name in chosen:
        if name not in names:
            raise unknown("data set", name, names)
    return chosen or sorted(names)


def plan(graph: Graph, dataset: str) -> list[str]:
    """Return the stages of a data set in topological order.

    Without `code`, which all data sets share and `promptkd repro` runs itself.
    """
    ordered: dict[str, None] = {}  # an ordered set
    for stage in sorted(graph, key=lambda stage: not stage.startswith(_GROUP)):
        if stage.endswith(f"@{dataset}"):
            _visit(stage, graph, ordered)
    return [stage for stage in ordered if stage != CODE]


def ends(graph: Graph, stages: Sequence[str]) -> list[str]:
    """Return those of some stages that none of the others depends on."""
    needed = frozenset[str]().union(*(graph[stage] for stage in stages))
    return [stage for stage in stages if stage not in needed]


def how(stages: Iterable[str], output: Iterable[str]) -> dict[str, How]:
    """Read from DVC's output how each stage came up to date."""
    lines = set(output)
    states = dict.fromkeys(stages, How.CURRENT)
    for stage in states:
        if f"Running stage '{stage}':" in lines:
            states[stage] = How.COMPUTED
        elif any(line.startswith(f"Stage '{stage}' is cached") for line in lines):
            states[stage] = How.CACHED
    return states


def was_cut_off(output: Iterable[str]) -> bool:
    """Return True if by DVC's output the stage was killed, or ended by a signal."""
    return any(_CUT_OFF.search(line) for line in output)


def _visit(stage: str, graph: Graph, ordered: dict[str, None]) -> None:
    for needed in sorted(graph[stage]):
        if needed not in ordered:
            _visit(needed, graph, ordered)
    ordered[stage] = None


@task(
    name="stage",
    retries=len(_RETRY_SECONDS),
    retry_delay_seconds=_RETRY_SECONDS,
    retry_condition_fn=lambda _task, _run, state: state.name == _TRANSIENT,
)
def reproduce(
    stages: Sequence[str],
    profile_dir: Path,
    *,
    shared: bool,
    on_row: Callable[[Row], None],
    send: bool = False,
) -> State[Any]:
    """Reproduce stages by one DVC command, and log its output.

    Args:
        stages: their names.
        profile_dir: folder of the profile's `dvc.yaml`.
        shared: pull results from the DVC remote.
        on_row: called with the artifact's row of each stage.
        send: push results to the DVC remote.

    Returns:
        Completed or failed: an exception would fill the log with Prefect's own frames.
    """
    start = time.monotonic()
    own = slots.own()
    slot = own.name if own else ""
    # With `--single-item` DVC would not look for what a stage needs in the remote.
    options = "--pull" if shared else "--single-item"
    ended = _run([*PROMPTKD, "repro", options, *stages], profile_dir)
    if send and ended.status == 0:
        pushed = _run([*PROMPTKD, "push", *stages], profile_dir)
        if pushed.status != 0:
            reason = _transient_reason(pushed) or pushed.reason
            return Failed(name=_TRANSIENT, message=f"results are not sent: {reason}")
    seconds = time.monotonic() - start
    title = f"'{stages[0]}'" if len(stages) == 1 else f"{len(stages)} stages"
    if ended.status == 0:
        for stage, state in how(stages, ended.output).items():
            metrics = metrics_of(profile_dir, stage)
            on_row(row_of(stage, state, seconds / len(stages), metrics, slot))
        return Completed(message=f"{title} brought up to date")
    if reason := _transient_reason(ended):
        return Failed(name=_TRANSIENT, message=f"{title}: {reason}")
    for stage in stages:
        on_row(row_of(stage, "failed", seconds / len(stages), {}, slot))
    return Failed(
        message=f"{title} failed with status {ended.status}: {ended.reason}; "
        f"`dvc repro {' '.join(stages)}` runs it again"
    )


def _run(command: Sequence[str], profile_dir: Path) -> Ended:
    log, slot = get_run_logger(), slots.own()
    extra = {"CUDA_VISIBLE_DEVICES": slot.visible} if slot else {}
    return run(command, profile_dir, lambda line: log.info("%s", line), extra=extra)


def first_failed(
    groups: Mapping[str, Sequence[str]],
    profile_dir: Path,
    rows: list[Row],
    *,
    shared: bool,
    send: bool = False,
) -> State[Any] | None:
    """Reproduce named groups of stages in order, add to the rows; return the first failed state."""
    for title, group in groups.items():
        if not group:  # as in a profile without a report
            continue
        state: State[Any] = reproduce.with_options(task_run_name=title)(
            group, profile_dir, shared=shared, send=send, on_row=rows.append, return_state=True
        )
        if not state.is_completed():
            return state
    return None


def _transient_reason(ended: Ended) -> str:
    """Return why a command that failed may succeed the next time, or an empty string."""
    if ended.status == EXIT_STATUS or ended.status < 0 or was_cut_off(ended.output):
        return "it was interrupted"
    servers = unreachable()
    return f"no answer from {' and '.join(servers)} ({ended.reason})" if servers else ""
