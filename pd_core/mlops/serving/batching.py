"""Requests answered together: all pictures that wait go to the model's process at once.

There is no waiting for company: the process is given whatever is there as soon as it is free. The
more requests come, the larger the batches are; a full one is sent ahead, so that it never waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from pd_core.mlops.serving import errors
from pd_core.mlops.serving.errors import Limits
from pd_core.mlops.serving.model_manager import Ranking, Served
from pd_core.mlops.serving.worker import Judged


class _Waiting(NamedTuple):
    served: Served
    picture: bytes
    answer: asyncio.Future[Ranking | str]  # or why it is no picture


class Engine:
    """Makes batches of what waits; all of it happens in the event loop's thread."""

    def __init__(self, limits: Limits, *, on_batch: Callable[[int], None] = lambda _: None) -> None:
        """Wait for work.

        Args:
            limits: pictures in a batch, and seconds until the answer.
            on_batch: called with the size of every batch.
        """
        self._limits = limits
        self._on_batch = on_batch
        self._queue: deque[_Waiting] = deque()
        self._batches: set[asyncio.Task[None]] = set()

    async def answer(self, served: Served, pictures: Sequence[bytes]) -> list[Ranking]:
        """Classify the pictures of one request, all by the same version.

        Raises:
            HTTPException: 400, a picture is none, with its place if there are several; 503; 504.
        """
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(served, picture, loop.create_future()) for picture in pictures]
        self._queue.extend(waiting)
        self._send()
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                answers = await asyncio.gather(*(one.answer for one in waiting))
        except TimeoutError:
            raise errors.late(self._limits.answer_seconds) from None
        except BrokenProcessPool:
            raise errors.gone() from None
        return [_ranking(answer, place, len(answers)) for place, answer in enumerate(answers)]

    def _send(self) -> None:
        """Give the process what it can take."""
        while self._queue and self._has_room():
            if batch := self._take():
                self._on_batch(len(batch))
                task = asyncio.create_task(_judge(batch))
                self._batches.add(task)
                task.add_done_callback(self._done)

    def _has_room(self) -> bool:
        """Say whether the process is free, or a full batch is there for when it will be."""
        return not self._batches or (
            len(self._batches) == 1 and len(self._queue) >= self._limits.batch
        )

    def _done(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        self._send()

    def _take(self) -> list[_Waiting]:
        """Take a batch of one version off the queue."""
        batch: list[_Waiting] = []
        while self._queue and len(batch) < self._limits.batch:
            first = self._queue[0]
            if batch and first.served is not batch[0].served:
                break
            self._queue.popleft()
            if not first.answer.done():  # its client may have given up
                batch.append(first)
        return batch


async def _judge(batch: Sequence[_Waiting]) -> None:
    served = batch[0].served
    try:
        judged = await served.worker.judge([one.picture for one in batch])
        if served.monitor is not None and len(judged.features):
            served.monitor.observe(judged.probabilities, judged.features)
        _deliver(batch, judged)
    except Exception as error:  # whatever it is: these requests fail, others go on
        for one in batch:
            if not one.answer.done():
                one.answer.set_exception(error)


def _deliver(batch: Sequence[_Waiting], judged: Judged) -> None:
    rows = iter(judged.probabilities)
    for one, reason in zip(batch, judged.reasons, strict=True):
        answer = reason or Ranking(next(rows), one.served)
        if not one.answer.done():
            one.answer.set_result(answer)


def _ranking(answer: Ranking | str, place: int, count: int) -> Ranking:
    if isinstance(answer, str):
        raise errors.bad(f"picture {place}: {answer}" if count > 1 else answer)
    return answer
