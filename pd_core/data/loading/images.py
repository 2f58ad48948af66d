"""Reproducible batches of images, transformed to CLIP's input.

Every view of an image is seeded by (seed, epoch, index), so batches depend neither on what ran
before nor on the number of worker processes. The random transforms draw the numbers that
torchvision's own classes draw.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import (
    Compose,
    InterpolationMode,
    RandomHorizontalFlip,
    RandomResizedCrop,
)

from pd_core.core.errors import BadData, MissingFile
from pd_core.core.options import OnCorrupt
from pd_core.data.loading.decode import ImageStore
from pd_core.models.portable.network import normalised
from pd_core.models.portable.pictures import centre_square
from pd_core.models.precision import to_device


class Batch(NamedTuple):
    """Views of a batch of pictures, and the key of these views.

    Attributes:
        indices: Positions in the list (B,), int64.
        images: Views (B, 3, H, W), fp32.
        epoch: That the views are of.
        number: Of the batch in its epoch, from 0.
    """

    indices: Tensor
    images: Tensor
    epoch: int
    number: int

    def to(self, device: torch.device) -> Batch:
        """Move positions and pictures to a device."""
        indices, images = (to_device(each, device) for each in (self.indices, self.images))
        return Batch(indices, images, self.epoch, self.number)


@dataclass(frozen=True)
class Transform:
    """A picture's way to a tensor: cropping and resizing, then CLIP's normalisation.

    Attributes:
        size: Height and width of the result, pixels.
        crop: From an RGB picture to one of the model's size; may draw from torch's global
            generator.
    """

    size: int
    crop: Callable[[Image.Image], Image.Image]

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the picture as a normalised tensor (3, H, W)."""
        return normalise([self.crop(image)])[0]


def train_transform(size: int, *, scale: tuple[float, float], flip: bool) -> Transform:
    """Make the random transform for training, to `size` x `size` pixels.

    Args:
        size: Of the result.
        scale: Least and largest area of the crop, as a share of the image.
        flip: Whether half of the views are mirrored.
    """
    crop = RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC)
    return Transform(size, Compose([crop, RandomHorizontalFlip()]) if flip else crop)


def eval_transform(size: int) -> Transform:
    """Make the fixed transform: shorter side to ``size`` pixels, then the centre square."""
    return Transform(size, partial(centre_square, size=size))


def normalise(images: Sequence[Image.Image]) -> Tensor:
    """Stack RGB pictures of one size and apply CLIP's normalisation: (B, 3, H, W), fp32."""
    return normalised(torch.from_numpy(np.stack([np.asarray(image) for image in images])))


@dataclass(frozen=True)
class Share:
    """The part of every batch that this process reads, where several train together.

    Attributes:
        part: From a batch's positions to those of this process, as many in all as there are.
        union: From positions found damaged to those that any process found so.
    """

    part: Callable[[Sequence[int]], Sequence[int]]
    union: Callable[[Iterable[int]], set[int]]


_WHOLE = Share(part=lambda positions: positions, union=set)


def view(transform: Transform, image: Image.Image, *, seed: int, epoch: int, index: int) -> Tensor:
    """Return one view of a picture, the same one whenever (seed, epoch, index) are the same.

    Torch's global generator is left as it was.

    Returns:
        Normalised tensor (3, H, W).
    """
    with _seeded_views() as reseed:
        reseed(_hash(seed, epoch, index))
        return transform(image)


