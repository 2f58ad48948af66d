"""Requests answered together: decoded in threads, then all that wait go through the model at once.

There is no waiting for company: the model takes whatever is there as soon as it is free. The more
requests come, the larger the batches are.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pd_core.service import refusals
from pd_core.service.limits import Limits
from pd_core.service.served import Answers, Ranking, Served


class _Waiting(NamedTuple):
    served: Served
    pixels: NDArray[Any]  # (S, S, 3)
    answer: asyncio.Future[Ranking]


class Engine:
    """Decodes and classifies; every method is called in the event loop's thread."""

    def __init__(
        self,
        limits: Limits,
        *,
        prepare: Callable[[], None] = lambda: None,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Make the threads; `start` sets them to work.

        Args:
            limits: pictures in a batch, pixels, seconds, threads.
            prepare: called once in the model's thread, before its first batch.
            on_batch: called there with the size of every batch.
        """
        self._limits = limits
        self._prepare = prepare
        self._on_batch = on_batch
        self._decoders = ThreadPoolExecutor(limits.decoders, thread_name_prefix="decode")
        self._queue: deque[_Waiting] = deque()
        self._filled = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    @property
    def waiting(self) -> int:
        """Decoded pictures that the model has not taken yet."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether there is somebody to answer."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start to answer, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits, then end the threads."""
        with self._filled:
            self._ended = True
            self._filled.notify()
        self._thread.join()
        self._decoders.shutdown()

    async def answer(self, served: Served, pictures: Sequence[bytes]) -> list[Ranking]:
        """Classify the pictures of one request, all by the same version.

        Raises:
            HTTPException: 400, a picture is none, with its place if there are several; 504.
        """
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                crops = await self.decode(served, pictures)
                return list(await asyncio.gather(*(self._ask(served, crop) for crop in crops)))
        except TimeoutError:
            raise refusals.late(self._limits.answer_seconds) from None

    async def decode(self, served: Served, pictures: Sequence[bytes]) -> list[NDArray[Any]]:
        """Turn pictures into what the model takes, (S, S, 3) each.

        Raises:
            HTTPException: 400, a picture is none.
        """
        jobs = (
            self._loop.run_in_executor(self._decoders, self._crop, served, picture)
            for picture in pictures
        )
        crops: list[NDArray[Any]] = []
        for place, crop in enumerate(await asyncio.gather(*jobs, return_exceptions=True)):
            match crop:
                case ValueError():
                    where = f"picture {place}: " if len(pictures) > 1 else ""
                    raise refusals.bad(f"{where}{crop}")
                case BaseException():
                    raise crop
                case _:
                    crops.append(crop)
        return crops

    def _crop(self, served: Served, picture: bytes) -> NDArray[Any]:
        return served.student.crop(picture, most_pixels=self._limits.pixels)

    def _ask(self, served: Served, pixels: NDArray[Any]) -> asyncio.Future[Ranking]:
        waiting = _Waiting(served, pixels, self._loop.create_future())
        with self._filled:
            self._queue.append(waiting)
            self._filled.notify()
        return waiting.answer

    def _work(self) -> None:
        self._prepare()
        while self._answer_some():
            pass

    def _answer_some(self) -> bool:
        """Answer a batch; False at the end. It keeps nothing: old versions leave memory."""
        batch = self._next()
        if not batch:
            return False
        self._on_batch(len(batch))
        served = batch[0].served
        try:
            answers = served.student.answers(np.stack([one.pixels for one in batch]))
            if served.monitor is not None:
                served.monitor.observe(answers.probabilities, answers.features)
        except Exception as error:  # whatever it is: these requests fail, others go on
            self._loop.call_soon_threadsafe(_fail, batch, error)
        else:
            self._loop.call_soon_threadsafe(_deliver, batch, answers)
        return True

    def _next(self) -> list[_Waiting]:
        """Wait for work, and take a batch of one version; nothing at the end."""
        with self._filled:
            while True:
                self._filled.wait_for(lambda: self._queue or self._ended)
                batch = self._take()
                if batch or self._ended:
                    return batch

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while self._queue and len(batch) < self._limits.batch:
            first = self._queue[0]
            if batch and first.served is not batch[0].served:
                break
            self._queue.popleft()
            if not first.answer.done():  # its client may have given up
                batch.append(first)
        return batch


def _deliver(batch: Sequence[_Waiting], answers: Answers) -> None:
    for one, probabilities in zip(batch, answers.probabilities, strict=True):
        if not one.answer.done():
            one.answer.set_result(Ranking(probabilities, one.served))


def _fail(batch: Sequence[_Waiting], error: Exception) -> None:
    for one in batch:
        if not one.answer.done():
            one.answer.set_exception(error)
