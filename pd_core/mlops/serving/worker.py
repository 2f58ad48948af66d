"""A student in a process of its own, which decodes pictures and classifies them.

So the threads that talk to clients never wait for torch, a picture that brings a decoder down
takes no connection with it, and the memory of a version that was replaced is free at once.

Shapes: B pictures, G of them readable, S pixels, C classes, D features.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pd_core.core.errors import BadArtifact

if TYPE_CHECKING:
    from pd_core.models.portable.student import PortableStudent

_WORTH_SECONDS = 0.02  # for one picture: below it, more threads cost more than they give
_QUICK_BYTES = 2**18
_TRIES = 5  # the fastest counts: a busy machine makes some slow


class Facts(NamedTuple):
    """Class names, S and description of a student."""

    names: tuple[str, ...]
    image_size: int
    info: Mapping[str, Any]


class Judged(NamedTuple):
    """A student's answers to B pictures.

    Attributes:
        reasons: B; why an image is not readable, "" if it is.
        probabilities: (G, C), of the others.
        features: (G, D).
    """

    reasons: tuple[str, ...]
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Power:
    """Limits of the process.

    Attributes:
        pixels: of an image.
        cores: threads that decode.
        threads: of the model; 0 for one, or for all cores if an image is much work.
    """

    pixels: int = 50_000_000  # 150 MB decoded, in each of the threads
    cores: int = os.cpu_count() or 1
    threads: int = 0


class Worker:
    """The process, seen from outside; it ends when nobody holds this any more.

    Attributes:
        facts: about its student.
    """

    def __init__(self, load: Callable[[], PortableStudent], power: Power) -> None:
        """Start the process and load the student there; `load` has to be importable there.

        Raises:
            PdError: what `load` raised.
            BadArtifact: the process ended meanwhile.
        """
        self._process = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_stay_with_parent
        )
        self.broken = False
        try:
            self.facts = self._process.submit(_load, load, power).result()
        except BrokenProcessPool:
            raise BadArtifact(
                "the model's process ended while it was loaded; see that there is memory enough"
            ) from None

    async def judge(self, pictures: Sequence[bytes]) -> Judged:
        """Classify pictures together.

        Raises:
            BrokenProcessPool: the process is no more; so is this worker.
        """
        return await self.call(_judge, pictures)

    async def call(
        self, function: Callable[[Sequence[bytes]], Judged], pictures: Sequence[bytes]
    ) -> Judged:
        """Call a function in the process; see `judge`."""
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._process, function, pictures)
        except BrokenProcessPool:
            self.broken = True
            raise


# From here on: in the process.


class _Inside(NamedTuple):
    student: PortableStudent
    power: Power
    decoders: ThreadPoolExecutor


_inside: _Inside


def _stay_with_parent() -> None:
    """End with the service, however that ends; Ctrl-C is for the service to see to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")  # Pillow's, about the pictures of others

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _load(load: Callable[[], PortableStudent], power: Power) -> Facts:
    global _inside  # noqa: PLW0603 the process has nothing else
    student = load()
    _warm_up(student, power)
    _inside = _Inside(student, power, ThreadPoolExecutor(power.cores))
    return Facts(student.names, student.image_size, dict(student.info))


def _warm_up(student: PortableStudent, power: Power) -> None:
    """Use the student once, and choose the number of threads."""
    import torch

    picture = np.zeros((1, student.image_size, student.image_size, 3), np.uint8)
    torch.set_num_threads(power.threads or 1)
    seconds = []
    for _ in range(_TRIES):
        begun = time.perf_counter()
        student.answers(picture)
        seconds.append(time.perf_counter() - begun)
    if not power.threads and min(seconds) > _WORTH_SECONDS:
        torch.set_num_threads(power.cores)


def decoded(pictures: Sequence[bytes]) -> tuple[tuple[str, ...], list[NDArray[np.uint8]]]:
    """Decode B pictures: the reasons why some are none, B, and the G others (S, S, 3)."""
    # With little to decode, threads would only be in each other's way.
    quick = sum(map(len, pictures)) < _QUICK_BYTES
    results = list((map if quick else _inside.decoders.map)(_crop, pictures))
    reasons = tuple(result if isinstance(result, str) else "" for result in results)
    return reasons, [result for result in results if not isinstance(result, str)]


def _judge(pictures: Sequence[bytes]) -> Judged:
    reasons, crops = decoded(pictures)
    if not crops:
        nothing = np.zeros((0, 0), np.float32)
        return Judged(reasons, nothing, nothing)
    answers = _inside.student.answers(np.stack(crops))
    return Judged(reasons, answers.probabilities, answers.features)


def _crop(picture: bytes) -> NDArray[np.uint8] | str:
    try:
        return _inside.student.crop(picture, most_pixels=_inside.power.pixels)
    except ValueError as error:
        return " ".join(str(error).split()) or "it is no picture"
