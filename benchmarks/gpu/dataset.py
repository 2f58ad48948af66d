"""An epoch of the student's training on a data set of DTD's size, from JPEG files.

Ours is the loop of the stage `student`, with targets online or cached. Every epoch of every side
starts its own processes that decode images.
"""

import time
from dataclasses import dataclass, field
from statistics import median

import torch

from benchmarks.gpu.busy import Busy
from benchmarks.gpu.setting import Size, plain
from benchmarks.gpu.training import Training
from benchmarks.outcome import Row
from benchmarks.timing import Note, Work, check_agreement, take_turns
from pd_core.core.hooks import Hooks
from pd_core.core.options import Computed

REFERENCE = "reference"


@dataclass
class Epoch:
    """Our training of one epoch; each call is one.

    Attributes:
        training: on the data set.
        computed: when the targets are computed.
        waited: percentage of each call's time that it waited for images.
    """

    training: Training
    computed: Computed
    waited: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        """Train; return the number of images."""
        start = time.perf_counter()
        batches = self.training.distil(self.computed)
        self.waited.append(100 * batches.seconds / (time.perf_counter() - start))
        return batches.images


def rows(size: Size, note: Note) -> list[Row]:
    """Measure epochs of all sides, and what ours wait for."""
    with Training.written(size) as training:
        what = f"epoch of {len(training.paths)} images, {size.data.num_classes} classes"
        note(f"{what}: records the teacher's logits")
        start = time.perf_counter()
        training.record()
        recording = time.perf_counter() - start
        ours = {str(computed): Epoch(training, computed) for computed in Computed}
        sides: dict[str, Work] = {**ours, REFERENCE: plain(training.plain)}
        turns = take_turns(sides, rounds=size.rounds, note=note)
        check_agreement(turns.values, within=0)  # as many images; views differ, and so do losses
        against = turns.median(REFERENCE, "wall")
        return [
            *(turns.row(f"{what}, {side}", side, REFERENCE, clock="wall") for side in ours),
            Row(
                f"{what}, recording of the teacher's logits", recording / against, clock="wall",
                note=f"{recording:.3g} s against {against:.3g} s, measured once",
            ),
            *(
                Row(f"{what}, {side}: waits for images", median(epoch.waited), unit="%")
                for side, epoch in ours.items()
            ),
            *_busy(training, f"{what}, {Computed.CACHED}: the GPU computes"),
        ]  # fmt: skip


def _busy(training: Training, what: str) -> list[Row]:
    """Measure the share of cached steps that the GPU computes; nothing without a GPU."""
    size = training.size
    if size.device != "cuda":
        return []
    first, last = size.profiled
    busy = Busy(first, last, torch.device(size.device))
    training.distil(Computed.CACHED, Hooks(on_progress=busy.on_progress))
    return [
        Row(
            what, 100 * busy.share(), unit="%",
            note=f"steps {first + 1} to {last}; the profiler slows launches down",
        )
    ]  # fmt: skip
