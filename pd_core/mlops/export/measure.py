"""Accuracy, size and latency of an exported student, against its original."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pd_core.core.errors import BadData
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.prepared import Prepared
from pd_core.evaluation.metrics import Labels
from pd_core.evaluation.significance import Paired, paired
from pd_core.models.portable.runtimes import ExportedRuntime
from pd_core.models.portable.student import PortableStudent

_BATCH = 64
_TIMED = 50  # images for the latency


@dataclass(frozen=True)
class Accuracy:
    """Top classes of the exported student and of its original for the same N test images.

    Attributes:
        labels: (N,).
        predicted: of the exported one, and of the original, (N,) each.
    """

    labels: Labels
    predicted: tuple[Labels, Labels]

    @property
    def hits(self) -> Paired:
        """Images that the exported one, and the original, predict correctly."""
        first, second = self.predicted
        return paired(first == self.labels, second == self.labels)

    @property
    def difference(self) -> float:
        """Difference of the accuracies in points; negative if the exported one is worse."""
        return 100 * (self.hits.first - self.hits.second)

    @property
    def agreement(self) -> float:
        """Share of the images with the same top class, 0 to 1."""
        first, second = self.predicted
        return float((first == second).mean())


@dataclass(frozen=True)
class Cost:
    """Numbers of the exported student, and of its original.

    Attributes:
        megabytes: of the model's files, and of the original's weights.
        milliseconds: latency for one decoded image, the shortest of many, measured in turns.
    """

    megabytes: tuple[float, float]
    milliseconds: tuple[float, float]


def accuracy(
    exported: PortableStudent, original: PortableStudent, prepared: Prepared
) -> Accuracy | None:
    """Classify the labelled test images with both; corrupt ones are left out.

    Returns:
        The accuracies; None if no test image has a label.

    Raises:
        MissingFile: the images are not there.
    """
    rows = [
        (labels, exported.answers(pixels).probabilities, original.answers(pixels).probabilities)
        for pixels, labels in _test_batches(original, prepared)
    ]
    if not rows:
        return None
    labels, first, second = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return Accuracy(labels, (first.argmax(axis=1), second.argmax(axis=1)))


def cost(exported: PortableStudent, original: PortableStudent) -> Cost:
    """Measure size and latency, with the threads that torch has."""
    return Cost(megabytes(exported, original), _latencies(exported, original))


def megabytes(exported: PortableStudent, original: PortableStudent) -> tuple[float, float]:
    """Return the size of the exported model's files, and of the original's weights."""
    assert isinstance(exported.runtime, ExportedRuntime)
    files = sum(file.stat().st_size for file in exported.runtime.files)
    weights = sum(value.nbytes for value in original.network.state_dict().values())
    return files / 1e6, weights / 1e6


def _test_batches(
    student: PortableStudent, prepared: Prepared
) -> Iterator[tuple[NDArray[np.uint8], Labels]]:
    """Yield pixels (B, S, S, 3) and labels (B,)."""
    store = ImageStore(prepared.images, keep_bytes=0)
    for start in range(0, len(prepared.test), _BATCH):
        crops, labels = [], []
        for path, label in prepared.test[start : start + _BATCH]:
            with suppress(BadData):
                crops.append(student.crop(store.open(path)))
                labels.append(label)
        if crops:
            yield np.stack(crops), np.array(labels)


def _latencies(first: PortableStudent, second: PortableStudent) -> tuple[float, float]:
    """Return the milliseconds of both for one image: the shortest, as a busy machine makes longer.

    They take turns.
    """
    size = first.image_size
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    turns = [(_milliseconds(first, image), _milliseconds(second, image)) for _ in range(_TIMED)]
    return min(own for own, _ in turns), min(own for _, own in turns)


def _milliseconds(student: PortableStudent, image: NDArray[np.uint8]) -> float:
    start = time.perf_counter()
    student.answers(image)
    return 1000 * (time.perf_counter() - start)
