"""Batches of views, and the cached features of views that are shown again.

Shapes: B images of a batch, N of the list, K features or logits of each.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pd_core.core.artifacts import SUMS, file_hash
from pd_core.core.atomic import readable
from pd_core.core.config import Compute
from pd_core.core.errors import BadParams, Interrupted, MissingFile
from pd_core.core.options import Augmentation
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import Batch, ImageBatches, Share, Transform, train_transform
from pd_core.data.loading.paths import PathList
from pd_core.data.loading.regions import RegionTransform
from pd_core.models.portable.preprocess import Preprocess
from pd_core.training.loop.config import ViewConfig
from pd_core.training.loop.distributed import count, from_first, gathered, is_first, part, union
from pd_core.training.loop.feature_cache import FeatureCache
from pd_core.training.loop.fit import Batches, Run
from pd_core.training.loop.transfer import transferred

RECORDED = 256
"""Images that a frozen tower encodes at once on a GPU, if features are stored as fp16."""

Source = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class TrainingViews:
    """Batches of a training.

    Attributes:
        batches: of the list of N images.
        key: cache key of the views, JSON values: all that determines them but the epoch.
    """

    batches: ImageBatches
    key: Mapping[str, object]
    _make: Callable[[Sequence[Preprocess]], ImageBatches]

    def shown_to(self, models: Sequence[Preprocess]) -> ImageBatches:
        """Return batches of the same views for further models too."""
        own = self.batches.models
        return self.batches if {*models} <= {*own} else self._make([*own, *models])


def training_views(
    prepared: Path,
    root: Path,
    paths: Sequence[str],
    model: Preprocess,
    config: ViewConfig,
    compute: Compute,
) -> TrainingViews:
    """Make the batches of a training; no image is read yet.

    Args:
        prepared: output folder of the stage `prepare`.
        root: folder or archive of the images.
        paths: of the N images, relative to it.
        model: preprocessing of the model that is trained.
        config: of the views.
        compute: seed of order and views, and settings of the reading.

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

    listed = PathList.of(paths)

    def make(models: Sequence[Preprocess]) -> ImageBatches:
        return ImageBatches(
            ImageStore(root), listed, _transform(models, config, compute.augmentation),
            batch_size=config.batch_size, seed=compute.seed, workers=compute.workers,
            on_corrupt=compute.on_corrupt, share=Share(part, union),
        )  # fmt: skip

    key = {
        "prepared": file_hash(prepared / SUMS), "paths": listed.digest,
        "preprocess": asdict(model),
        "batch_size": config.batch_size, "crop_scale": config.crop_scale, "flip": config.flip,
        "seed": compute.seed, "on_corrupt": compute.on_corrupt,
        "augmentation": compute.augmentation,
    }  # fmt: skip
    return TrainingViews(make([model]), key, make)


def _transform(
    models: Sequence[Preprocess], config: ViewConfig, augmentation: Augmentation
) -> Transform | RegionTransform:
    if augmentation is Augmentation.DEVICE:
        return RegionTransform(tuple(dict.fromkeys(models)), config.crop_scale, config.flip)
    return train_transform(*models, scale=config.crop_scale, flip=config.flip)


def united(batches: Iterable[tuple[Tensor, Batch]], count: int) -> Iterator[tuple[Tensor, Batch]]:
    """Unite `count` batches of an epoch at a time; each comes with its positions on the CPU."""
    batches = iter(batches)
    while group := list(itertools.islice(batches, count)):
        positions, parts = zip(*group, strict=True)
        views = {
            model: torch.cat([part.views[model] for part in parts]) for model in parts[0].views
        }
        indices = torch.cat([part.indices for part in parts])
        yield torch.cat(positions), parts[-1]._replace(indices=indices, views=views)


def remembered(compute: Source) -> Source:
    """Cache the results of a function of batches in memory, for epochs that come again."""
    results: dict[tuple[int, int], Tensor] = {}

    def recall(batch: Batch) -> Tensor:
        key = batch.epoch, batch.number
        if key not in results:
            results[key] = compute(batch)
        return results[key]

    return recall