class ImageBatches:
    """The batches of a list of pictures, epoch by epoch or once in order.

    Attributes:
        damaged: Positions of the damaged pictures found so far; they are not opened again.
    """

    def __init__(
        self,
        store: ImageStore,
        paths: Sequence[str],
        transform: Transform,
        *,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        on_corrupt: OnCorrupt = OnCorrupt.FAIL,
        share: Share = _WHOLE,
    ) -> None:
        """Describe the batches; nothing is read yet.

        Args:
            store: Where the pictures are.
            paths: Pictures, by path in the store.
            transform: What turns a picture into a tensor.
            batch_size: Pictures per batch.
            seed: Decides order and views, together with the epoch.
            workers: Processes that decode; 0 decodes in this one. The batches are the same.
            on_corrupt: Whether a damaged picture is an error, or left out of its batch. A missing
                one is always an error.
            share: What of each batch of an epoch is read here.

        Raises:
            BadData: The list is empty.
        """
        if not paths:
            raise BadData(f"the list of pictures from '{store.root}' is empty: check the split")
        self._batch_size = batch_size
        self._share = share
        self._seed = seed
        self._store = store
        self._count = len(paths)
        self._paths = tuple(paths)
        self.damaged: set[int] = set()
        self._left_out = 0
        self._views = _Views(store, self._paths, transform, seed, on_corrupt)
        self._queue = _Queue()
        self._loader = _loader(self._views, self._queue, workers) if workers else None

    @property
    def count(self) -> int:
        """Pictures in the list."""
        return self._count

    @property
    def steps(self) -> int:
        """Full batches in an epoch."""
        return self._count // self._batch_size

    @property
    def skipped(self) -> tuple[str, ...]:
        """Paths of the damaged pictures found so far, each once, in the list's order."""
        return tuple(dict.fromkeys(self._paths[index] for index in sorted(self.damaged)))

    @property
    def intact(self) -> list[int]:
        """Positions of the pictures that are not known to be damaged."""
        return [index for index in range(self._count) if index not in self.damaged]

    @property
    def left_out(self) -> int:
        """Damaged pictures of the last epoch that was gone through."""
        return self._left_out

    def names(self, indices: Sequence[int]) -> list[str]:
        """Return the paths of pictures by their positions in the list."""
        return [self._paths[index] for index in indices]

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches, shuffled, without the last one if it is not full.

        Of each batch there is this process's share. Where damaged pictures are skipped, their
        batches are smaller, and may be empty.

        Args:
            epoch: Decides order and views.
            start: So many of its first batches are left out.

        Yields:
            Batches of random views.

        Raises:
            BadData: A picture is damaged and not to be skipped, more than half are damaged, or
                there are fewer pictures than a batch takes.
            MissingFile: A picture is missing.
        """
        if self._count < self._batch_size:
            raise BadData(
                f"{self._count} training pictures do not fill a batch of {self._batch_size}: "
                f"set batch_size to at most {self._count}"
            )
        generator = torch.Generator().manual_seed(_hash(self._seed, epoch, "order"))
        order = torch.randperm(self._count, generator=generator).tolist()
        used = order[: self.steps * self._batch_size]
        batches = map(self._share.part, self._divided(used[start * self._batch_size :]))
        return self._counted(self._fetch(epoch, batches, start), used)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every picture once, in the list's order; the last batch may be smaller.

        Where damaged pictures are skipped, the others are those at ``intact``.

        Yields:
            Positions in the list (B,), int64, and pictures (B, 3, H, W), fp32.

        Raises:
            BadData: A picture is damaged and not to be skipped, or more than half are damaged.
            MissingFile: A picture is missing.
        """
        for batch in self._fetch(0, self._divided(range(self._count))):
            if len(batch.indices):
                yield batch.indices, batch.images

    def _counted(self, batches: Iterator[Batch], order: list[int]) -> Iterator[Batch]:
        yield from batches
        self._note(self._share.union(self.damaged))
        self._left_out = len(self.damaged.intersection(order))

    def _divided(self, order: Sequence[int]) -> Iterator[Sequence[int]]:
        size = self._batch_size
        return (order[start : start + size] for start in range(0, len(order), size))

    def _fetch(
        self, epoch: int, batches: Iterable[Sequence[int]], start: int = 0
    ) -> Iterator[Batch]:
        # A picture once found damaged stays out, so that epochs that come again are the same.
        left = ([index for index in batch if index not in self.damaged] for batch in batches)
        requests = [[(epoch, index) for index in batch] for batch in left]
        self._queue.requests = requests
        with _any_number_of_workers():
            answers = iter(
                map(self._views.__getitems__, requests) if self._loader is None else self._loader
            )
        numbers = itertools.count(start)  # enumerate would hold on to the last answer, see below
        for answer in answers:
            if isinstance(answer, Exception):
                try:
                    raise answer
                finally:
                    del answer  # as a cycle, error and frame, it would hold the workers for seconds
            self._note(answer.damaged)
            positions = torch.tensor(answer.positions, dtype=torch.int64)
            yield Batch(
                positions, normalised(torch.from_numpy(answer.pixels)), epoch, next(numbers)
            )

    def _note(self, damaged: Iterable[int]) -> None:
        """Remember damaged pictures, up to half of the list: then the list itself is wrong."""
        self.damaged.update(damaged)
        if 2 * len(self.damaged) > self._count:
            raise BadData(
                f"at least {len(self.damaged)} of {self._count} pictures in '{self._store.root}' "
                f"are damaged, such as '{self._paths[min(self.damaged)]}': too many to skip, "
                "restore the data set"
            )


