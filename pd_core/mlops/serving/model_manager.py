"""Active model of the service, and batching of the images that it classifies.

The model is loaded from the registry, and replaced when its alias moves. No request waits for a
batch to fill: as soon as the model's process is free, it receives all images in the queue. The more
requests come, the larger the batches; a full one is sent ahead, so that the process never waits.
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
from pd_core.mlops.registry import (
    BUNDLE,
    CHAMPION,
    RegisteredPrecision,
    Version,
    fetch,
    find,
    in_precision,
    load_model,
    versions,
)
from pd_core.mlops.registry.promotion import set_by_hand
from pd_core.mlops.serving.requests import Limits, bad_request, unavailable
from pd_core.mlops.serving.worker import Resources, Worker

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 60.0  # loading takes a second of CPU time from the requests


def process_ended() -> HTTPException:
    """Make the error for a request while the model's process is restarted."""
    return unavailable("the model's process has ended and is started again", retry_after=5)


@dataclass(frozen=True, eq=False)
class ActiveModel:
    """A loaded version.

    Attributes:
        version: the registry's entry.
        worker: its process.
        monitor: compares its images with the training images; None without a reference.
    """

    version: Version
    worker: Worker
    monitor: Monitor | None = None


class Ranking(NamedTuple):
    """Probability of every class for an image (C,), and the model."""

    probabilities: NDArray[np.float32]
    model: ActiveModel

    def best(self, top: int) -> list[dict[str, Any]]:
        """Return the most probable classes, as `{"name": ..., "probability": ...}`."""
        order = (-self.probabilities).argsort(kind="stable")[:top]
        names = self.model.worker.facts.names
        return [
            {"name": names[label], "probability": float(self.probabilities[label])}
            for label in order.tolist()
        ]


class ModelManager:
    """Holder of the active model, which it replaces when the registry has another one.

    Attributes:
        current: the active model; a request uses the same one from start to end.
        replacements: number of versions that took over since the start.
    """

    def __init__(
        self,
        current: ActiveModel,
        *,
        find: Callable[[], Version],
        load: Callable[[Version], ActiveModel],
    ) -> None:
        """Start with a loaded version; `find` and `load` are called in a thread."""
        self.current = current
        self.replacements = 0
        self._find = find
        self._load = load
        self._problem = ""
        self._retry_at: dict[int, float] = {}  # by version

    async def poll(self, seconds: float) -> None:
        """Call `update` every so many seconds, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            await self.update()

    async def update(self) -> None:
        """Activate the registry's version; on an error log it, and keep the current one."""
        problem = ""
        try:
            await self._activate(await asyncio.to_thread(self._find))
        except PdError as error:
            problem = str(error)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem and problem != self._problem:
            _LOG.warning("version %d stays active: %s", self.current.version.number, problem)
        self._problem = problem

    async def _activate(self, version: Version) -> None:
        now = self.current.version
        same = (version.name, version.number) == (now.name, now.number)
        if same and not self.current.worker.broken:
            if version != now:  # it has other aliases or tags
                self.current = replace(self.current, version=version)
            return
        if time.monotonic() < self._retry_at.get(version.number, 0.0):
            return
        self._retry_at[version.number] = time.monotonic() + _RETRY_SECONDS
        try:
            self.current = await asyncio.to_thread(self._load, version)
        except PdError as error:
            raise PdError(f"version {version.number} cannot be activated: {error}") from None
        del self._retry_at[version.number]
        _LOG.info("version %d took over from version %d", version.number, now.number)
        self.replacements += 1


