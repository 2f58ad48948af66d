"""Classes of many image files, in constant memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pd_core.core.errors import BadData
from pd_core.data.loading.decode import decode
from pd_core.models.portable.pictures import UNREADABLE, reason
from pd_core.models.portable.student import PortableStudent, Ranking

BATCH = 64


@dataclass(frozen=True)
class Row:
    """The result for an image file: its likeliest classes, or the reason why it has none."""

    image: str
    ranking: Ranking
    error: str = ""


@dataclass
class Count:
    """Numbers of rows, and of those without a prediction."""

    images: int = 0
    failed: int = 0
    first: str = ""  # path and reason of the first one that failed

    def add(self, rows: Sequence[Row]) -> None:
        """Count rows."""
        self.images += len(rows)
        errors = [f"'{row.image}' ({row.error})" for row in rows if row.error]
        self.failed += len(errors)
        self.first = self.first or next(iter(errors), "")

    def check_any(self) -> None:
        """Raise BadData if there was no image at all."""
        if not self.images:
            raise BadData("no image found; give image files, or directories that have some")

    def check_all(self) -> None:
        """Raise BadData if an image could not be read."""
        if self.failed:
            raise BadData(
                f"{self.failed} of {self.images} images cannot be read, such as {self.first}; the "
                f"others are classified"
            )


def classify(
    student: PortableStudent,
    paths: Iterable[str],
    *,
    top: int,
    workers: int,
    batch_size: int = BATCH,
) -> Iterator[list[Row]]:
    """Yield the rows of image files in order, a batch at a time.

    Args:
        student: the classifier.
        paths: of the files; read while the batches are.
        top: number of classes of a row.
        workers: threads that decode.
        batch_size: files of a batch.
    """
    decoded = _decoded(student, paths, workers, ahead=2 * batch_size)
    while batch := list(islice(decoded, batch_size)):
        crops = [crop for _, crop in batch if not isinstance(crop, str)]
        rankings: Iterator[Ranking] = iter(())
        if crops:
            rankings = student.rank(student.answers(np.stack(crops)).probabilities, top=top)
        yield [
            Row(path, [], crop) if isinstance(crop, str) else Row(path, next(rankings))
            for path, crop in batch
        ]


_Crop = NDArray[np.uint8] | str  # (S, S, 3), or the reason why there is none


def _decoded(
    student: PortableStudent, paths: Iterable[str], workers: int, ahead: int
) -> Iterator[tuple[str, _Crop]]:
    """Yield each path with its image, in order; threads decode some files ahead."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[tuple[str, Future[_Crop]]] = deque()
    try:
        for path in paths:
            waiting.append((path, pool.submit(_crop, student, path)))
            if len(waiting) == ahead:
                first, crop = waiting.popleft()
                yield first, crop.result()
        for path, crop in waiting:
            yield path, crop.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _crop(student: PortableStudent, path: str) -> _Crop:
    try:
        return student.crop(decode(Path(path).read_bytes()))
    except UNREADABLE as error:
        return (isinstance(error, OSError) and error.strerror) or reason(error)
