"""An epoch of the student's training on a data set of DTD's size, from JPEG files.

Ours is the loop of the stage `student`, with targets online or cached, and with views that workers
or the device resize. Every epoch of every side starts its own processes that decode images.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median

import torch

from benchmarks.gpu.busy import Busy
from benchmarks.gpu.setting import Size, plain
from benchmarks.gpu.training import Training
from benchmarks.outcome import Row
from benchmarks.timing import Note, Turns, Work, check_agreement, take_turns
from pd_core.core.hooks import Hooks
from pd_core.core.options import Augmentation, Computed

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
        ours = _ours(training)
        cached = {side: each for side, each in ours.items() if each.computed is Computed.CACHED}
        note(f"{what}: records the teacher's logits")
        recording = {side: _seconds(epoch.training.record) for side, epoch in cached.items()}
        sides: dict[str, Work] = {**ours, REFERENCE: plain(training.plain)}
        turns = take_turns(sides, rounds=size.rounds, note=note)
        check_agreement(turns.values, within=0)  # as many images; views differ, and so do losses
        compared = [turns.row(f"{what}, {side}", side, REFERENCE, clock="wall") for side in ours]
        waits = [
            Row(f"{what}, {side}: waits for images", median(epoch.waited), unit="%")
            for side, epoch in ours.items()
        ]
        busy = [
            _busy(size, epoch, f"{what}, {side}: the GPU computes")
            for side, epoch in cached.items()
            if size.device == "cuda"
        ]
        return [*compared, *_recorded(what, recording, turns), *waits, *busy]


def _ours(training: Training) -> dict[str, Epoch]:
    resized = replace(training, augmentation=Augmentation.DEVICE)
    return {
        "online": Epoch(training, Computed.ONLINE),
        "cached": Epoch(training, Computed.CACHED),
        "cached, resized on the device": Epoch(resized, Computed.CACHED),
    }


def _recorded(what: str, seconds: Mapping[str, float], turns: Turns) -> list[Row]:
    """Compare the recording of the targets of an epoch with the plain path's training."""
    against = turns.median(REFERENCE, "wall")
    return [
        Row(
            f"{what}, {side}: recording before", taken / against, clock="wall",
            note=f"{taken:.3g} s against {against:.3g} s, measured once",
        )
        for side, taken in seconds.items()
    ]  # fmt: skip


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _busy(size: Size, epoch: Epoch, what: str) -> Row:
    """Measure the share of an epoch's steps that the GPU computes."""
    first, last = size.profiled
    busy = Busy(first, last, torch.device(size.device))
    epoch.training.distil(epoch.computed, Hooks(on_progress=busy.on_progress))
    return Row(
        what, 100 * busy.share(), unit="%",
        note=f"steps {first + 1} to {last}; the profiler slows launches down",
    )  # fmt: skip
