"""The views of a training that come again: in another epoch, or in another run.

Shapes: B images of a batch, N of the list, K numbers that a frozen tower gives for each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from pd_core.core.artifacts import SUMS, file_hash
from pd_core.core.atomic import readable
from pd_core.core.errors import BadParams, Interrupted, MissingFile
from pd_core.core.options import OnCorrupt
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, Share, train_transform
from pd_core.models.precision import to_device
from pd_core.training.loop.checkpoints import Checkpoints
from pd_core.training.loop.distributed import count, from_first, gathered, is_first, part, union
from pd_core.training.loop.feature_cache import FeatureStore
from pd_core.training.loop.fit import Batches, OnProgress

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TrainingViews:
    """The batches of a training, and what decides every view in them.

    Attributes:
        batches: of the list of N images.
        decisive: as JSON has it; beside the epoch.
    """

    batches: ImageBatches
    decisive: Mapping[str, object]


def training_views(
    prepared: Path,
    root: Path,
    paths: Sequence[str],
    *,
    image_size: int,
    batch_size: int,
    crop_scale: tuple[float, float],
    flip: bool,
    seed: int,
    workers: int,
    on_corrupt: OnCorrupt,
) -> TrainingViews:
    """Describe the batches of a training; no image is read yet.

    Args:
        prepared: folder written by the stage `prepare`.
        root: folder or archive of the images.
        paths: of the N images, seen from there.
        image_size: of the views, pixels.
        batch_size: images per step.
        crop_scale: least and largest part of an image that a view shows.
        flip: whether half of the views are mirrored.
        seed: of order and views.
        workers: processes that decode; they change nothing.
        on_corrupt: what to do about a damaged image.

    Raises:
        BadData: the list is empty.
        BadParams: more processes train together than a batch has images.
        MissingFile: the data set is not prepared.
    """
    if count() > batch_size:
        raise BadParams(
            f"{count()} processes share batches of {batch_size}; set run.processes to at most"
            f" {batch_size}, or a larger batch_size"
        )
    transform = train_transform(image_size, scale=crop_scale, flip=flip)
    batches = ImageBatches(
        ImageStore(root), paths, transform,
        batch_size=batch_size, seed=seed, workers=workers, on_corrupt=on_corrupt,
        share=Share(part, union),
    )  # fmt: skip
    decisive = {
        "prepared": file_hash(prepared / SUMS), "paths": paths, "image_size": image_size,
        "batch_size": batch_size, "crop_scale": crop_scale, "flip": flip, "seed": seed,
        "on_corrupt": on_corrupt,
    }  # fmt: skip
    return TrainingViews(batches, decisive)


def distinct_epochs(epochs: int, view_epochs: int | None) -> int:
    """Return how many epochs have views of their own."""
    return epochs if view_epochs is None else min(epochs, view_epochs)


class Views:
    """Batches whose epochs come round again, with what frozen towers said about them.

    Attributes:
        place: which batch is out: epoch of the views, and number in it.
        answers: what was said about a batch, by place.
    """

    def __init__(self, batches: Batches, view_epochs: int | None) -> None:
        """Wrap batches.

        Args:
            batches: new views in every epoch.
            view_epochs: after so many epochs their batches come again; None: never.

        Raises:
            BadParams: `view_epochs` is not positive.
        """
        if view_epochs is not None and view_epochs < 1:
            raise BadParams(f"view_epochs = {view_epochs}; give a number from 1 upwards, or none")
        self._batches = batches
        self._period = view_epochs
        self.place = (0, 0)
        self.answers: dict[tuple[int, int], Tensor] = {}

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return self._batches.steps

    @property
    def damaged(self) -> set[int]:
        """Positions of the images found damaged so far."""
        return self._batches.damaged

    @property
    def left_out(self) -> int:
        """Damaged images of the last epoch that was gone through."""
        return self._batches.left_out

    def names(self, indices: Sequence[int]) -> list[str]:
        """Return the names of images by their positions in the list."""
        return self._batches.names(indices)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield positions (B,) and images (B, 3, H, W), and note the place of each batch."""
        source = epoch if self._period is None else (epoch - 1) % self._period + 1
        batches = self._batches.epoch(source, start=start)
        for number, batch in enumerate(batches, start=start):
            self.place = (source, number)
            yield batch

    def answer(self, compute: Callable[[], Tensor]) -> Tensor:
        """Return what is said about the batch that is out; it is kept if the batch comes again."""
        known = self.answers.get(self.place)
        if known is None:
            known = compute()
            if self._period is not None:
                self.answers[self.place] = known
        return known


