"""Training at fp16 on a GPU: ours against the plain path."""

from benchmarks.gpu import dataset, memory, steps
from benchmarks.gpu.setting import REAL, TINY, Size
from benchmarks.outcome import Outcome
from benchmarks.timing import Note
from pd_core.models.precision import set_threads

__all__ = ["REAL", "TINY", "Size", "measure"]


def measure(size: Size, note: Note) -> Outcome:
    """Measure memory, steps of both trainings, and epochs of a data set."""
    set_threads(size.threads)
    # Memory first, as whatever is on the GPU counts to it.
    rows = [*memory.rows(size, note), *steps.rows(size, note), *dataset.rows(size, note)]
    return Outcome(tuple(rows), remarks=(f"{size.machine}, fp16, {size.steps} steps a turn",))
