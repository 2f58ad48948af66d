"""Reproducible batches of normalised images.

Each view is seeded by (seed, epoch, index), so batches depend neither on earlier calls nor on the
number of workers. The random numbers are those that torchvision's transforms draw. Models of other
preprocessing see the same views, each at its own size and with its own normalisation.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import hflip, resized_crop

from pd_core.core.errors import BadData, MissingFile
from pd_core.core.options import OnCorrupt
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.paths import PathList
from pd_core.data.loading.regions import Regions, RegionTransform, random_region
from pd_core.data.loading.workers import Request, Workers
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.precision import to_device


class Batch(NamedTuple):
    """A batch of views, with its key."""

    indices: Tensor  # positions in the list, (B,) int64
    views: Mapping[Preprocess, Tensor]  # the same views for each model, (B, 3, S, S) fp32
    epoch: int
    number: int  # of the batch in its epoch, from 0

    @property
    def images(self) -> Tensor:
        """The views for the first model, (B, 3, S, S)."""
        return next(iter(self.views.values()))

    @property
    def nbytes(self) -> int:
        """Memory of the views."""
        if isinstance(self.views, Regions):
            return self.views.pixels.nbytes
        return sum(images.nbytes for images in self.views.values())

    def to(self, device: torch.device) -> Batch:
        """Move indices and views to a device."""
        views: Mapping[Preprocess, Tensor]
        if isinstance(self.views, Regions):
            views = self.views.to(device)
        else:
            views = {model: to_device(images, device) for model, images in self.views.items()}
        return self._replace(indices=to_device(self.indices, device), views=views)


Crop = Callable[[Image.Image], Sequence[Image.Image]]


@dataclass(frozen=True)
class Transform:
    """Cropping and resizing of an RGB image for one or more models, then their normalisation."""

    models: tuple[Preprocess, ...]
    crop: Crop  # one result for each model; may use torch's global generator

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the image for the first model as a normalised tensor (3, S, S)."""
        pixels = torch.from_numpy(np.stack([np.asarray(self.crop(image)[0])]))
        return self.models[0].normalise(pixels)[0]

    def arrays(self, image: Image.Image) -> list[NDArray[np.generic]]:
        """Return the pixels (S, S, 3) of an RGB image for each model."""
        return [np.asarray(crop) for crop in self.crop(image)]

    def pack(self, images: Sequence[Sequence[NDArray[np.generic]]]) -> list[NDArray[np.generic]]:
        """Unite the arrays of B images: pixels (B, S, S, 3) for each model."""
        return [
            np.array([arrays[number] for arrays in images], np.uint8).reshape(
                -1, *[model.size] * 2, 3
            )
            for number, model in enumerate(self.models)
        ]

    def views(self, packed: Sequence[NDArray[np.generic]]) -> dict[Preprocess, Tensor]:
        """Return the views of a batch for each model, (B, 3, S, S) fp32."""
        return {
            model: model.normalise(torch.from_numpy(pixels))
            for model, pixels in zip(self.models, packed, strict=True)
        }


def train_transform(*models: Preprocess, scale: tuple[float, float], flip: bool) -> Transform:
    """Make the random transform for training: all models see the same crop and flip.

    Args:
        models: Preprocessing of each.
        scale: Smallest and largest area of the crop, as fractions of the image.
        flip: If True, half of the views are flipped horizontally.
    """
    models = tuple(dict.fromkeys(models))
    return Transform(models, partial(_random_view, models=models, scale=scale, flip=flip))


def eval_transform(*models: Preprocess) -> Transform:
    """Make the transform for evaluation, with the resizing and cropping of each model."""
    models = tuple(dict.fromkeys(models))
    return Transform(models, partial(_evaluation_view, models=models))


def _random_view(
    image: Image.Image, *, models: Sequence[Preprocess], scale: tuple[float, float], flip: bool
) -> list[Image.Image]:
    *box, mirrored = random_region(image, scale=scale, flip=flip)
    crops = [
        resized_crop(image, *box, [model.size] * 2, InterpolationMode(model.interpolation))
        for model in models
    ]
    return [hflip(crop) for crop in crops] if mirrored else crops


