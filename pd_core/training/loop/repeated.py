"""Batches of epochs that come again, kept in memory: they are decoded and augmented once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pd_core.data.loading.images import Batch
from pd_core.training.loop.fit import Batches

MEMORY = 512 * 2**20
"""Bytes of kept views; four epochs of an embedded data set take at most a third."""


@dataclass
class WrappedBatches:
    """Base of batches that come from a source, of which it describes the list."""

    source: Batches

    @property
    def steps(self) -> int:
        """See `Batches`."""
        return self.source.steps

    @property
    def corrupt(self) -> set[int]:
        """See `Batches`."""
        return self.source.corrupt

    def names(self, indices: Sequence[int]) -> list[str]:
        """See `Batches`."""
        return self.source.names(indices)


@dataclass
class RepeatedBatches(WrappedBatches):
    """The batches of a source, of which complete epochs are kept as long as there is memory.

    Attributes:
        source: it yields the same batches whenever an epoch is read again.
        memory: bytes of views that are kept at most.
    """

    memory: int = MEMORY
    left_out: int = field(default=0, init=False)
    _kept: dict[int, tuple[list[Batch], int]] = field(default_factory=dict, init=False)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """See `Batches`."""
        if epoch in self._kept:
            batches, self.left_out = self._kept[epoch]
            yield from batches[start:]
            return
        read: list[Batch] = []
        for batch in self.source.epoch(epoch, start=start):
            self.memory -= batch.nbytes
            if self.memory >= 0:
                read.append(batch)
            yield batch
        self.left_out = self.source.left_out
        if start == 0 and self.memory >= 0:
            self._kept[epoch] = read, self.left_out
