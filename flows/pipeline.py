"""DVC's pipeline as the flows see it: which stages there are, in which order, and bringing one up.

A stage run by a flow is `dvc repro` of that stage, so its bytes are those of a run by hand.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from prefect import State, Task, get_run_logger, task
from prefect.client.schemas.objects import TaskRun
from prefect.states import Completed, Failed

from flows import commands, slots
from flows.tables import Row, metrics_of, row_of
from pd_core.core.errors import MissingFile, PdError, unknown
from pd_core.pipeline.code_hash import CODE
from pd_core.pipeline.processes import DVC, PROMPTKD, Ended, environment, run
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.signals import EXIT_STATUS

Graph = Mapping[str, frozenset[str]]  # stage -> the stages that it needs

REPORT = "report"
_GROUP = "evaluate@"  # the last stage of a data set; the name is what follows
_NODE = re.compile(r'^\s*"([^":]+)";$')
_EDGE = re.compile(r'^\s*"([^":]+)" -> "([^":]+)";$')
_CUT_OFF = re.compile(
    rf"exited with (-\d+|{EXIT_STATUS}|137|143)\b"
)  # 128 + the signal: by a shell


_PASSING = "Passing"
"""Name of the state of a task whose failure may pass by itself: storage, network, a kill."""

PAUSES = (5.0, 15.0, 60.0, 180.0, 600.0)
"""Seconds before it is tried again."""


class How(StrEnum):
    """How a stage came to be up to date."""

    COMPUTED = "computed"
    CACHED = "from the cache"
    CURRENT = "up to date"


def read_graph(profile_dir: Path) -> Graph:
    """Ask DVC which stages the profile has and which of them each needs.

    Raises:
        MissingFile: the folder has no `dvc.yaml`.
    """
    if not (profile_dir / "dvc.yaml").is_file():
        raise MissingFile(f"no 'dvc.yaml' in '{profile_dir}'; give a profile's folder")
    return _parse(ask_dvc(profile_dir, "dag", "--dot", "dvc.yaml"))


def ask_dvc(profile_dir: Path, *arguments: str) -> str:
    """Return what a command of DVC's prints.

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
    """Return the chosen data sets, or all that there are.

    Raises:
        UnknownName: there is no such data set.
    """
    known = [stage.removeprefix(_GROUP) for stage in graph if stage.startswith(_GROUP)]
    chosen = list(dict.fromkeys(datasets))
    for name in chosen:
        if name not in known:
            raise unknown("data set", name, known)
    return chosen or sorted(known)


def plan(graph: Graph, dataset: str) -> list[str]:
    """Return the stages of a data set, each after those that it needs.

    Without `code`, which all data sets share: `promptkd repro` sees to it.
    """
    ordered: dict[str, None] = {}  # a set that keeps its order
    for stage in sorted(graph, key=lambda stage: not stage.startswith(_GROUP)):
        if stage.endswith(f"@{dataset}"):
            _visit(stage, graph, ordered)
    return [stage for stage in ordered if stage != CODE]


def ends(graph: Graph, stages: Sequence[str]) -> list[str]:
    """Return those of some stages that none of the others needs: whoever has them has all."""
    needed = frozenset[str]().union(*(graph[stage] for stage in stages))
    return [stage for stage in stages if stage not in needed]


def how(stages: Iterable[str], output: Iterable[str]) -> dict[str, How]:
    """Read from DVC's output how each stage came to be up to date."""
    said = set(output)
    found = dict.fromkeys(stages, How.CURRENT)
    for stage in found:
        if f"Running stage '{stage}':" in said:
            found[stage] = How.COMPUTED
        elif any(line.startswith(f"Stage '{stage}' is cached") for line in said):
            found[stage] = How.CACHED
    return found


def was_cut_off(output: Iterable[str]) -> bool:
    """Whether DVC says that the stage was killed, or told to end."""
    return any(_CUT_OFF.search(line) for line in output)


def _parse(dot: str) -> Graph:
    needs: dict[str, set[str]] = {}
    for line in dot.splitlines():
        if node := _NODE.match(line):
            needs.setdefault(node[1], set())
        elif edge := _EDGE.match(line):
            needs.setdefault(edge[2], set()).add(edge[1])
    return {stage: frozenset(needed) for stage, needed in needs.items()}


def _visit(stage: str, graph: Graph, ordered: dict[str, None]) -> None:
    for needed in sorted(graph[stage]):
        if needed not in ordered:
            _visit(needed, graph, ordered)
    ordered[stage] = None


def _may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    return state.name == _PASSING


@task(
    name="stage",
    retries=len(PAUSES),
    retry_delay_seconds=list(PAUSES),
    retry_condition_fn=_may_pass,
)
def reproduce(
    stages: Sequence[str],
    profile_dir: Path,
    *,
    shared: bool,
    on_row: Callable[[Row], None],
    send: bool = False,
) -> State[Any]:
    """Bring stages up to date, by one command; its output appears in the log as it comes.

    Args:
        stages: their names.
        profile_dir: folder of the profile's `dvc.yaml`.
        shared: whether there is a DVC remote: results are looked for there.
        on_row: told what became of each stage.
        send: whether to send them there.

    Returns:
        Completed or failed. (An exception would fill the log with Prefect's own frames.)
    """
    start = time.monotonic()
    # With `--single-item` DVC would not look for what a stage needs in the remote.
    options = "--pull" if shared else "--single-item"
    ended = _run([*PROMPTKD, "repro", options, *stages], profile_dir)
    if send and ended.status == 0:
        pushed = _run([*PROMPTKD, "push", *stages], profile_dir)
        if pushed.status != 0:
            why = _what_may_pass(pushed) or pushed.reason
            return Failed(name=_PASSING, message=f"results are not sent: {why}")
    seconds = time.monotonic() - start
    said = f"'{stages[0]}'" if len(stages) == 1 else f"{len(stages)} stages"
    if ended.status == 0:
        for stage, state in how(stages, ended.output).items():
            metrics = metrics_of(profile_dir, stage)
            on_row(row_of(stage, state, seconds / len(stages), metrics, slots.name()))
        return Completed(message=f"{said} brought up to date")
    if passing := _what_may_pass(ended):
        return Failed(name=_PASSING, message=f"{said}: {passing}")
    for stage in stages:
        on_row(row_of(stage, "failed", seconds / len(stages), {}, slots.name()))
    return Failed(
        message=f"{said} failed with status {ended.status}: {ended.reason}; "
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
    """Bring named groups of stages up to date, in order, add to the rows; return what failed."""
    for title, group in groups.items():
        if not group:  # as in a profile without a report
            continue
        state: State[Any] = reproduce.with_options(task_run_name=title)(
            group, profile_dir, shared=shared, send=send, on_row=rows.append, return_state=True
        )
        if not state.is_completed():
            return state
    return None


def _what_may_pass(ended: Ended) -> str:
    """Return why a command that failed may succeed the next time, or nothing."""
    if ended.status == EXIT_STATUS or ended.status < 0 or was_cut_off(ended.output):
        return "it was told to end"
    silent = commands.silent()
    return f"no answer from {' and '.join(silent)} ({ended.reason})" if silent else ""
