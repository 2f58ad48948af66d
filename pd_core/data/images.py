"""Pictures: stored in a folder or a zip, opened as RGB, turned into reproducible batches.

The transforms are CLIP's and draw the random numbers that torchvision's own classes draw. Every
view of a picture is seeded by (seed, epoch, index), so batches depend neither on what ran before
nor on the number of worker processes.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)

from pd_core.errors import BadData, MissingFile

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures CLIP was trained on, per channel
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Batch = tuple[Tensor, Tensor]  # positions in the list (B,), pictures (B, 3, H, W)

# Enough for every embedded data set (a 32x32 picture takes 3 KiB), little beside a CLIP model.
_KEEP_BYTES = 256 * 2**20

# What PIL and zipfile raise for a file that is not the picture it claims to be.
_UNREADABLE = (
    EOFError,
    Image.DecompressionBombError,
    NotImplementedError,
    OSError,
    SyntaxError,
    ValueError,
    zipfile.BadZipFile,
)


class ImageStore:
    """The pictures of one data set, in a folder or in one zip file.

    Decoded pictures stay in memory until ``keep_bytes`` of them are held; the rest is read anew.
    A store may be sent to other processes: each opens the zip itself and keeps its own pictures.
    """

    def __init__(self, root: Path, *, keep_bytes: int = _KEEP_BYTES) -> None:
        """Point at the pictures; nothing is read yet.

        Args:
            root: Folder, or ``.zip`` file.
            keep_bytes: Most bytes of decoded pictures to hold.

        Raises:
            MissingFile: There is no such folder or zip.
        """
        is_zip = root.suffix == ".zip"
        if not (root.is_file() if is_zip else root.is_dir()):
            kind = "zip file" if is_zip else "folder"
            raise MissingFile(f"no image {kind} at '{root}': put the pictures there")
        self.root = root
        self._is_zip = is_zip
        self._keep_bytes = keep_bytes
        self._kept: dict[str, Image.Image] = {}
        self._kept_bytes = 0
        self._zip: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open zip and the kept pictures."""
        return {**self.__dict__, "_kept": {}, "_kept_bytes": 0, "_zip": None}

    def open(self, path: str) -> Image.Image:
        """Decode one picture; do not draw into it, it may be kept.

        Args:
            path: Path below the root, with forward slashes.

        Returns:
            The picture in RGB.

        Raises:
            MissingFile: There is no such file.
            BadData: The file is no picture, or a damaged one.
        """
        if path in self._kept:
            return self._kept[path]
        try:
            with self._stream(path) as stream, Image.open(stream) as image:
                picture = image.convert("RGB")
        except MissingFile:
            raise
        except _UNREADABLE as error:
            raise BadData(
                f"'{self.root / path}' is not a readable picture ({error}): replace the file"
            ) from error
        size = 3 * picture.width * picture.height
        if self._kept_bytes + size <= self._keep_bytes:
            self._kept[path] = picture
            self._kept_bytes += size
        return picture

    def _stream(self, path: str) -> IO[bytes]:
        """Open a file's bytes, from wherever the pictures are."""
        missing = f"no picture '{path}' in '{self.root}': restore it, or leave it out of the split"
        if not self._is_zip:
            file = self.root / path
            if not file.is_file():
                raise MissingFile(missing)
            return file.open("rb")
        try:
            return self._archive().open(path)
        except KeyError:
            raise MissingFile(missing) from None

    def _archive(self) -> zipfile.ZipFile:
        """Return this process's own handle: a forked one shares its position with the parent's."""
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = (os.getpid(), zipfile.ZipFile(self.root))
        return self._zip[1]


