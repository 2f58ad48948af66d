"""Files of the user's own data sets as phones, browsers and other systems leave them."""

from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from own_pictures import CONFIG
from PIL import Image

from pd_core.core.errors import BadData
from pd_core.data.catalog import prepare
from pd_core.data.catalog.catalogue import OwnImages
from pd_core.data.catalog.own import left_out, notes, own_unlabelled, read_own
from pd_core.data.loading import splits
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.splits import HEIC, PICTURES
from pd_core.models.portable import pictures
from pd_core.models.portable.pictures import FORMATS

OWN = OwnImages(labelled="parts/labelled", unlabelled="parts/unlabelled")
PHONE = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def picture(file: Path, form: str = "PNG") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (16, 16), "red")
    red, green, blue, *_ = sha256(str(file).encode()).digest()
    image.putpixel((0, 0), (red, green, blue))  # no two images are equal
    image.save(file, format=form)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Two classes of two images and two images without labels, below `parts`."""
    for name in ("labelled/circle", "labelled/box", "unlabelled"):
        for number in (1, 2):
            picture(tmp_path / "parts" / name / f"{number}.png")
    return tmp_path / "parts"


@pytest.fixture
def without_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "_suffixes", lambda: tuple(PICTURES))


def test_the_suffixes_are_those_of_the_decoded_formats() -> None:
    Image.init()
    registered = Image.registered_extensions()

    assert {suffix for suffix, form in registered.items() if form in FORMATS} == PICTURES


def test_the_suffixes_of_heic_are_those_of_its_library() -> None:
    pillow_heif.register_heif_opener()

    registered = Image.registered_extensions()
    assert {suffix for suffix, form in registered.items() if form == "HEIF"} == HEIC


def test_a_photo_of_a_phone_is_decoded_where_its_library_is_installed(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow_heif.from_pillow(Image.new("RGB", (16, 16), "red")).save(
        parts / "labelled/box/IMG_1.HEIC"
    )
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)  # another test may have registered it
    pictures._formats.cache_clear()

    paths = [item.path for item in read_own(OWN, parts.parent).train]

    assert "labelled/box/IMG_1.HEIC" in paths
    decoded = np.asarray(ImageStore(parts).open("labelled/box/IMG_1.HEIC"))
    assert decoded.mean(axis=(0, 1)) == pytest.approx([255, 0, 0], abs=5)


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.jfif", "JPEG"), ("a.JPE", "JPEG"), ("a.avif", "AVIF"), ("a.jp2", "JPEG2000"),
     ("a.pnm", "PPM"), ("a.Apng", "PNG")],
)  # fmt: skip
def test_a_suffix_that_can_be_decoded_is_read(name: str, form: str, parts: Path) -> None:
    picture(parts / "unlabelled" / name, form)

    assert f"unlabelled/{name}" in own_unlabelled(OWN, parts.parent)
    assert ImageStore(parts).open(f"unlabelled/{name}").size == (16, 16)
    assert not left_out(OWN, parts.parent)


@pytest.mark.usefixtures("without_heic")
def test_files_that_are_not_read_are_counted_by_suffix(parts: Path) -> None:
    for name in (
        "labelled/circle/IMG_1.HEIC",
        "labelled/box/IMG_2.heic",
        "unlabelled/IMG_3.HEIC",
        "unlabelled/clip.MOV",
        "labelled/notes.txt",
        "unlabelled/deep/README",
    ):
        (parts / name).parent.mkdir(exist_ok=True)
        (parts / name).write_bytes(PHONE)

    assert left_out(OWN, parts.parent) == Counter({".heic": 3, ".mov": 1, ".txt": 1, "": 1})
    assert notes(OWN, parts.parent) == (
        "files that are not read: 3 .heic, 1 without suffix, 1 .mov, 1 .txt; "
        "install promptkd[heic] or convert them",
    )


def test_many_suffixes_are_one_short_line(parts: Path) -> None:
    for number in range(200):
        (parts / "unlabelled" / f"photo.{number:03}").write_bytes(b"0")

    (line,) = notes(OWN, parts.parent)

    assert line.startswith("files that are not read: 1 .000, 1 .001, ")
    assert line.endswith(", 1 .009, 190 others")


def test_the_stage_prepare_notes_what_is_not_read(parts: Path, tmp_path: Path) -> None:
    (parts / "unlabelled" / "clip.mov").write_bytes(b"0")
    config = CONFIG.model_copy(update={"own": OWN})
    lines: list[str] = []

    prepare.run("parts", tmp_path / "out", config, data_root=tmp_path, seed=1, on_note=lines.append)

    assert "parts: files that are not read: 1 .mov" in lines


def test_what_systems_leave_is_neither_read_nor_counted(parts: Path) -> None:
    for name in (".DS_Store", "._1.png", "Thumbs.db", "desktop.ini"):
        (parts / "labelled" / "box" / name).write_bytes(b"0")
    for name in ("__MACOSX", ".thumbnails", "@eaDir"):
        picture(parts / "labelled" / name / "1.png")
        picture(parts / "unlabelled" / name / "1.png")

    splits = read_own(OWN, parts.parent)

    assert splits.class_names == ("box", "circle")
    assert len(splits.train) == 4
    assert len(own_unlabelled(OWN, parts.parent)) == 2
    assert not left_out(OWN, parts.parent)


def _replace_all(folder: Path, suffix: str) -> None:
    for file in sorted(folder.iterdir()):
        file.unlink()
        (folder / f"{file.stem}{suffix}").write_bytes(PHONE)


@pytest.mark.parametrize(
    ("folder", "suffix", "read", "message"),
    [
        ("labelled/circle", ".HEIC", read_own,
         r"class folder '.*circle' has no image that can be read, but 2 \.heic: install "
         r"promptkd\[heic\] or convert them, or remove the class folder"),
        ("labelled/circle", ".cr2", read_own,
         r"has no image that can be read, but 2 \.cr2: convert them, or add images"),
        ("labelled/box", ".zip", read_own,
         r"has no image that can be read, but 2 \.zip: unpack archives"),
        ("unlabelled", ".heif", own_unlabelled,
         r"has no image that can be read, but 2 \.heif: install promptkd\[heic\]"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("without_heic")
def test_a_folder_without_a_readable_file_is_refused_with_what_it_has(
    folder: str, suffix: str, read: Callable[[OwnImages, Path], object], message: str, parts: Path
) -> None:
    _replace_all(parts / folder, suffix)

    with pytest.raises(BadData, match=message):
        read(OWN, parts.parent)


@pytest.mark.usefixtures("without_heic")
def test_a_list_of_photos_that_cannot_be_read_is_refused(parts: Path) -> None:
    (parts / "labelled" / "box" / "2.png").rename(parts / "labelled" / "box" / "2.HEIC")
    rows = ("labelled/circle/1.png,circle", "labelled/box/2.HEIC,box")
    (parts / "list.csv").write_text("\n".join(["path,label", *rows]))

    with pytest.raises(BadData, match=r"1 of the 2 images .*2\.HEIC': install promptkd\[heic\]"):
        read_own(OwnImages(labelled="parts/list.csv"), parts.parent)