def open_model(
    store: str,
    reference: str,
    resources: Resources,
    precision: RegisteredPrecision | None = None,
) -> ModelManager:
    """Load the version that a reference names, and follow the reference from then on.

    The reference is a data set, for its champion, or as `greek@challenger`, `greek/3`. With a
    precision the int8 version of that version, or the original of an int8 version, takes its place.

    Raises:
        UnknownName: there is no such model, alias or version.
        PdError: it cannot be fetched or loaded.
    """

    def find_version() -> Version:
        version = find(store, reference, default=CHAMPION)
        return version if precision is None else in_precision(store, version, precision)

    load_version = partial(load, store, resources=resources)
    return ModelManager(load_version(find_version()), find=find_version, load=load_version)


def load(store: str, version: Version, resources: Resources) -> ActiveModel:
    """Load a version into a process.

    Raises:
        PdError: it cannot be fetched or loaded.
    """
    by_hand = set_by_hand(versions(store, version.name))
    if by_hand and by_hand.number == version.number:
        _LOG.warning("version %d was made champion by hand, past the gate", version.number)
    with TemporaryDirectory() as folder:
        model = fetch(store, version, Path(folder))
        worker = Worker(partial(load_model, model), resources)
        file = model / BUNDLE / REFERENCE
        monitor = Monitor(Reference.load(file), worker.facts.names) if file.is_file() else None
    return ActiveModel(version, worker, monitor)


class _Item(NamedTuple):
    model: ActiveModel
    image: bytes
    result: asyncio.Future[Ranking | str]  # or the reason why the image is not readable


class Batcher:
    """Queue of images that are classified in batches, within the event loop's thread."""

    def __init__(self, limits: Limits, *, on_batch: Callable[[int], None] = lambda _: None) -> None:
        """Start with an empty queue; `on_batch` is called with the size of every batch."""
        self._limits = limits
        self._on_batch = on_batch
        self._queue: deque[_Item] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def classify(self, model: ActiveModel, images: Sequence[bytes]) -> list[Ranking]:
        """Classify the images of one request, all by the same model.

        Raises:
            HTTPException: 400, an image is not readable, by its index if there are several; 503
                after the end of the model's process; 504.
        """
        loop = asyncio.get_running_loop()
        items = [_Item(model, image, loop.create_future()) for image in images]
        self._queue.extend(items)
        self._submit()
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                results = await asyncio.gather(*(item.result for item in items))
        except TimeoutError:
            reason = f"no result within {self._limits.answer_seconds:g} seconds; try again"
            raise HTTPException(504, reason, headers={"Retry-After": "1"}) from None
        except BrokenProcessPool:
            raise process_ended() from None
        rankings = []
        for index, result in enumerate(results):
            if isinstance(result, str):
                raise bad_request(f"image {index}: {result}" if len(results) > 1 else result)
            rankings.append(result)
        return rankings

    def _submit(self) -> None:
        """Send batches: one if the process is free, a full one ahead of time."""
        while self._queue and (
            not self._running
            or (len(self._running) == 1 and len(self._queue) >= self._limits.batch)
        ):
            if batch := self._next_batch():
                self._on_batch(len(batch))
                task = asyncio.create_task(_run(batch))
                self._running.add(task)
                task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._submit()

    def _next_batch(self) -> list[_Item]:
        """Take a batch for one model off the queue."""
        batch: list[_Item] = []
        while self._queue and len(batch) < self._limits.batch:
            if batch and self._queue[0].model is not batch[0].model:
                break
            item = self._queue.popleft()
            if not item.result.done():  # its client may have given up
                batch.append(item)
        return batch


async def _run(batch: Sequence[_Item]) -> None:
    model = batch[0].model
    try:
        output = await model.worker.predict([item.image for item in batch])
        if model.monitor is not None and len(output.features):
            model.monitor.observe(output.probabilities, output.features)
        rows = iter(output.probabilities)
        for item, reason in zip(batch, output.reasons, strict=True):
            result = reason or Ranking(next(rows), model)
            if not item.result.done():
                item.result.set_result(result)
    except Exception as error:  # of any kind: these requests fail, others go on
        for item in batch:
            if not item.result.done():
                item.result.set_exception(error)
