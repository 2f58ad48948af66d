"""How fast pictures are loaded: next to nothing before the first one, then as fast as PIL alone."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, eval_transform, train_transform
from pd_core.data.loading.prepared import read_prepared, read_unlabelled, write_prepared
from pd_core.models.portable.preprocess import Preprocess

PREPROCESS = Preprocess(224)
TRANSFORM = train_transform(PREPROCESS, scale=(0.08, 1.0), flip=True)
BATCH = 32
PICTURES = 8 * BATCH


def test_lists_of_50000_pictures_are_ready_in_two_seconds_without_a_look_at_them(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = [(f"images/class_{k % 1000:04}/picture_{k:06}.jpg", k % 1000) for k in range(50_000)]
    content = {
        "dataset": "photos", "classes": [f"class {k}" for k in range(1000)], "base_classes": 500,
        "protocol": "all_classes", "images": str(tmp_path), "few_shot": rows[:16_000],
        "few_shot_val": [], "val": [], "test": rows,
    }  # fmt: skip
    write_prepared(folder, content, [path for path, _ in rows])

    start = time.perf_counter()
    prepared, unlabelled = read_prepared(folder), read_unlabelled(folder)
    store = ImageStore(prepared.images)  # there is no picture in it
    test = [path for path, _ in prepared.test]
    training = ImageBatches(store, unlabelled, TRANSFORM, batch_size=BATCH, workers=2)
    training.epoch(1)
    ImageBatches(
        store, test, eval_transform(Preprocess(224)), batch_size=BATCH, workers=2
    ).in_order()

    assert time.perf_counter() - start < 2  # 0.2 s on two busy cores
    assert training.steps == 50_000 // BATCH


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write JPEG files of 500x375 pixels and about 65 KB, as photos are."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        blobs = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(blobs.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
        grainy = (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255)
        Image.fromarray(grainy.astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
    return folder


def bare(paths: list[Path]) -> int:
    """Do to a batch what has to be done, and keep the result where it is."""
    pictures = []
    for path in paths:
        with Image.open(path) as image:
            pictures += [np.asarray(crop) for crop in TRANSFORM.crop(image.convert("RGB"))]
    return len(PREPROCESS.normalise(torch.from_numpy(np.stack(pictures))))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# Without other load, one worker reaches 0.98 to 1.03, and two 0.78 to 0.95 of two cores, which they
# share with the main process. Turns alternate and the fastest counts, so that other load matters
# least.
BOUND = {1: 0.8, 2: 0.7}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_are_about_as_fast_as_bare_pil_in_as_many(
    photos: Path, workers: int
) -> None:
    names = [f"{number}.jpg" for number in range(PICTURES)]
    source = ImageBatches(
        ImageStore(photos, keep_bytes=0), names, TRANSFORM, batch_size=BATCH, workers=workers
    )
    chunks = [[photos / name for name in names[k : k + BATCH]] for k in range(0, PICTURES, BATCH)]
    ours, theirs = [], []
    with (
        tiny.torch_restored(),
        multiprocessing.Pool(workers, torch.set_num_threads, (1,)) as pool,
    ):
        torch.set_num_threads(1)  # as the stages do; more would take the cores from the workers

        def load(epoch: int) -> int:
            return sum(len(images) for _, images, *_ in source.epoch(epoch))

        assert sum(pool.imap(bare, chunks)) == load(0) == PICTURES  # and all files are cached
        for turn in range(1, 21):
            theirs.append(seconds(lambda: list(pool.imap(bare, chunks))))
            ours.append(seconds(lambda: load(turn)))  # noqa: B023
            if turn >= 5 and min(theirs) / min(ours) >= BOUND[workers]:
                break

    assert min(theirs) / min(ours) >= BOUND[workers]
