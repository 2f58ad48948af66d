"""Views that are resized on the device are those of Pillow, but for rounding."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pd_core.core.options import OnCorrupt
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import Batch, ImageBatches, Transform, train_transform
from pd_core.data.loading.regions import RegionTransform
from pd_core.models.portable.preprocess import Preprocess

SCALE = (0.08, 1.0)
SIZES = ((500, 375), (90, 120), (224, 224), (30, 40), (1000, 40), (33, 700))


def preprocess(size: int, interpolation: str = "bicubic") -> Preprocess:
    """Return a preprocessing that keeps the values from 0 to 255."""
    return Preprocess(size, (0.0,) * 3, (1 / 255,) * 3, interpolation)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (width, height) in enumerate(SIZES):
        generator = np.random.default_rng(number)
        noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        steps = generator.integers(0, 2, (height, width, 1), dtype=np.uint8).repeat(3, 2) * 255
        smooth = Image.fromarray(noise).resize((8, 8)).resize((width, height))
        for name, image in (
            ("noise", Image.fromarray(noise)),
            ("steps", Image.fromarray(steps)),
            ("smooth", smooth),
        ):
            image.save(tmp_path / f"{number}-{name}.png")
    return tmp_path


def batches(
    folder: Path, transform: Transform | RegionTransform, *, workers: int = 0, size: int = 6
) -> ImageBatches:
    names = sorted(path.name for path in folder.iterdir())
    return ImageBatches(
        ImageStore(folder), names, transform, batch_size=size, seed=1, workers=workers,
        on_corrupt=OnCorrupt.SKIP,
    )  # fmt: skip


def on_cpu(batch: Batch) -> Batch:
    return batch.to(torch.device("cpu"))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_differ_from_pillows_by_at_most_2_of_255(folder: Path, interpolation: str) -> None:
    models = (preprocess(224, interpolation), preprocess(64, interpolation))
    pillow = batches(folder, train_transform(*models, scale=SCALE, flip=True))
    device = batches(folder, RegionTransform(models, SCALE, flip=True))

    for expected, batch in zip(pillow.epoch(1), map(on_cpu, device.epoch(1)), strict=True):
        assert batch.indices.tolist() == expected.indices.tolist()
        for model in models:
            difference = (batch.views[model] - expected.views[model]).abs()
            assert difference.max() < 2.5
            assert difference.mean() < 0.1


def test_workers_give_the_same_views(folder: Path) -> None:
    transform = RegionTransform((preprocess(32),), SCALE, flip=True)

    results = [
        [on_cpu(batch) for batch in batches(folder, transform, workers=count).epoch(3)]
        for count in (0, 2)
    ]

    for first, second in zip(*results, strict=True):
        assert torch.equal(first.indices, second.indices)
        assert torch.equal(first.images, second.images)


def test_views_are_computed_where_they_are_read_as_well(folder: Path) -> None:
    transform = RegionTransform((preprocess(32), preprocess(16)), SCALE, flip=True)
    (batch, *_) = batches(folder, transform).epoch(1)

    moved = on_cpu(batch)

    assert [*batch.views] == [*moved.views] == [*transform.models]
    for model in transform.models:
        assert torch.equal(batch.views[model], moved.views[model])
    with pytest.raises(KeyError):
        batch.views[preprocess(8)]


def test_corrupt_images_are_left_out(folder: Path) -> None:
    transform = RegionTransform((preprocess(32),), SCALE, flip=True)
    intact = dict(each(batches(folder, transform)))
    broken = sorted(folder.iterdir())[4]
    broken.write_bytes(broken.read_bytes()[:40])

    left = dict(each(batches(folder, transform)))

    assert left.keys() == intact.keys() - {4}
    assert all(torch.equal(view, intact[index]) for index, view in left.items())


def each(source: ImageBatches) -> list[tuple[int, Tensor]]:
    return [
        (index, view)
        for batch in map(on_cpu, source.epoch(1))
        for index, view in zip(batch.indices.tolist(), batch.images, strict=True)
    ]


def test_a_batch_of_corrupt_images_is_empty(folder: Path) -> None:
    transform = RegionTransform((preprocess(32),), SCALE, flip=True)
    sorted(folder.iterdir())[0].write_bytes(b"no image")

    sizes = [
        tuple(on_cpu(batch).images.shape) for batch in batches(folder, transform, size=1).epoch(1)
    ]

    assert sizes.count((0, 3, 32, 32)) == 1
    assert sizes.count((1, 3, 32, 32)) == len(sizes) - 1
