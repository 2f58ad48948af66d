"""Damaged pictures: an error by default; where they are to be skipped, left out and counted."""

import gc
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import view

from pd_core.core.errors import BadData, MissingFile
from pd_core.core.options import OnCorrupt
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import Batch, ImageBatches, eval_transform, train_transform
from pd_core.models.portable.preprocess import Preprocess

NAMES = tuple(f"{number}.png" for number in range(12))
DAMAGED = (2, 3, 7)


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        picture(number).save(tmp_path / name)
    for number in DAMAGED:
        damage(tmp_path / NAMES[number])
    return tmp_path


TRANSFORM = train_transform(Preprocess(16), scale=(0.5, 1.0), flip=True)


def batches(root: Path, paths: tuple[str, ...] = NAMES, **rest: Any) -> ImageBatches:
    options = {"batch_size": 4, "seed": 1, "on_corrupt": OnCorrupt.SKIP, **rest}
    return ImageBatches(ImageStore(root), paths, TRANSFORM, **options)


def positions(drawn: Sequence[Batch]) -> list[list[int]]:
    return [indices.tolist() for indices, *_ in drawn]


def test_damaged_pictures_are_left_out_of_their_batches_and_the_others_stay(folder: Path) -> None:
    whole = folder / "whole"
    whole.mkdir()
    for number, name in enumerate(NAMES):
        picture(number).save(whole / name)

    drawn, undamaged = list(batches(folder).epoch(1)), list(batches(whole).epoch(1))

    expected = [[i for i in batch if i not in DAMAGED] for batch in positions(undamaged)]
    assert positions(drawn) == expected
    for batch in drawn:
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
            alone = view(TRANSFORM, picture(index), seed=1, epoch=1, index=index)
            assert torch.equal(image, alone)


def test_the_batches_are_the_same_whatever_the_number_of_workers(folder: Path) -> None:
    found = []
    for workers in (0, 1, 3):
        source = batches(folder, workers=workers)
        drawn: list[Batch] = [*source.epoch(1), *source.epoch(2), *source.epoch(1)]
        drawn += source.in_order()
        found.append((drawn, source.skipped))

    (first, skipped), *others = found
    assert skipped == tuple(NAMES[number] for number in DAMAGED)
    for drawn, also_skipped in others:
        assert also_skipped == skipped
        assert positions(drawn) == positions(first)
        assert all(torch.equal(a.images, b.images) for a, b in zip(drawn, first, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_without_any_picture_left_is_not_yielded(folder: Path, workers: int) -> None:
    source = batches(folder, batch_size=2, workers=workers)

    assert positions(list(source.in_order())) == [[0, 1], [4, 5], [6], [8, 9], [10, 11]]
    assert positions(list(source.in_order())) == [[0, 1], [4, 5], [6], [8, 9], [10, 11]]
    assert source.intact == [0, 1, 4, 5, 6, 8, 9, 10, 11]


def test_each_damaged_path_is_counted_once_however_often_it_is_met(folder: Path) -> None:
    source = batches(folder, (*NAMES, "2.png", "4.png"))
    for _ in range(2):
        list(source.in_order())
    list(source.epoch(1))

    assert source.skipped == ("2.png", "3.png", "7.png")
    assert source.intact == [0, 1, 4, 5, 6, 8, 9, 10, 11, 13]


def test_an_epoch_tells_how_many_pictures_it_left_out(folder: Path) -> None:
    source = batches(folder, batch_size=5)
    list(source.in_order())  # finds those that an epoch does not show

    for epoch in (1, 2, 3, 4, 5, 6, 1):  # 10 of the 12 are in it
        shown = sum(map(len, positions(list(source.epoch(epoch)))))
        assert source.left_out == 10 - shown > 0


def test_a_picture_found_damaged_stays_out_so_that_epochs_come_again(folder: Path) -> None:
    source = batches(folder)
    first = positions(list(source.epoch(1)))
    for number in DAMAGED:
        picture(number).save(folder / NAMES[number])

    assert positions(list(source.epoch(1))) == first


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_an_error_unless_told_otherwise(folder: Path, workers: int) -> None:
    source = ImageBatches(
        ImageStore(folder), NAMES, eval_transform(Preprocess(16)), batch_size=4, workers=workers
    )

    with pytest.raises(BadData, match=r"2\.png' is not a readable image \(image file is trunc"):
        list(source.in_order())


def test_after_an_error_nobody_waits_for_the_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 30.0)
    source = batches(folder, on_corrupt=OnCorrupt.FAIL, workers=2)
    with pytest.raises(BadData) as caught:
        list(source.in_order())

    start = time.perf_counter()
    del caught, source
    gc.collect()
    assert time.perf_counter() - start < 25  # a worker that gets no signal to stop takes 30 seconds


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_picture_is_an_error_in_any_case(folder: Path, workers: int) -> None:
    (folder / "5.png").unlink()

    with pytest.raises(MissingFile, match=r"no image '5\.png'"):
        list(batches(folder, workers=workers).in_order())


def test_a_picture_that_the_system_cannot_read_is_not_taken_for_damaged(folder: Path) -> None:
    with pytest.raises(MissingFile, match=r"x\.png' cannot be read \(File name too long\)"):
        list(batches(folder, (*NAMES, 300 * "x" + ".png")).in_order())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_list_that_is_damaged_by_more_than_half_is_refused(folder: Path, workers: int) -> None:
    for name in ("8.png", "9.png", "10.png"):
        (folder / name).write_text("<html>not found</html>")
    assert len(list(batches(folder, workers=workers).in_order())) == 3
    (folder / "11.png").write_bytes(b"")

    with pytest.raises(BadData, match=r"7 of 12 images .* '2\.png': too many") as caught:
        list(batches(folder, workers=workers).in_order())

    assert "\n" not in str(caught.value)


def test_damage_inside_a_zip_is_skipped_too(tmp_path: Path) -> None:
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(3):
            picture(number).save(tmp_path / "x.png")
            file.write(tmp_path / "x.png", NAMES[number])
        start = file.getinfo("1.png").header_offset + 30 + len("1.png")
    data = bytearray(archive.read_bytes())
    data[start] = 0xFF  # there is no such kind of compressed block
    archive.write_bytes(data)
    source = batches(archive, NAMES[:3])

    assert positions(list(source.in_order())) == [[0, 2]]
    assert source.skipped == ("1.png",)
