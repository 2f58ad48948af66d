"""Measurements of the server under load."""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks import ROOT
from benchmarks.load import generator
from benchmarks.load.generator import Load
from benchmarks.outcome import Row
from pd_core.mlops.serving.requests import Limits

CONNECTIONS = 64
WARM_UP = 10.0  # seconds, after which memory may not grow any more
MiB = 2**20


@dataclass(frozen=True)
class Target:
    """A running server on a port of loopback."""

    port: int
    process: psutil.Process

    @property
    def memory(self) -> float:
        """Memory of its processes in MiB."""
        family = [self.process, *self.process.children(recursive=True)]
        return float(sum(process.memory_info().rss for process in family) / MiB)

    def load(self, path: str, picture: Path, seconds: float) -> Load:
        """Load the server."""
        started = generator.start(
            self.port, path, picture, connections=CONNECTIONS, seconds=seconds
        )
        return generator.result(started)


@contextmanager
def target(model: str) -> Iterator[Target]:
    """Serve a student in a process during the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load.service", model],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield Target(int(process.stdout.readline()), psutil.Process(process.pid))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.stdout.close()


def write_picture(path: Path, width: int, height: int) -> Path:
    """Write something like a photo: large shapes, a little noise."""
    rng = np.random.default_rng(0)
    shapes = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    pixels = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    pixels = (pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def small_student(
    running: Target, picture: Path, *, seconds: float, rounds: int, least: float
) -> Row:
    """Compare classification with decoding alone, in turns."""
    loads: dict[str, list[Load]] = {"/predict": [], "/decode": []}
    for path in loads:
        running.load(path, picture, seconds)  # warm-up
    for _ in range(rounds):
        for path, results in loads.items():
            results.append(running.load(path, picture, seconds))
    ours, reference = ([load.rate for load in results] for results in loads.values())
    errors = _errors(loads["/predict"])
    return _ratio("embedded student: served / decoded only", ours, reference, least, errors)


def large_student(
    running: Target, model: str, picture: Path, *, seconds: float, rounds: int, least: float
) -> Row:
    """Compare serving with a bare loop over the same student, in turns."""
    ours: list[Load] = []
    reference: list[float] = []
    for _ in range(rounds):
        reference.append(_bare(model, seconds))
        ours.append(running.load("/predict", picture, seconds))
    rates = [load.rate for load in ours]
    return _ratio(f"{model} student: served / bare loop", rates, reference, least, _errors(ours))


def saturation(running: Target, picture: Path, *, seconds: float) -> list[Row]:
    """Measure errors, latency and memory under a long load."""
    loading = generator.start(
        running.port, "/predict", picture, connections=CONNECTIONS, seconds=seconds
    )
    begun = time.monotonic()
    times, held = [], []
    while loading.poll() is None:
        time.sleep(0.5)
        if time.monotonic() - begun >= min(WARM_UP, seconds / 2):
            times.append(time.monotonic() - begun)
            held.append(running.memory)
    load = generator.result(loading)
    slope = statistics.linear_regression(times, held).slope
    latency = ", ".join(f"p{100 * float(part):g} {ms:.0f}" for part, ms in load.latencies.items())
    answers = sum(load.statuses.values())
    return [
        Row("errors at saturation", load.errors, most=0, note=f"of {answers} requests"),
        Row("p99 of the latency", load.latencies["0.99"], unit="ms", note=f"{latency} ms"),
        Row("answers in a second", load.rate, note=f"{CONNECTIONS} connections, {seconds:g} s"),
        Row(
            "growth of memory after the first seconds",
            slope * 60,
            most=5,
            unit="MiB a minute",
            note=f"from {held[0]:.1f} to {held[-1]:.1f} MiB, all processes",
        ),
    ]


def _bare(model: str, seconds: float) -> float:
    arguments = [
        sys.executable,
        "-m",
        "benchmarks.load.bare",
        model,
        str(Limits().batch),
        str(seconds),
    ]
    return float(subprocess.run(arguments, cwd=ROOT, capture_output=True, check=True).stdout)


def _errors(loads: Sequence[Load]) -> int:
    return sum(load.errors for load in loads)


def _ratio(
    what: str, ours: Sequence[float], reference: Sequence[float], least: float, errors: int
) -> Row:
    each = [a / b for a, b in zip(ours, reference, strict=True)]
    return Row(
        what,
        statistics.median(ours) / statistics.median(reference),
        min(each),
        max(each),
        clock="wall",
        least=least,
        note=f"{statistics.median(ours):.4g} against {statistics.median(reference):.4g} pictures"
        f" in a second, {len(each)} rounds, {errors} errors",
    )