_Request = list[tuple[int, int]]  # (epoch, position in the list), one per picture of a batch


class _Answer(NamedTuple):
    """A batch as it travels between processes.

    Its pixels are an array, since torch would put a tensor into shared memory, page by page, which
    takes more time than the pipe.
    """

    positions: list[int]
    pixels: NDArray[np.uint8]  # (B, H, W, 3)
    damaged: list[int]  # positions


class _Views(Dataset[_Answer]):
    """Answers a request with a batch, or with the error that a picture caused.

    An error is returned, since a worker process would turn a raised one into a page of text.
    """

    def __init__(
        self,
        store: ImageStore,
        paths: tuple[str, ...],
        transform: Transform,
        seed: int,
        on_corrupt: OnCorrupt,
    ) -> None:
        self._store = store
        self._paths = paths
        self._transform = transform
        self._seed = seed
        self._on_corrupt = on_corrupt

    def __getitems__(self, request: _Request) -> _Answer | BadData | MissingFile:
        positions, crops, damaged = [], [], []
        with _seeded_views() as reseed:
            for epoch, index in request:
                try:
                    picture = self._store.open(self._paths[index])
                except MissingFile as error:
                    return error
                except BadData as error:
                    if self._on_corrupt is OnCorrupt.FAIL:
                        return error
                    damaged.append(index)
                    continue
                reseed(_hash(self._seed, epoch, index))
                crops.append(np.asarray(self._transform.crop(picture)))
                positions.append(index)
        size = self._transform.size
        pixels = np.array(crops, np.uint8).reshape(-1, size, size, 3)
        return _Answer(positions, pixels, damaged)


class _Queue:
    """The requests of the coming epoch, for a loader whose workers outlive an epoch."""

    def __init__(self) -> None:
        self.requests: list[_Request] = []

    def __iter__(self) -> Iterator[_Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


def _loader(
    views: _Views, queue: _Queue, workers: int
) -> Iterable[_Answer | BadData | MissingFile]:
    with _any_number_of_workers():
        return DataLoader(
            views,
            batch_sampler=queue,
            num_workers=workers,
            collate_fn=_unchanged,
            persistent_workers=True,
            worker_init_fn=_obey_the_parent_only,
            generator=torch.Generator(),  # otherwise each epoch takes a number from the global one
        )


@contextmanager
def _any_number_of_workers() -> Iterator[None]:
    """Let there be more workers than cores without torch's page of text about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


def _obey_the_parent_only(_worker: int) -> None:
    """Let a SIGTERM pass that was sent to all: the parent may have its state to save first.

    It ends its workers itself, by a SIGTERM of its own.
    """
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says_so, daemon=True).start()


def _end_when_the_parent_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _unchanged(answer: Any) -> Any:
    return answer


def _hash(*parts: int | str) -> int:
    """Hash to 63 bits, equal on every machine and in every version of Python."""
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


@contextmanager
def _seeded_views() -> Iterator[Callable[[int], object]]:
    """Lend torch's global CPU generator, from which torchvision draws, and restore it.

    ``torch.manual_seed`` would also queue a call for every accelerator, which costs more than
    the view itself.
    """
    state = torch.get_rng_state()
    try:
        yield torch.default_generator.manual_seed
    finally:
        torch.set_rng_state(state)
