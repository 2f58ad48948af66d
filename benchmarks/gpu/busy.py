"""Share of time that a device computes, and that a training waits for images."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pd_core.data.loading.images import Batch
from pd_core.training.loop.repeated import WrappedBatches


@dataclass
class Waiting(WrappedBatches):
    """Batches of a training that waits for them.

    Attributes:
        source: of the batches.
        seconds: from each request to its batch, in all.
        images: that they had.
    """

    seconds: float = 0.0
    images: int = 0

    @property
    def left_out(self) -> int:
        return self.source.left_out

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        begun = time.perf_counter()
        for batch in self.source.epoch(epoch, start=start):
            self.seconds += time.perf_counter() - begun
            self.images += len(batch.indices)
            yield batch
            begun = time.perf_counter()


class Busy:
    """Profile of a training from the end of its step `first` to that of `last`.

    The profiler slows the launch of kernels down, so that the share is a lower bound.
    """

    def __init__(self, first: int, last: int, device: torch.device) -> None:
        kind = device.type.upper()
        self._first, self._last, self._device = first, last, device
        self._type = kind
        self._profile = profile(activities=[getattr(ProfilerActivity, kind)])
        self._start = self._seconds = 0.0

    def on_progress(self, done: int, _total: int) -> None:
        """Start or end the profile, if it is time."""
        if done == self._first:
            self._profile.start()
            self._start = self._now()
        elif done == self._last:
            self._seconds = self._now() - self._start
            self._profile.stop()

    def share(self) -> float:
        """Return the share of the time between the steps that the device computed or copied."""
        events: Any = self._profile.events()  # type: ignore[no-untyped-call]
        microseconds = covered(
            [
                (event.time_range.start, event.time_range.end)
                for event in events
                if event.device_type.name == self._type and not event.is_user_annotation
            ]
        )
        return microseconds / 1e6 / self._seconds

    def _now(self) -> float:
        """Return the time when the device has done all that it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Return the length of a union of intervals, which may overlap."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length
