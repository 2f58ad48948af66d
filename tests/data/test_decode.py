"""Pictures of every kind become RGB as PIL has it, which the paper's code relies on."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pd_core.data.loading.decode import ImageStore


def picture(size: tuple[int, int] = (32, 32)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def pixels(folder: Path, name: str) -> NDArray[np.uint8]:
    image = ImageStore(folder).open(name)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(values[:, :, None], 3, axis=2)


def test_grey_pictures_have_three_equal_channels(tmp_path: Path) -> None:
    values = np.asarray(picture().convert("L"))
    Image.fromarray(values).save(tmp_path / "x.png")

    assert np.array_equal(pixels(tmp_path, "x.png"), grey(values))


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("LA", 1)])
def test_an_alpha_channel_is_dropped_and_hidden_colours_show(
    tmp_path: Path, mode: str, channels: int
) -> None:
    image = picture().convert(mode)
    image.putalpha(Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)))
    image.save(tmp_path / "x.png")

    expected = np.asarray(image)[:, :, :channels]
    assert np.array_equal(pixels(tmp_path, "x.png"), np.broadcast_to(expected, (32, 32, 3)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("png", {}),
        ("png", {"transparency": 0}),
        ("png", {"transparency": b"\x00\x80\xff"}),
        ("gif", {}),
        ("gif", {"transparency": 0}),
    ],
)
def test_palette_colours_are_kept_whether_transparent_or_not(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) % 3).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / f"x.{kind}", **options)

    expected = np.eye(3, dtype=np.uint8)[np.arange(16) % 3].reshape(4, 4, 3) * 255
    assert np.array_equal(pixels(tmp_path, f"x.{kind}"), expected)


def test_cmyk_becomes_rgb_as_pil_has_it_also_from_inverted_jpegs(tmp_path: Path) -> None:
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:, 8:] = (255, 0, 255, 0)  # white paper on the left, green on the right
    image = Image.frombytes("CMYK", (16, 16), inks.tobytes())
    image.save(tmp_path / "x.tif")
    image.save(tmp_path / "adobe.jpg", quality=100)  # PIL writes them as Adobe does: inverted

    assert b"Adobe" in (tmp_path / "adobe.jpg").read_bytes()
    for name, tolerance in (("x.tif", 0), ("adobe.jpg", 3)):
        found = pixels(tmp_path, name).astype(int)
        assert np.abs(found[:, :7] - 255).max() <= tolerance
        assert np.abs(found[:, 9:] - (0, 255, 0)).max() <= tolerance


DEEP = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)


def _write_deep(path: Path) -> None:
    match path.name:
        case "big-endian.tif":
            Image.frombytes("I;16B", (32, 32), DEEP.astype(">u2").tobytes()).save(path)
        case "32.tif":
            Image.fromarray(DEEP.astype(np.int32)).save(path)
        case "float.tif":
            Image.fromarray(DEEP.astype(np.float32)).save(path)
        case "x.pgm":
            path.write_bytes(b"P5 32 32 65535\n" + DEEP.astype(">u2").tobytes())
        case _:
            Image.fromarray(DEEP).save(path)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("16.png", "I;16"),
        ("16.tif", "I;16"),
        ("big-endian.tif", "I;16B"),
        ("32.tif", "I"),
        ("x.pgm", "I"),
        ("float.tif", "F"),
    ],
)
def test_sixteen_bits_are_scaled_to_eight_and_not_clipped_to_white(
    tmp_path: Path, name: str, mode: str
) -> None:
    _write_deep(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.mode == mode

    assert np.array_equal(pixels(tmp_path, name), grey(np.round(DEEP / 257).astype(np.uint8)))


def test_colours_of_sixteen_bits_keep_their_upper_eight(tmp_path: Path) -> None:
    deep = (np.asarray(picture()).astype(np.uint16) << 8) + 77
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    (tmp_path / "x.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )

    assert np.array_equal(pixels(tmp_path, "x.png"), np.asarray(picture()))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_values_that_fit_into_eight_bits_are_left_alone(tmp_path: Path, dtype: type) -> None:
    values = np.asarray(picture().convert("L"))
    Image.fromarray(values.astype(dtype)).save(tmp_path / "x.tif")

    assert np.array_equal(pixels(tmp_path, "x.tif"), grey(values))


def test_values_beyond_sixteen_bits_are_white_and_what_is_no_number_is_black(
    tmp_path: Path,
) -> None:
    Image.fromarray(np.array([[np.nan, -9], [1e9, 32896]], np.float32)).save(tmp_path / "x.tif")

    assert pixels(tmp_path, "x.tif")[:, :, 0].tolist() == [[0, 0], [255, 128]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotation_noted_in_exif_is_not_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    picture((24, 16)).save(tmp_path / "x.png", exif=exif)

    assert np.array_equal(pixels(tmp_path, "x.png"), np.asarray(picture((24, 16))))


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])

    assert (pixels(tmp_path, "x.gif") == (255, 0, 0)).all()
