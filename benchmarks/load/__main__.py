"""Measure the service at full length, and write the table."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import ROOT
from benchmarks.load import measure
from benchmarks.load.students import EMBEDDED, PAPER
from benchmarks.outcome import Row

TABLE = ROOT / "reports" / "serving" / "table.md"


def main() -> None:
    """Measure, print each row when it is done, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load")
    parser.add_argument("--rounds", type=int, default=3, help="Measurements of each side.")
    parser.add_argument("--seconds", type=float, default=60, help="Duration at saturation.")
    parser.add_argument("--only", choices=["small", "large"], help="Measure one student only.")
    given = parser.parse_args()
    rows = []
    for row in _rows(given):
        sys.stderr.write(f"{' | '.join(row.cells())}\n")
        rows.append(row)
    if given.only is None:
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(_table(rows), encoding="utf-8")


def _rows(given: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        if given.only != "large":
            picture = measure.write_picture(Path(folder) / "small.png", 32, 32)
            with measure.target(EMBEDDED) as running:
                yield measure.small_student(
                    running, picture, seconds=given.seconds / 6, rounds=given.rounds, least=0.6
                )
                yield from measure.saturation(running, picture, seconds=given.seconds)
        if given.only != "small":
            picture = measure.write_picture(Path(folder) / "large.jpg", 500, 375)
            with measure.target(PAPER) as running:
                seconds = given.seconds * 2 / 3
                yield measure.large_student(
                    running, PAPER, picture, seconds=seconds, rounds=given.rounds, least=0.85
                )


def _table(rows: list[Row]) -> str:
    lines = [
        "# Load test of the server",
        "",
        "64 connections on loopback; service, model and load generator share the cores. Random"
        " weights. A ratio is that of medians; the sides take turns, and the spread is from the"
        " smallest to the largest ratio of a round. Written by `make load`.",
        "",
        f"Measured with: {os.cpu_count()} cores, Python {platform.python_version()}.",
        "",
        "| what | target | measured | spread | target is | remark |",
        "|---|---|---:|---:|---|---|",
    ]
    for row in rows:
        what, target, value, spread, _, verdict, note = row.cells()
        lines.append(f"| {what} | {target} | {value} | {spread} | {verdict} | {note} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