@dataclass(frozen=True)
class Transform:
    """A picture's way to a tensor: cropping and resizing, then CLIP's normalisation.

    Attributes:
        crop: From an RGB picture to one of the model's size; may draw from torch's global
            generator.
    """

    crop: Callable[[Image.Image], Image.Image]

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the picture as a normalised tensor (3, H, W)."""
        return normalise([self.crop(image)])[0]


def train_transform(size: int, *, scale: tuple[float, float], flip: bool) -> Transform:
    """Make the random transform for training.

    Args:
        size: Height and width of the result, pixels.
        scale: Least and largest area of the crop, as a share of the picture.
        flip: Whether half of the views are mirrored.
    """
    crop = RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC)
    return Transform(Compose([crop, RandomHorizontalFlip()]) if flip else crop)


def eval_transform(size: int) -> Transform:
    """Make the fixed transform: shorter side to ``size`` pixels, then the centre square."""
    resize = Resize(size, interpolation=InterpolationMode.BICUBIC)
    return Transform(Compose([resize, CenterCrop(size)]))


def normalise(images: Sequence[Image.Image]) -> Tensor:
    """Stack RGB pictures of one size and apply CLIP's normalisation: (B, 3, H, W), fp32."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # (B, H, W, 3)
    values = pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)
    mean = torch.tensor(CLIP_MEAN).view(3, 1, 1)
    std = torch.tensor(CLIP_STD).view(3, 1, 1)
    return values.sub_(mean).div_(std)


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
    """The batches of a list of pictures, epoch by epoch or once in order."""

    def __init__(
        self,
        store: ImageStore,
        paths: Sequence[str],
        transform: Transform,
        *,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        """Describe the batches; nothing is read yet.

        Args:
            store: Where the pictures are.
            paths: Pictures, by path in the store.
            transform: What turns a picture into a tensor.
            batch_size: Pictures per batch.
            seed: Decides order and views, together with the epoch.
            workers: Processes that decode; 0 decodes in this one. The batches are the same.

        Raises:
            BadData: The list is empty.
        """
        if not paths:
            raise BadData(f"the list of pictures from '{store.root}' is empty: check the split")
        self._batch_size = batch_size
        self._seed = seed
        self._count = len(paths)
        self._views = _Views(store, tuple(paths), transform, seed)
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

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield an epoch's batches, shuffled, without the last one if it is not full.

        Yields:
            Positions in the list (B,), int64, and random views (B, 3, H, W), fp32.

        Raises:
            BadData: A picture is damaged, or there are fewer pictures than a batch takes.
            MissingFile: A picture is missing.
        """
        if self._count < self._batch_size:
            raise BadData(
                f"{self._count} training pictures do not fill a batch of {self._batch_size}: "
                f"set batch_size to at most {self._count}"
            )
        generator = torch.Generator().manual_seed(_hash(self._seed, epoch, "order"))
        order = torch.randperm(self._count, generator=generator).tolist()
        return self._fetch(epoch, order[: self.steps * self._batch_size])

    def in_order(self) -> Iterator[Batch]:
        """Yield every picture once, in the list's order; the last batch may be smaller.

        Yields:
            Positions in the list (B,), int64, and pictures (B, 3, H, W), fp32.

        Raises:
            BadData: A picture is damaged.
            MissingFile: A picture is missing.
        """
        return self._fetch(0, list(range(self._count)))

    def _fetch(self, epoch: int, order: list[int]) -> Iterator[Batch]:
        size = self._batch_size
        requests = [
            [(epoch, index) for index in order[start : start + size]]
            for start in range(0, len(order), size)
        ]
        self._queue.requests = requests
        answers = map(self._views.__getitems__, requests) if self._loader is None else self._loader
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
            yield answer


_Request = list[tuple[int, int]]  # (epoch, position in the list), one per picture of a batch


class _Views(Dataset[Batch]):
    """Answers a request with a batch, or with the error that a picture caused.

    An error is returned, since a worker process would turn a raised one into a page of text.
    """

    def __init__(
        self, store: ImageStore, paths: tuple[str, ...], transform: Transform, seed: int
    ) -> None:
        self._store = store
        self._paths = paths
        self._transform = transform
        self._seed = seed

    def __getitems__(self, request: _Request) -> Batch | BadData | MissingFile:
        try:
            pictures = [self._store.open(self._paths[index]) for _, index in request]
        except (BadData, MissingFile) as error:
            return error
        crops = []
        with _seeded_views() as reseed:
            for (epoch, index), picture in zip(request, pictures, strict=True):
                reseed(_hash(self._seed, epoch, index))
                crops.append(self._transform.crop(picture))
        return torch.tensor([index for _, index in request]), normalise(crops)


class _Queue:
    """The requests of the coming epoch, for a loader whose workers outlive an epoch."""

    def __init__(self) -> None:
        self.requests: list[_Request] = []

    def __iter__(self) -> Iterator[_Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


def _loader(views: _Views, queue: _Queue, workers: int) -> Iterable[Batch]:
    return DataLoader(
        views,
        batch_sampler=queue,
        num_workers=workers,
        collate_fn=_unchanged,
        persistent_workers=True,
        generator=torch.Generator(),  # otherwise every epoch takes a number from the global one
    )


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