class RecordedViews:
    """What a frozen tower gives for every view of a training, from a store.

    That works since a view is decided by seed, epoch and image alone.
    """

    def __init__(
        self, store: FeatureStore, place: Path, *, count: int, width: int, device: torch.device
    ) -> None:
        """Describe the record; nothing is read yet.

        Args:
            store: where it is kept.
            place: its folder there, which stands for all that decides it, the views included.
            count: N.
            width: K.
            device: where its numbers are needed.
        """
        self._store = store
        self._place = place
        self._count = count
        self._width = width
        self._device = device
        self._dtype = torch.float16 if store.half else torch.float32
        self._open: tuple[int, Tensor] | None = None

    @classmethod
    def of(
        cls,
        views: TrainingViews,
        store: FeatureStore,
        kind: str,
        decisive: Mapping[str, object],
        *,
        width: int,
        device: torch.device,
    ) -> Self:
        """Describe the record of a training's views.

        Args:
            views: what is looked at.
            store: where it is kept.
            kind: what is recorded, for people to read.
            decisive: what decides it beside the views.
            width: K.
            device: where its numbers are needed.
        """
        place = store.place(kind, {"views": views.decisive, "half": store.half, **decisive})
        return cls(store, place, count=views.batches.count, width=width, device=device)

    def missing(self, epochs: int) -> list[int]:
        """Return which of the first epochs are not recorded, or damaged."""
        every = range(1, epochs + 1)
        return [epoch for epoch in every if self._store.read(self._place, _name(epoch)) is None]

    def complete(
        self,
        epochs: int,
        batches: Batches,
        encoder: Callable[[], Encode],
        *,
        what: str,
        checkpoints: Checkpoints | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Record those of the first epochs that are missing; say beforehand what they will take.

        Args:
            epochs: with views of their own.
            batches: those of the training.
            encoder: makes what goes from images (B, 3, H, W) on the device to (B, K); called only
                if something is missing.
            what: that is, for the messages.
            checkpoints: say whether the run is to end; None: it is not.
            on_progress: called after each batch with batches done and batches in all.

        Raises:
            BadParams: it is more than the store may take.
            NoSpace: the disk has no room.
            Interrupted: the run was told to end; finished epochs are kept.
        """
        missing = from_first(lambda: self.missing(epochs))
        if not missing:
            return
        if is_first():
            self._make_room(epochs, what)
        stop = checkpoints.interrupted if checkpoints is not None else lambda: False
        self._record(missing, batches, encoder(), stop, on_progress)

    def _make_room(self, epochs: int, what: str) -> None:
        size = epochs * self._count * self._width * self._dtype.itemsize
        self._store.make_room(
            self._place, size, what=what, remedy="set view_epochs, or have them computed online"
        )
        self._store.note(
            f"records {what}: {epochs} epochs of {self._count} images, {self._width} numbers each,"
            f" {readable(size)} in '{self._place}'"
        )

    @torch.no_grad()
    def _record(
        self,
        epochs: Sequence[int],
        batches: Batches,
        encode: Encode,
        interrupted: Callable[[], bool],
        on_progress: OnProgress | None,
    ) -> None:
        """Go through epochs as the training will, and store what the tower gives."""
        total = len(epochs) * batches.steps
        for number, epoch in enumerate(epochs):
            # An image that no batch shows has no numbers, and must not be asked for.
            table = torch.full((self._count, self._width), torch.nan, dtype=self._dtype)
            for step, (indices, images) in enumerate(batches.epoch(epoch), start=1):
                shown = gathered(indices)
                if len(shown):
                    numbers = gathered(encode(to_device(images, self._device)))
                    table[shown] = numbers.cpu().to(self._dtype)
                if on_progress is not None:
                    on_progress(number * batches.steps + step, total)
                if interrupted():
                    raise Interrupted(
                        f"told to end while views of epoch {epoch} were recorded; start the same"
                        " command again to go on with this epoch"
                    )
            from_first(partial(self._store.write, self._place, _name(epoch), table))

    def at(self, epoch: int, indices: Tensor) -> Tensor:
        """Return the numbers of images in an epoch.

        Args:
            epoch: of the views.
            indices: (B,), on the device.

        Returns:
            (B, K), fp32, on the device.

        Raises:
            MissingFile: the epoch is not recorded, or not any more.
        """
        if self._open is None or self._open[0] != epoch:
            table = self._store.read(self._place, _name(epoch))
            if table is None:
                raise MissingFile(
                    f"views of epoch {epoch} are not in '{self._place}'; start the same command"
                    " again, which records what is missing"
                )
            self._open = (epoch, table.to(self._device))
        return self._open[1][indices].float()


def _name(epoch: int) -> str:
    return f"epoch-{epoch:04}"
