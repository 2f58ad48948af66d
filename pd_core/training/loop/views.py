"""Batches of views, and the cached features of views that come again in an epoch or a run.

Shapes: B images of a batch, N of the list, K numbers that a frozen tower gives for each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pd_core.core.artifacts import SUMS, file_hash
from pd_core.core.atomic import readable
from pd_core.core.config import Compute
from pd_core.core.errors import BadParams, Interrupted, MissingFile
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import Batch, ImageBatches, Share, train_transform
from pd_core.training.loop.config import ViewConfig
from pd_core.training.loop.distributed import count, from_first, gathered, is_first, part, union
from pd_core.training.loop.feature_cache import FeatureCache
from pd_core.training.loop.fit import Batches, Run

Source = Callable[[Batch], Tensor]


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
    image_size: int,
    config: ViewConfig,
    compute: Compute,
) -> TrainingViews:
    """Describe the batches of a training; no image is read yet.

    Args:
        prepared: folder written by the stage `prepare`.
        root: folder or archive of the images.
        paths: of the N images, seen from there.
        image_size: of the views, pixels.
        config: of the views.
        compute: seed of order and views, and how images are read.

    Raises:
        BadData: the list is empty.
        BadParams: more processes train together than a batch has images.
        MissingFile: the data set is not prepared.
    """
    if count() > config.batch_size:
        raise BadParams(
            f"{count()} processes share batches of {config.batch_size}; set run.processes to at"
            f" most {config.batch_size}, or a larger batch_size"
        )
    transform = train_transform(image_size, scale=config.crop_scale, flip=config.flip)
    batches = ImageBatches(
        ImageStore(root), paths, transform,
        batch_size=config.batch_size, seed=compute.seed, workers=compute.workers,
        on_corrupt=compute.on_corrupt, share=Share(part, union),
    )  # fmt: skip
    decisive = {
        "prepared": file_hash(prepared / SUMS), "paths": paths, "image_size": image_size,
        "batch_size": config.batch_size, "crop_scale": config.crop_scale, "flip": config.flip,
        "seed": compute.seed, "on_corrupt": compute.on_corrupt,
    }  # fmt: skip
    return TrainingViews(batches, decisive)


def remembered(compute: Source) -> Source:
    """Keep what is computed for a batch, for epochs that come again."""
    known: dict[tuple[int, int], Tensor] = {}

    def recall(batch: Batch) -> Tensor:
        key = batch.epoch, batch.number
        if key not in known:
            known[key] = compute(batch)
        return known[key]

    return recall


class CachedViews:
    """Features or logits of every view of a training, from the feature cache.

    That works since a view is decided by seed, epoch and image alone.
    """

    def __init__(
        self, store: FeatureCache, place: Path, *, count: int, width: int, device: torch.device
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

    def missing(self, epochs: int) -> list[int]:
        """Return which of the first epochs are not recorded, or damaged."""
        every = range(1, epochs + 1)
        return [epoch for epoch in every if self._store.read(self._place, _name(epoch)) is None]

    def complete(
        self,
        epochs: int,
        batches: Batches,
        source: Callable[[], Source],
        run: Run,
        *,
        what: str,
    ) -> None:
        """Record those of the first epochs that are missing; say beforehand what they will take.

        Args:
            epochs: with views of their own.
            batches: those of the training.
            source: makes what goes from a batch on the device to (B, K); called only if something
                is missing.
            run: told of progress in batches; its checkpoints say whether it is to end.
            what: that is, for the messages.

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
        self._record(missing, batches, source(), run)

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
        source: Source,
        run: Run,
    ) -> None:
        """Go through epochs as the training will, and store what the tower gives."""
        total = len(epochs) * batches.steps
        for number, epoch in enumerate(epochs):
            # An image that no batch shows has no numbers, and must not be asked for.
            table = torch.full((self._count, self._width), torch.nan, dtype=self._dtype)
            for batch in batches.epoch(epoch):
                shown = gathered(batch.indices)
                if len(shown):
                    numbers = gathered(source(batch.to(self._device)))
                    table[shown] = numbers.cpu().to(self._dtype)
                run.hooks.on_progress(number * batches.steps + batch.number + 1, total)
                if run.checkpoints is not None and run.checkpoints.interrupted():
                    raise Interrupted(
                        f"told to end while views of epoch {epoch} were recorded; start the same"
                        " command again to go on with this epoch"
                    )
            from_first(partial(self._store.write, self._place, _name(epoch), table))

    def at(self, batch: Batch) -> Tensor:
        """Return the numbers of a batch on the device: (B, K), fp32, on the device.

        Raises:
            MissingFile: its epoch is not recorded, or not any more.
        """
        if self._open is None or self._open[0] != batch.epoch:
            table = self._store.read(self._place, _name(batch.epoch))
            if table is None:
                raise MissingFile(
                    f"views of epoch {batch.epoch} are not in '{self._place}'; start the same"
                    " command again, which records what is missing"
                )
            self._open = (batch.epoch, table.to(self._device))
        return self._open[1][batch.indices].float()


def cached_views(
    views: TrainingViews,
    kind: str,
    decisive: Mapping[str, object],
    source: Callable[[], Source],
    run: Run,
    *,
    epochs: int,
    width: int,
    what: str,
) -> CachedViews:
    """Make sure that the run's feature cache has what a frozen tower gives for all views.

    Args:
        views: those of the training; the shape of their batches decides the last bits.
        kind: what is recorded, for people to read.
        decisive: what decides it beside the views.
        source: as in `CachedViews.complete`.
        run: the surroundings.
        epochs: with views of their own.
        width: K.
        what: that is, for the messages.

    Raises:
        BadParams: there is no cache, or it is more than the cache may take.
        NoSpace, Interrupted: as in `CachedViews.complete`.
    """
    store = run.required_features()
    place = store.place(kind, {"views": views.decisive, "half": store.half, **decisive})
    record = CachedViews(store, place, count=views.batches.count, width=width, device=run.device)
    record.complete(epochs, views.batches, source, run, what=what)
    return record


def _name(epoch: int) -> str:
    return f"epoch-{epoch:04}"
