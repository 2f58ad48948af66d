"""Run the benchmarks, each part in a process of its own, and write one table: `make bench`.

The results of a part replace its earlier ones as soon as it is done; rows of other parts stay. The
exit status is 0 even if a target is missed.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import ROOT, outcome
from benchmarks.outcome import PICTURE, Outcome
from benchmarks.timing import to_stderr

THREADS = 2

PARTS = (
    "distillation",
    "promptsrc",
    "frozen_text",
    "text_gradients",
    "evaluation",
    "embedded",
    "scaling",
    "startup",
    "verify",
    "predict",
    "scale",
    "gpu",
    "export",
)

WITH_GPU = ("gpu",)
"""Parts that are passed over where there is no GPU."""

PASSIVE = ("predict",)
"""Parts whose waiting threads leave the cores to others, as in the commands of `promptkd`."""

Run = Callable[[str, argparse.Namespace], Outcome]


def main(arguments: Sequence[str] | None = None, *, run: Run | None = None) -> int:
    """Run parts by `run`, by default each in a process of its own."""
    given = _parser().parse_args(arguments)
    if given.child is not None:
        _child(given)
        return 0
    chosen = [part.strip() for part in given.only.split(",")] if given.only else list(PARTS)
    wrong = [part for part in chosen if part not in PARTS]
    if wrong:
        sys.stderr.write(f"no part '{wrong[0]}'; there are: {', '.join(PARTS)}\n")
        return 2
    possible = chosen if given.tiny or run else _possible(chosen)
    failed = [part for part in possible if not _stored(part, given, run or in_a_process_of_its_own)]
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}\n")
    return 1 if failed else 0


def _possible(parts: list[str]) -> list[str]:
    """Return the parts that this machine can measure; name the others."""
    lacking = [part for part in parts if part in WITH_GPU]
    if not lacking or _has_gpu():
        return parts
    for part in lacking:
        sys.stderr.write(f"{part}: passed over, it needs a GPU\n")
    return [part for part in parts if part not in lacking]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def measure(part: str, given: argparse.Namespace) -> Outcome:
    """Run a part in this process."""
    import torch

    from benchmarks.sizes import machine

    module: Any = importlib.import_module(f"benchmarks.{part}")
    size = module.TINY if given.tiny else module.REAL
    if given.rounds is not None:
        size = replace(size, rounds=given.rounds)
    torch.set_num_threads(1 if given.tiny else THREADS)
    facts = machine()
    results: Outcome = module.measure(size, to_stderr(part))
    return replace(results, machine=facts)


def in_a_process_of_its_own(part: str, given: argparse.Namespace) -> Outcome:
    """Run a part where nothing else is in memory.

    Raises:
        CalledProcessError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcome.json"
        command = [sys.executable, "-m", "benchmarks", "--child", part, "--out", str(file)]
        command += ["--tiny"] if given.tiny else []
        command += ["--rounds", str(given.rounds)] if given.rounds is not None else []
        policy = {"OMP_WAIT_POLICY": "PASSIVE"} if part in PASSIVE else {}
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | policy)
        return Outcome.from_json(json.loads(file.read_text(encoding="utf-8")))


def _stored(part: str, given: argparse.Namespace, run: Run) -> bool:
    """Run a part and store its results; return False if it failed."""
    try:
        results = run(part, given)
    except subprocess.CalledProcessError:  # its message is on stderr
        return False
    stored = {**outcome.read(given.out), part: results}
    outcome.write(given.out, outcome.of_all(PARTS, stored))
    if results.series:
        from benchmarks.picture import draw

        series = [each for name in PARTS if name in stored for each in stored[name].series]
        (given.out / PICTURE).write_bytes(draw(series))
    sys.stderr.write(f"{part}: stored in {given.out.name}/{outcome.TABLE}\n")
    return True


def _child(given: argparse.Namespace) -> None:
    results = measure(given.child, given)
    given.out.write_text(json.dumps(results.as_json()), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", default="", help="Parts, separated by commas (default: all).")
    parser.add_argument("--rounds", type=int, help="Measurements of each side.")
    out = ROOT / "reports" / "bench"
    parser.add_argument("--out", type=Path, default=out, help="Directory of the table.")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
