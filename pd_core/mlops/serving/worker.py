"""Student in a process of its own, which decodes and classifies images.

So the threads that talk to clients never wait for torch, an image that crashes a decoder closes no
connection, and the memory of a replaced version is free at once.

Shapes: B images, G of them readable, S pixels, C classes, D features.
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
from pd_core.models.portable.pictures import FORMATS

if TYPE_CHECKING:
    from pd_core.models.portable.student import PortableStudent

_WORTH_SECONDS = 0.02  # for one image: below it, more threads cost more than they give
_QUICK_BYTES = 2**18
_TRIES = 5  # the fastest counts: a busy machine makes some slow


class StudentInfo(NamedTuple):
    """Class names, S and description of a student."""

    names: tuple[str, ...]
    image_size: int
    info: Mapping[str, Any]


class Predictions(NamedTuple):
    """Output of a student for B images.

    Attributes:
        reasons: B; why an image is not readable, "" if it is.
        probabilities: (G, C), of the readable images.
        features: (G, D).
    """

    reasons: tuple[str, ...]
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Resources:
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
    """Handle of the process, which ends with the last reference to it.

    Attributes:
        facts: names, size and description of its student.
        broken: True once the process has ended.
    """

    def __init__(self, load: Callable[[], PortableStudent], resources: Resources) -> None:
        """Start the process and load the student there; `load` has to be importable there.

        Raises:
            PdError: raised by `load`.
            BadArtifact: the process ended meanwhile.
        """
        self._process = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
        )
        self.broken = False
        try:
            self.facts = self._process.submit(_load, load, resources).result()
        except BrokenProcessPool:
            raise BadArtifact(
                "the model's process ended while loading; free memory for it"
            ) from None

    async def predict(self, images: Sequence[bytes]) -> Predictions:
        """Classify images together.

        Raises:
            BrokenProcessPool: the process has ended.
        """
        return await self.call(_predict, images)

    async def call(
        self, function: Callable[[Sequence[bytes]], Predictions], images: Sequence[bytes]
    ) -> Predictions:
        """Call a function in the process; see `predict`."""
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._process, function, images)
        except BrokenProcessPool:
            self.broken = True
            raise


# From here on: in the process.


class _State(NamedTuple):
    student: PortableStudent
    resources: Resources
    decoders: ThreadPoolExecutor


_state: _State


def _end_with_parent() -> None:
    """End with the service, however that ends; Ctrl-C is handled by the service."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")  # Pillow's, about uploaded images

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _load(load: Callable[[], PortableStudent], resources: Resources) -> StudentInfo:
    global _state  # noqa: PLW0603 the process has nothing else
    student = load()
    _warm_up(student, resources)
    _state = _State(student, resources, ThreadPoolExecutor(resources.cores))
    return StudentInfo(student.names, student.image_size, dict(student.info))


def _warm_up(student: PortableStudent, resources: Resources) -> None:
    """Run the student once, and choose the number of threads."""
    image = np.zeros((1, student.image_size, student.image_size, 3), np.uint8)
    _use_threads(student, resources.threads or 1)
    seconds = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        student.answers(image)
        seconds.append(time.perf_counter() - start)
    if not resources.threads and min(seconds) > _WORTH_SECONDS:
        _use_threads(student, resources.cores)


def _use_threads(student: PortableStudent, count: int) -> None:
    """Set the number of threads of the model; versions of earlier releases have no runtime."""
    import torch

    torch.set_num_threads(count)
    if hasattr(student, "runtime"):
        student.runtime.use_threads(count)


def decode(images: Sequence[bytes]) -> tuple[tuple[str, ...], list[NDArray[np.uint8]]]:
    """Decode B images; return the reason for each that is not readable, and G crops (S, S, 3)."""
    # For small images threads cost more than they give.
    quick = sum(map(len, images)) < _QUICK_BYTES
    results = list((map if quick else _state.decoders.map)(_crop, images))
    reasons = tuple(result if isinstance(result, str) else "" for result in results)
    return reasons, [result for result in results if not isinstance(result, str)]


def _predict(images: Sequence[bytes]) -> Predictions:
    reasons, crops = decode(images)
    if not crops:
        nothing = np.zeros((0, 0), np.float32)
        return Predictions(reasons, nothing, nothing)
    answers = _state.student.answers(np.stack(crops))
    return Predictions(reasons, answers.probabilities, answers.features)


def _crop(image: bytes) -> NDArray[np.uint8] | str:
    try:
        return _state.student.crop(image, most_pixels=_state.resources.pixels)
    except ValueError as error:
        cause = " ".join(str(error).partition("; give ")[0].split())  # the rest is for Python
        most = _state.resources.pixels
        return f"{cause}; send a file of at most {most} pixels, of {', '.join(FORMATS)}"
