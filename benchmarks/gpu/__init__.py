"""Training at fp16 on a GPU: ours against the plain path."""

from benchmarks.gpu import steps
from benchmarks.gpu.setting import REAL, TINY, Size
from benchmarks.outcome import Outcome
from benchmarks.timing import Note
from pd_core.models.precision import set_threads

__all__ = ["REAL", "TINY", "Size", "measure"]


def measure(size: Size, note: Note) -> Outcome:
    """Measure steps of both trainings."""
    set_threads(size.threads)
    return Outcome(tuple(steps.rows(size, note)), remarks=(f"{size.machine}, fp16",))
