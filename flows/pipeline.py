"""DVC's pipeline as the flows see it: which stages there are, in which order, and bringing one up.

A stage run by a flow is `dvc repro` of that stage, so its bytes are those of a run by hand.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from pd_core.core.errors import MissingFile, PdError, unknown
from pd_core.pipeline.processes import DVC, PROMPTKD, environment
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


class How(StrEnum):
    """How a stage came to be up to date."""

    COMPUTED = "computed"
    CACHED = "from the cache"
    CURRENT = "up to date"


def read_graph(profile_dir: Path) -> Graph:
    """Ask DVC which stages the profile has and which of them each needs.

    Raises:
        MissingFile: the folder has no `dvc.yaml`.
        PdError: DVC refuses the pipeline.
    """
    if not (profile_dir / "dvc.yaml").is_file():
        raise MissingFile(f"no 'dvc.yaml' in '{profile_dir}'; give a profile's folder")
    return _parse(ask_dvc(profile_dir, "dag", "--dot", "dvc.yaml"))


def ask_dvc(profile_dir: Path, *arguments: str) -> str:
    """Return what a command of DVC's prints.

    Raises:
        PdError: DVC refuses the pipeline.
    """
    done = subprocess.run(
        [*DVC, *arguments],
        cwd=profile_dir,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
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
    """Return the stages of a data set, each after those that it needs."""
    ordered: dict[str, None] = {}  # a set that keeps its order
    for stage in sorted(graph, key=lambda stage: not stage.startswith(_GROUP)):
        if stage.endswith(f"@{dataset}"):
            _visit(stage, graph, ordered)
    return list(ordered)


def ends(graph: Graph, stages: Sequence[str]) -> list[str]:
    """Return those of some stages that none of the others needs: whoever has them has all."""
    needed = frozenset[str]().union(*(graph[stage] for stage in stages))
    return [stage for stage in stages if stage not in needed]


def command(stages: Sequence[str], *, shared: bool) -> list[str]:
    """Return the command that brings stages up to date.

    Args:
        stages: their names.
        shared: whether other machines compute as well: then what a stage needs is looked for in
            the DVC remote (with `--single-item` DVC would not look for it); else it is there.
    """
    return [*PROMPTKD, "repro", "--pull" if shared else "--single-item", *stages]


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
