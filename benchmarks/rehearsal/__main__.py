"""Rehearse the paper's profile without its data: `make rehearsal`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.rehearsal import trees, walk, weights
from pd_core.cli.rehearse import show
from pd_core.core.errors import PdError
from pd_core.mlops import tracking
from pd_core.pipeline.protocols import load_protocols
from pd_core.pipeline.settings import compute_with
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.params import Params, validate
from pd_core.rehearsal.measure import Place
from pd_core.rehearsal.record import Record, write
from pd_core.rehearsal.rehearse import profile_items, protocol_items, rehearse

SMALL = "ViT-S-32-alt"
"""Model of the walk through the stages: the smallest of open_clip with CLIP's tokenizer."""

CPU_STEPS, GPU_STEPS = 3, 40  # of an epoch that are measured
CORES = min(8, os.cpu_count() or 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write copies and weights, walk through the protocols, measure, and print the estimate."""
    given = _parser().parse_args(arguments)
    compute_with(CORES)
    start = time.monotonic()

    def note(line: str) -> None:
        sys.stderr.write(f"{time.monotonic() - start:5.0f} s  {line}\n")
        sys.stderr.flush()

    try:
        _rehearse(given.folder.absolute(), given.share, given.steps, note)
    except PdError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _rehearse(folder: Path, share: float, steps: int | None, note: Any) -> None:
    rules, paper = load_protocols(ROOT / "paper" / "protocols")
    device = jobs.resolved("auto")
    root = folder / "raw"
    root.mkdir(parents=True, exist_ok=True)
    note(f"writes copies of {len(trees.PIXELS)} data sets in '{root}'")
    rows = {row.name: row for row in trees.write(root, share)}
    prints = {
        name: trees.write_fingerprint(row, root, folder / "fingerprints")
        for name, row in rows.items()
    }
    small = with_models(paper, device, SMALL, SMALL, folder)
    seen = walk.Walk(folder / "walk", rules, small, rows, prints, root, note).run()
    real = with_models(paper, device, paper.teacher.model, paper.student.model, folder)
    measured = folder / "measured"
    measured.mkdir(exist_ok=True)
    tracking.open_store(measured)
    place = Place(
        folder=measured, data_root=root, fingerprints=prints, copies=rows, device=device,
        seed=real.run.seed, steps=steps or (CPU_STEPS if device == "cpu" else GPU_STEPS),
    )  # fmt: skip
    items = [*profile_items(real, real.datasets), *protocol_items(rules, real)]
    estimates = rehearse(items, place, note)
    for (part, stage), count in seen.items():
        sys.stdout.write(f"went through {part}: {stage} of {count} data sets\n")
    sys.stdout.flush()
    result = Record.of(estimates, device)
    write(result, ROOT / "paper")
    show(result)


def with_models(params: Params, device: str, teacher: str, student: str, folder: Path) -> Params:
    """Return a profile with random weights of models, for the device and cores of this machine."""
    files = {name: str(weights.write(name, folder / "weights")) for name in (teacher, student)}
    values = params.model_dump(mode="json")
    values["run"] |= {"device": device, "workers": CORES}
    values["run"]["checkpoint_minutes"] = 60.0
    if device == "cpu":
        values["run"] |= {"precision": "fp32", "threads": CORES, "workers": 0}
    for stage, model in (("teacher", teacher), ("student", student)):
        values[stage] |= {"model": model, "weights": files[model]}
    return validate(Params, values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make rehearsal", description=__doc__)
    parser.add_argument("--share", type=float, default=0.002, help="Share of the images.")
    parser.add_argument("--steps", type=int, help="Steps an epoch to measure.")
    folder = ROOT / "build" / "rehearsal"
    parser.add_argument("--folder", type=Path, default=folder, help="Directory of copies.")
    return parser


if __name__ == "__main__":
    sys.exit(main())
