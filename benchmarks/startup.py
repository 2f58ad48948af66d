"""Overhead of a stage: its imports, and the MLflow run.

Every turn is a process of its own. The processor's seconds are those of the child.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.outcome import Outcome, Row
from benchmarks.timing import Clock, Note, Turns

BARE, STAGE, RECORD = "bare imports", "imports of the stage", "record"

# An empty run in a database that is there, in a process that has torch already.
_RECORD = """
import json, sys, time
from pathlib import Path
import torch
from pd_core.pipeline.settings import telemetry_off
from pd_core.mlops.tracking import open_store
from pd_core.mlops.tracking.recorder import StageInfo, stage_run

telemetry_off()
project = Path(sys.argv[1])
start = time.perf_counter()
cpu = time.process_time()
info = StageInfo(
    profile="bench", dataset="", stage="bench", params={}, deps=[], outs=[],
    seed=1, protocol="", project=project,
)
with stage_run(open_store(project), info) as run:
    pass
assert run.run_id is not None
print(json.dumps({"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}))
"""


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmark.

    Attributes:
        bare: the code of the least that a stage cannot do without.
        stage: the code of what the stage `student` imports.
        record: whether a run is recorded.
    """

    bare: str = "import torch, open_clip"
    stage: str = (
        "import pd_core.cli.verbs, pd_core.training.student.stage, "
        "pd_core.pipeline.settings, pd_core.mlops.tracking"
    )
    record: bool = True
    rounds: int = 5


REAL = Size()
TINY = Size("import json", "import json, string", record=False, rounds=1)


def measure(size: Size, note: Note) -> Outcome:
    """Measure imports, and the record of a run."""
    turns = Turns({BARE: [], STAGE: [], RECORD: []})
    with tempfile.TemporaryDirectory() as folder:
        if size.record:
            _recorded(Path(folder))  # makes the database
        for number in range(size.rounds + 1):
            seconds_by_side = {side: _process(code) for side, code in _codes(size).items()}
            if size.record:
                seconds_by_side[RECORD] = _recorded(Path(folder))
            for side, seconds in seconds_by_side.items():
                note(f"round {number} of {size.rounds}: {side}: {seconds['wall']:.3g} s")
                if number:  # the first one fills the disk's cache
                    turns.seconds[side].append(seconds)
    rows = [turns.row("imports of a stage", STAGE, BARE, clock="wall", most=1.2)]
    if size.record:
        every = turns.all(RECORD, "wall")
        rows.append(
            Row(
                what="record of a run by MLflow", value=turns.median(RECORD, "wall"), unit="s",
                low=min(every), high=max(every), clock="wall", most=2.5,
                note=f"{turns.median(RECORD):.3g} s of processor",
            )
        )  # fmt: skip
    return Outcome(tuple(rows))


def _codes(size: Size) -> dict[str, str]:
    return {BARE: size.bare, STAGE: size.stage}


def _process(code: str) -> dict[Clock, float]:
    start, cpu = time.perf_counter(), _children()
    subprocess.run([sys.executable, "-c", code], check=True)
    return {"wall": time.perf_counter() - start, "cpu": _children() - cpu}


def _recorded(project: Path) -> dict[Clock, float]:
    done = subprocess.run(
        [sys.executable, "-c", _RECORD, str(project)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(project.parent)},
    )
    seconds: dict[Clock, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
