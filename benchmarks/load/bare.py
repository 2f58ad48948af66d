"""Throughput of a student without a server, for comparison.

`python -m benchmarks.load.bare MODEL BATCH SECONDS` prints images per second.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from benchmarks.load import students
from pd_core.pipeline.settings import compute_with


def rate(model: str, batch: int, seconds: float) -> float:
    """Return the images per second that a student classifies on all cores."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    student = students.student(model)
    shape = (batch, student.image_size, student.image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    student.answers(pixels[:1])
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        student.answers(pixels)
        done += batch
    return done / (time.perf_counter() - begun)


if __name__ == "__main__":
    compute_with(os.cpu_count() or 1)
    sys.stdout.write(f"{rate(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))}\n")
