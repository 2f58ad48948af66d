"""The active model of the service, and the batches of images that it classifies.

It is loaded from the registry, and replaced when its alias moves. There is no waiting for a batch
to fill: the model's process is given whatever waits as soon as it is free. The more requests come,
the larger the batches are; a full one is sent ahead, so that the process never waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from pd_core.core.errors import PdError
from pd_core.mlops.bundle import REFERENCE
from pd_core.mlops.drift import Monitor, Reference
from pd_core.mlops.registry import BUNDLE, CHAMPION, Version, fetch, find, load_model
from pd_core.mlops.serving.requests import Limits, bad, gone
from pd_core.mlops.serving.worker import Judged, Power, Worker

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 60.0  # loading takes a second of processor, which the requests miss


@dataclass(frozen=True, eq=False)
class Served:
    """A loaded version.

    Attributes:
        version: the registry's entry.
        worker: its process.
        monitor: compares its answers with those to training images; None without these.
    """

    version: Version
    worker: Worker
    monitor: Monitor | None = None


class Ranking(NamedTuple):
    """The answer to an image: the probability of every class (C,), and the version's."""

    probabilities: NDArray[np.float32]
    served: Served

    def best(self, top: int) -> list[dict[str, Any]]:
        """Return the likeliest classes, as `{"name": ..., "probability": ...}`."""
        order = (-self.probabilities).argsort(kind="stable")[:top]
        names = self.served.worker.facts.names
        return [
            {"name": names[label], "probability": float(self.probabilities[label])}
            for label in order.tolist()
        ]


class Keeper:
    """Holds the active version, and replaces it by a newer one.

    Attributes:
        current: the active version; each request takes it once, and stays with it.
        taken_over: how many versions took over since the start.
    """

    def __init__(
        self,
        current: Served,
        *,
        find: Callable[[], Version],
        load: Callable[[Version], Served],
    ) -> None:
        """Start with a loaded version; `find` and `load` a newer one are called in a thread."""
        self.current = current
        self.taken_over = 0
        self._find = find
        self._load = load
        self._trouble = ""
        self._failed: dict[int, float] = {}  # version -> when it may be tried again

    async def follow(self, every: float) -> None:
        """Look every so many seconds whether another version is meant, until cancelled."""
        while True:
            await asyncio.sleep(every)
            await self.look()

    async def look(self) -> None:
        """Take over another version, if one is meant; trouble is logged, and the old one stays."""
        try:
            meant = await asyncio.to_thread(self._find)
            await self._take(meant)
            self._trouble = ""
        except PdError as error:
            self._tell(f"{error}")
        except Exception as error:
            self._tell(f"{type(error).__name__}: {error}")

    async def _take(self, meant: Version) -> None:
        now = self.current.version
        same = (meant.name, meant.number) == (now.name, now.number)
        if same and not self.current.worker.broken:
            if meant != now:  # its aliases or tags are others
                self.current = replace(self.current, version=meant)
            return
        if time.monotonic() < self._failed.get(meant.number, 0.0):
            return
        self._failed[meant.number] = time.monotonic() + _RETRY_SECONDS
        try:
            self.current = await asyncio.to_thread(self._load, meant)
        except PdError as error:
            raise PdError(f"version {meant.number} is not taken: {error}") from None
        del self._failed[meant.number]
        _LOG.info("version %d took over from version %d", meant.number, now.number)
        self.taken_over += 1

    def _tell(self, trouble: str) -> None:
        """Log what is wrong, once."""
        if trouble != self._trouble:
            _LOG.warning("version %d goes on answering: %s", self.current.version.number, trouble)
        self._trouble = trouble


def keep(store: str, reference: str, power: Power) -> Keeper:
    """Load the version that a reference names, to be followed from then on.

    The reference is a data set, for its champion, or as `greek@challenger`, `greek/3`.

    Raises:
        UnknownName: there is no such model, alias or version.
        PdError: it cannot be had or loaded.
    """
    wanted = partial(find, store, reference, default=CHAMPION)
    loaded = partial(load, store, power=power)
    return Keeper(loaded(wanted()), find=wanted, load=loaded)


def load(store: str, version: Version, power: Power) -> Served:
    """Load a version into a process.

    Raises:
        PdError: it cannot be had or loaded.
    """
    with TemporaryDirectory() as folder:
        model = fetch(store, version, Path(folder))
        worker = Worker(partial(load_model, model), power)
        reference = model / BUNDLE / REFERENCE
        known = Reference.load(reference) if reference.is_file() else None
    monitor = Monitor(known, worker.facts.names) if known is not None else None
    return Served(version, worker, monitor)


class _Waiting(NamedTuple):
    served: Served
    picture: bytes
    answer: asyncio.Future[Ranking | str]  # or why it is no picture


class Engine:
    """Makes batches of the images that wait; all of it happens in the event loop's thread."""

    def __init__(self, limits: Limits, *, on_batch: Callable[[int], None] = lambda _: None) -> None:
        """Start without work; `on_batch` is called with the size of every batch."""
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
            detail = f"no answer within {self._limits.answer_seconds:g} seconds; try again"
            raise HTTPException(504, detail, headers={"Retry-After": "1"}) from None
        except BrokenProcessPool:
            raise gone() from None
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
        raise bad(f"picture {place}: {answer}" if count > 1 else answer)
    return answer
