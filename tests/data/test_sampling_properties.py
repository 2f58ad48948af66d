"""What holds of every epoch: each picture once at most, and all random follows from (seed, epoch).

The epochs are those of `ImageBatches`; what it yields is compared with single views.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import view
from torch import Tensor

from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import Batch, ImageBatches, train_transform
from pd_core.models.portable.preprocess import Preprocess

COUNT = 12
NAMES = tuple(f"{number}.png" for number in range(COUNT))
TRANSFORM = train_transform(Preprocess(8), scale=(0.3, 1.0), flip=True)

SIZES = st.integers(1, COUNT)
SEEDS = st.integers(0, 2**31)
EPOCHS = st.integers(1, 1000)
# The values are small as they are; looking for still smaller ones would decode for minutes.
examples = settings(max_examples=25, phases=[Phase.generate])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(NAMES):
        picture(number).save(folder / name)
    return folder


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def batches(
    folder: Path, *, size: int, seed: int, count: int = COUNT, workers: int = 0
) -> ImageBatches:
    store = ImageStore(folder)
    return ImageBatches(
        store, NAMES[:count], TRANSFORM, batch_size=size, seed=seed, workers=workers
    )


def order(epoch: Sequence[Batch]) -> list[int]:
    return [int(index) for batch in epoch for index in batch.indices]


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.indices, b.indices) and torch.equal(a.images, b.images)
        for a, b in zip(first, second, strict=True)
    )


def expected(index: int, *, seed: int, epoch: int) -> Tensor:
    return view(TRANSFORM, picture(index), seed=seed, epoch=epoch, index=index)


@examples
@given(count=SIZES, size=SIZES, seed=SEEDS, epoch=EPOCHS)
def test_an_epoch_is_a_permutation_without_the_batch_that_is_not_full(
    folder: Path, count: int, size: int, seed: int, epoch: int
) -> None:
    size = min(size, count)
    source = batches(folder, count=count, size=size, seed=seed)

    gone_through = list(source.epoch(epoch))

    indices = order(gone_through)
    assert [len(part) for part, *_ in gone_through] == [size] * (count // size)
    assert len(gone_through) == source.steps
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(count))


@examples
@given(size=SIZES, seed=SEEDS, epoch=EPOCHS)
def test_a_view_only_depends_on_seed_epoch_and_picture(
    folder: Path, size: int, seed: int, epoch: int
) -> None:
    for batch in batches(folder, size=size, seed=seed).epoch(epoch):
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
            assert torch.equal(image, expected(index, seed=seed, epoch=epoch))


@examples
@given(size=SIZES, seed=SEEDS, epoch=EPOCHS, before=EPOCHS, state=SEEDS)
def test_an_epoch_is_the_same_whatever_ran_before(
    folder: Path, size: int, seed: int, epoch: int, before: int, state: int
) -> None:
    alone = list(batches(folder, size=size, seed=seed).epoch(epoch))
    source = batches(folder, size=size, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(state)
        untouched = torch.get_rng_state()
        list(source.in_order())
        list(islice(source.epoch(before), 1))  # and given up

        assert same(list(source.epoch(epoch)), alone)
        assert torch.equal(torch.get_rng_state(), untouched)


@examples
@given(count=SIZES, size=SIZES, seed=SEEDS, epoch=EPOCHS, data=st.data())
def test_an_epoch_taken_up_in_the_middle_gives_the_rest(
    folder: Path, count: int, size: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    size = min(size, count)
    whole = list(batches(folder, count=count, size=size, seed=seed).epoch(epoch))
    start = data.draw(st.integers(0, len(whole)))

    rest = list(batches(folder, count=count, size=size, seed=seed).epoch(epoch, start=start))

    assert same(rest, whole[start:])


@examples
@given(size=SIZES, seed=SEEDS, epoch=EPOCHS)
def test_the_order_does_not_depend_on_the_size_of_batches(
    folder: Path, size: int, seed: int, epoch: int
) -> None:
    indices = order(list(batches(folder, size=size, seed=seed).epoch(epoch)))

    assert indices == order(list(batches(folder, size=1, seed=seed).epoch(epoch)))[: len(indices)]


@examples
@given(seed=SEEDS, other=SEEDS, epochs=st.lists(EPOCHS, min_size=2, max_size=2, unique=True))
def test_epochs_and_seeds_differ_in_order_and_views(
    folder: Path, seed: int, other: int, epochs: list[int]
) -> None:
    first, second = (list(batches(folder, size=12, seed=seed).epoch(epoch)) for epoch in epochs)

    assert order(first) != order(second)
    seen = [set(np.asarray(batch.images).sum(axis=(1, 2, 3)).tolist()) for batch in first + second]
    assert len(seen[0] & seen[1]) < COUNT / 2  # a crop may come twice by chance
    if other != seed:
        assert order(list(batches(folder, size=12, seed=other).epoch(epochs[0]))) != order(first)


@examples
@given(count=SIZES, size=SIZES, seed=SEEDS)
def test_in_order_every_picture_comes_once(folder: Path, count: int, size: int, seed: int) -> None:
    gone_through = list(batches(folder, count=count, size=size, seed=seed).in_order())

    assert order(gone_through) == list(range(count))
    assert all(len(part) == size for part, *_ in gone_through[:-1])


@settings(max_examples=3, phases=[Phase.generate])
@given(workers=st.integers(1, 2), size=st.integers(1, 5), seed=SEEDS, start=st.integers(0, 2))
def test_workers_change_no_batch(
    folder: Path, workers: int, size: int, seed: int, start: int
) -> None:
    alone = batches(folder, size=size, seed=seed)
    helped = batches(folder, size=size, seed=seed, workers=workers)

    for epoch, first in ((1, 0), (2, start)):
        assert same(list(helped.epoch(epoch, start=first)), list(alone.epoch(epoch, start=first)))