def _evaluation_view(image: Image.Image, *, models: Sequence[Preprocess]) -> list[Image.Image]:
    return [model.crop(image) for model in models]


@dataclass(frozen=True)
class Share:
    """This process's part of each batch in distributed training.

    Attributes:
        part: Selects this process's positions of a batch.
        union: Unites the positions of corrupt images over all processes.
    """

    part: Callable[[Sequence[int]], Sequence[int]]
    union: Callable[[Iterable[int]], set[int]]


_WHOLE = Share(part=lambda positions: positions, union=set)


class ImageBatches:
    """Batches of an image list, by epoch or once in order.

    Attributes:
        corrupt: Positions of corrupt images seen so far; they are not opened again.
    """

    def __init__(
        self,
        store: ImageStore,
        paths: Sequence[str],
        transform: Transform | RegionTransform,
        *,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        on_corrupt: OnCorrupt = OnCorrupt.FAIL,
        share: Share = _WHOLE,
    ) -> None:
        """Set up batches; nothing is read yet.

        Args:
            store: Of the images.
            paths: Of the images in the store.
            transform: From an image to the views of each model.
            batch_size: Images per batch.
            seed: Of order and views.
            workers: Processes that decode; 0 for this one. Batches do not depend on it.
            on_corrupt: Whether a corrupt image is an error or skipped.
            share: This process's part of each batch of an epoch.

        Raises:
            BadData: The list is empty.
        """
        if not paths:
            raise BadData(f"the list of images in '{store.root}' is empty: check the split")
        self._batch_size = batch_size
        self._share = share
        self._seed = seed
        self._store = store
        self._count = len(paths)
        self._paths = PathList.of(paths)
        self._transform = transform
        self.corrupt: set[int] = set()
        self._left_out = 0
        self._views = _Views(store, self._paths, transform, seed, on_corrupt)
        self._workers = Workers(self._views, workers) if workers else None

    @property
    def models(self) -> tuple[Preprocess, ...]:
        """Preprocessing of the models that see the views."""
        return self._transform.models

    @property
    def batch_size(self) -> int:
        """Images per batch."""
        return self._batch_size

    @property
    def count(self) -> int:
        """Number of images in the list."""
        return self._count

    @property
    def steps(self) -> int:
        """Number of full batches in an epoch."""
        return self._count // self._batch_size

    @property
    def skipped(self) -> tuple[str, ...]:
        """Paths of the corrupt images seen so far, without duplicates, in the list's order."""
        return tuple(dict.fromkeys(self._paths[index] for index in sorted(self.corrupt)))

    @property
    def intact(self) -> list[int]:
        """Positions of the images not known to be corrupt."""
        return [index for index in range(self._count) if index not in self.corrupt]

    @property
    def left_out(self) -> int:
        """Number of corrupt images in the last complete epoch."""
        return self._left_out

    def names(self, indices: Sequence[int]) -> list[str]:
        """Return the paths of images by their positions in the list."""
        return [self._paths[index] for index in indices]

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the full batches of a shuffled epoch (this process's part), from number `start` on.

        Where corrupt images are skipped, batches are smaller and may be empty.

        Raises:
            BadData: An image is corrupt and not skipped, more than half are corrupt, or there are
                fewer images than a batch.
            MissingFile: An image is missing.
        """
        if self._count < self._batch_size:
            raise BadData(
                f"{self._count} training images do not fill a batch of {self._batch_size}: "
                f"set batch_size to at most {self._count}"
            )
        generator = torch.Generator().manual_seed(_hash(self._seed, epoch, "order"))
        order = torch.randperm(self._count, generator=generator)
        used, unused = order.tensor_split([self.steps * self._batch_size])
        batches = map(self._share.part, self._divided(used[start * self._batch_size :]))
        return self._counted(self._fetch(epoch, batches, start), unused.tolist())

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches of the whole list in order.

        The last batch may be smaller. Where corrupt images are skipped, the others are ``intact``.

        Raises:
            BadData: An image is corrupt and not skipped, or more than half are corrupt.
            MissingFile: An image is missing.
        """
        for batch in self._fetch(0, self._divided(torch.arange(self._count))):
            if len(batch.indices):
                yield batch

    def _counted(self, batches: Iterator[Batch], unused: list[int]) -> Iterator[Batch]:
        yield from batches
        self._note(self._share.union(self.corrupt))
        self._left_out = len(self.corrupt.difference(unused))

    def _divided(self, order: Tensor) -> Iterator[list[int]]:
        size = self._batch_size
        return (order[start : start + size].tolist() for start in range(0, len(order), size))

    def _fetch(
        self, epoch: int, batches: Iterable[Sequence[int]], start: int = 0
    ) -> Iterator[Batch]:
        # Known corrupt images are left out, so that resumed epochs are the same. The requests must
        # not refer to this object, since the cycle would hold the workers.
        corrupt = self.corrupt
        requests = (
            [(epoch, index) for index in batch if index not in corrupt] for batch in batches
        )
        results: Iterator[_Decoded | BadData | MissingFile] = (
            map(self._views.__getitems__, requests)
            if self._workers is None
            else self._workers.fetch(requests)
        )
        numbers = itertools.count(start)  # enumerate would hold on to the last result, see below
        for result in results:
            if isinstance(result, Exception):
                try:
                    raise result
                finally:
                    del result  # as a cycle of error and frame it would hold the workers
            self._note(result.corrupt)
            positions = torch.tensor(result.positions, dtype=torch.int64)
            views = self._transform.views(result.packed)
            yield Batch(positions, views, epoch, next(numbers))

    def _note(self, corrupt: Iterable[int]) -> None:
        """Record corrupt images; BadData if they are more than half of the list."""
        self.corrupt.update(corrupt)
        if 2 * len(self.corrupt) > self._count:
            raise BadData(
                f"at least {len(self.corrupt)} of {self._count} images in '{self._store.root}' are "
                f"corrupt, such as '{self._paths[min(self.corrupt)]}': too many to skip, restore "
                "the data set"
            )


class _Decoded(NamedTuple):
    """A batch as sent between processes; a tensor would go through slower shared memory."""

    positions: list[int]
    packed: list[NDArray[np.generic]]  # as the transform packs them
    corrupt: list[int]  # positions


class _Views(Dataset[_Decoded | BadData | MissingFile]):
    """Data set of batches; returns errors, since workers turn raised ones into a page of text."""

    def __init__(
        self,
        store: ImageStore,
        paths: PathList,
        transform: Transform | RegionTransform,
        seed: int,
        on_corrupt: OnCorrupt,
    ) -> None:
        self._store = store
        self._paths = paths
        self._transform = transform
        self._seed = seed
        self._on_corrupt = on_corrupt

    def __getitems__(self, request: Request) -> _Decoded | BadData | MissingFile:
        positions, arrays, corrupt = [], [], []
        with _seeded_views() as reseed:
            for epoch, index in request:
                try:
                    image = self._store.open(self._paths[index])
                except MissingFile as error:
                    return error
                except BadData as error:
                    if self._on_corrupt is OnCorrupt.FAIL:
                        return error
                    corrupt.append(index)
                    continue
                reseed(_hash(self._seed, epoch, index))
                arrays.append(self._transform.arrays(image))
                positions.append(index)
        return _Decoded(positions, self._transform.pack(arrays), corrupt)


def _hash(*parts: int | str) -> int:
    """Hash to 63 bits, the same on all machines and versions of Python."""
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


@contextmanager
def _seeded_views() -> Iterator[Callable[[int], object]]:
    """Yield the seeding of torch's global CPU generator, which torchvision uses, and restore it.

    ``torch.manual_seed`` also queues a call for each accelerator, which takes longer than a view.
    """
    state = torch.get_rng_state()
    try:
        yield torch.default_generator.manual_seed
    finally:
        torch.set_rng_state(state)
