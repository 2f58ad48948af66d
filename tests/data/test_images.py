import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from tiny import view

from pd_core.core.errors import BadData, MissingFile
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, eval_transform, train_transform
from pd_core.models.portable.preprocess import Preprocess

RECORDED = Path(__file__).parents[1] / "parity" / "data" / "transforms"
NAMES = tuple(f"{number}.png" for number in range(10))


def picture(number: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ramp() -> Image.Image:
    """Dark on the left, light on the right."""
    return Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))).convert("RGB")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(png(picture(number)))
    return tmp_path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for number, name in enumerate(NAMES):
            file.writestr(name, png(picture(number)))
    return tmp_path / "images.zip"


def batches(root: Path, *, seed: int = 1, workers: int = 0, size: int = 4) -> ImageBatches:
    transform = train_transform(Preprocess(16), scale=(0.5, 1.0), flip=True)
    return ImageBatches(
        ImageStore(root), NAMES, transform, batch_size=size, seed=seed, workers=workers
    )


RECORDINGS = load_file(RECORDED / "transforms.safetensors")


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("which", ["a", "b"])
def test_eval_transform_gives_the_recorded_pixels(which: str, size: int) -> None:
    image = Image.fromarray(RECORDINGS[f"input_u8/{which}"].numpy())

    result = eval_transform(Preprocess(size))(image)

    torch.testing.assert_close(result, RECORDINGS[f"test{size}/{which}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("which", ["a", "b"])
def test_train_transform_gives_the_recorded_pixels_for_the_same_random_numbers(which: str) -> None:
    image = Image.fromarray(RECORDINGS[f"input_u8/{which}"].numpy())
    transform = train_transform(Preprocess(32), scale=(0.08, 1.0), flip=True)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        results = [transform(image) for _ in range(2)]

    for number, result in enumerate(results):
        recorded = RECORDINGS[f"train32_torchseed123/{which}/{number}"]
        torch.testing.assert_close(result, recorded, rtol=0, atol=1e-6)


def test_views_are_the_same_on_every_machine() -> None:
    transform = train_transform(Preprocess(8), scale=(0.5, 1.0), flip=True)

    result = view(transform, picture(0), seed=1, epoch=1, index=0)

    assert result.sum().item() == pytest.approx(32.7578, abs=1e-3)


def test_flip_mirrors_half_of_the_views() -> None:
    transform = train_transform(Preprocess(32), scale=(1.0, 1.0), flip=True)

    results = [view(transform, ramp(), seed=1, epoch=1, index=k)[0] for k in range(100)]

    mirrored = sum(bool(result[16, 0] > result[16, -1]) for result in results)
    assert 30 < mirrored < 70


def test_without_flip_no_view_is_mirrored() -> None:
    transform = train_transform(Preprocess(32), scale=(0.5, 1.0), flip=False)

    results = [view(transform, ramp(), seed=1, epoch=1, index=k)[0] for k in range(50)]

    assert all(bool(result[16, 0] < result[16, -1]) for result in results)


@pytest.mark.parametrize("workers", [0, 2])
def test_in_order_gives_every_image_once(folder: Path, workers: int) -> None:
    names = [f"{number}.png" for number in range(10)]
    source = ImageBatches(
        ImageStore(folder), names, eval_transform(Preprocess(32)), batch_size=4, workers=workers
    )

    drawn = list(source.in_order())

    assert torch.cat([indices for indices, *_ in drawn]).tolist() == list(range(10))
    assert [len(batch.images) for batch in drawn] == [4, 4, 2]
    expected = torch.stack(
        [eval_transform(Preprocess(32))(picture(number)) for number in range(10)]
    )
    assert torch.equal(torch.cat([batch.images for batch in drawn]), expected)


def test_worker_processes_read_a_zip_as_one_process_does(archive: Path) -> None:
    before = torch.get_rng_state()
    alone, shared = ([*batches(archive, workers=n).epoch(1)] for n in (0, 2))

    for batch, expected in zip(shared, alone, strict=True):
        assert torch.equal(batch.indices, expected.indices)
        assert torch.equal(batch.images, expected.images)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_picture_is_named_in_one_line(folder: Path, workers: int) -> None:
    data = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(data[: len(data) // 2])

    with pytest.raises(BadData, match=r"5\.png' is not a readable image") as caught:
        list(batches(folder, workers=workers, size=10).epoch(1))

    assert "\n" not in str(caught.value)


def test_a_corrupt_picture_in_a_zip_is_named(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[data.find(b"IDAT") + 100] ^= 0xFF
    archive.write_bytes(data)

    with pytest.raises(BadData, match=r"0\.png' is not a readable image"):
        ImageStore(archive).open("0.png")


def test_a_zip_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_text("not a zip")

    with pytest.raises(BadData, match=r"images\.zip"):
        ImageStore(tmp_path / "images.zip").open("0.png")


@given(data=st.binary(max_size=64), at=st.integers(0, 4000))
def test_damage_gives_a_picture_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "x.png"
    good = png(picture(0))
    file.write_bytes(good[:at] + data + good[at + len(data) :])

    store = ImageStore(file.parent)
    try:
        decoded = store.open("x.png")
    except BadData:
        return
    assert decoded.mode == "RGB"


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_missing_picture_is_named(kind: str, request: pytest.FixtureRequest) -> None:
    store = ImageStore(request.getfixturevalue(kind))

    with pytest.raises(MissingFile, match=r"no image 'absent\.png'"):
        store.open("absent.png")


@pytest.mark.parametrize("name", ["absent", "absent.zip"])
def test_a_missing_image_root_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingFile, match=name):
        ImageStore(tmp_path / name)


def test_kept_pictures_are_not_read_again_and_the_limit_is_kept(folder: Path) -> None:
    store = ImageStore(folder, keep_bytes=3 * 32 * 32)
    store.open("0.png")
    store.open("1.png")
    for name in ("0.png", "1.png"):
        (folder / name).unlink()

    assert store.open("0.png").size == (32, 32)
    with pytest.raises(MissingFile):
        store.open("1.png")


def test_fewer_pictures_than_a_batch_takes_are_refused(folder: Path) -> None:
    with pytest.raises(BadData, match="10 training images do not fill a batch of 16"):
        batches(folder, size=16).epoch(1)


def test_an_empty_list_is_refused(folder: Path) -> None:
    with pytest.raises(BadData, match="list of images .* is empty"):
        ImageBatches(ImageStore(folder), (), eval_transform(Preprocess(32)), batch_size=4)