@dataclass
class CachedViews:
    """Features or logits of every view of a training, in the feature cache.

    A view is determined by seed, epoch and image alone, so they hold for every run.

    Attributes:
        store: the cache.
        place: folder in it, named by the cache key.
        count: N.
        width: K.
        device: of the tensors that `at` returns.
        at_once: batches that are encoded at once.
    """

    store: FeatureCache
    place: Path
    count: int
    width: int
    device: torch.device
    at_once: int = 1
    _open: tuple[int, Tensor] | None = field(default=None, init=False)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float16 if self.store.half else torch.float32

    def missing(self, epochs: int) -> list[int]:
        """Return which of the first epochs are missing or corrupt."""
        every = range(1, epochs + 1)
        return [epoch for epoch in every if self.store.read(self.place, _name(epoch)) is None]

    def complete(
        self, epochs: int, source: Callable[[], tuple[Batches, Source]], run: Run, *, what: str
    ) -> None:
        """Compute and store what is missing of the first epochs.

        Args:
            epochs: number of epochs with views of their own.
            source: makes the batches of the training, and the function from one on the device to
                (B, K); called only if something is missing.
            run: the surroundings; progress is in batches.
            what: name of the data, for messages.

        Raises:
            BadParams: the data exceed the cache's limit.
            NoSpace: the disk has no room for them.
            Interrupted: the training was stopped; finished epochs are stored.
        """
        missing = from_first(lambda: self.missing(epochs))
        if not missing:
            return
        if is_first():
            self._make_room(epochs, what)
        self._record(missing, *source(), run)

    def _make_room(self, epochs: int, what: str) -> None:
        size = epochs * self.count * self.width * self._dtype.itemsize
        self.store.make_room(
            self.place, size, what=what, remedy="set view_epochs, or have them computed online"
        )
        self.store.on_note(
            f"records {what}: {epochs} epochs of {self.count} images, {self.width} numbers each,"
            f" {readable(size)} in '{self.place}'"
        )

    @torch.no_grad()
    def _record(self, epochs: Sequence[int], batches: Batches, source: Source, run: Run) -> None:
        total = len(epochs) * batches.steps
        for number, epoch in enumerate(epochs):
            # NaN where no batch shows an image: such a row must not be read.
            table = torch.full((self.count, self.width), torch.nan, dtype=self._dtype)
            read = transferred(batches.epoch(epoch), self.device)
            for indices, batch in united(read, self.at_once):
                shown = gathered(indices)
                if len(shown):
                    values = gathered(source(batch))
                    table[shown] = values.cpu().to(self._dtype)
                run.hooks.on_progress(number * batches.steps + batch.number + 1, total)
                if run.checkpoints is not None and run.checkpoints.stop_requested():
                    raise Interrupted(
                        f"interrupted while views of epoch {epoch} were recorded; start the same"
                        " command again to go on with this epoch"
                    )
            from_first(partial(self.store.write, self.place, _name(epoch), table))

    def at(self, batch: Batch) -> Tensor:
        """Return the features or logits of a batch on the device: (B, K), fp32, on the device.

        Raises:
            MissingFile: its epoch is not in the cache, or no longer.
        """
        if self._open is None or self._open[0] != batch.epoch:
            table = self.store.read(self.place, _name(batch.epoch))
            if table is None:
                raise MissingFile(
                    f"views of epoch {batch.epoch} are not in '{self.place}'; start the same"
                    " command again, which records what is missing"
                )
            self._open = (batch.epoch, table.to(self.device))
        return self._open[1][batch.indices].float()


def cached_views(
    views: TrainingViews,
    kind: str,
    key: Mapping[str, object],
    source: Callable[[], tuple[Batches, Source]],
    run: Run,
    *,
    epochs: int,
    width: int,
    what: str,
) -> CachedViews:
    """Fill the run's feature cache with what a frozen tower computes for all views.

    Args:
        views: those of the training; the shape of their batches decides the last bits.
        kind: readable part of the folder's name.
        key: what determines the data beside the views, JSON values.
        source: as in `CachedViews.complete`.
        run: the surroundings.
        epochs: number of epochs with views of their own.
        width: K.
        what: name of the data, for messages.

    Raises:
        BadParams: there is no cache, or the data exceed its limit.
        NoSpace, Interrupted: as in `CachedViews.complete`.
    """
    store = run.required_features()
    place = store.place(kind, {"views": views.key, "half": store.half, **key})
    # Batches of another size change the last bits, which fp16 rounds off; a CPU gains nothing.
    large = store.half and run.device.type != "cpu"
    record = CachedViews(
        store, place, count=views.batches.count, width=width, device=run.device,
        at_once=max(1, RECORDED // views.batches.batch_size) if large else 1,
    )  # fmt: skip
    record.complete(epochs, source, run, what=what)
    return record


def _name(epoch: int) -> str:
    return f"epoch-{epoch:04}"
