import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pd_core.core.errors import BadArtifact, BadData, MissingFile
from pd_core.data.catalog.fingerprint import (
    SAMPLE_SIZE,
    Fingerprint,
    Level,
    check,
    fingerprint,
    path_of,
    read,
    write,
)

LEVELS = tuple(Level)
Damage = Callable[[Path], object]


def picture(number: int) -> str:
    return f"images/class{number % 3}/{number}.jpg"


def fill(base: Path, numbers: Iterable[int]) -> Path:
    for number in numbers:
        file = base / picture(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"picture {number:04d}")
    (base / "labels.txt").write_text("one two three")
    return base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return fill(tmp_path / "set", range(12))


def sources(base: Path) -> list[Path]:
    return [base / "images", base / "labels.txt"]


def of(base: Path, level: Level = Level.FULL) -> Fingerprint:
    return fingerprint(sources(base), base, level=level)


def written(value: Fingerprint, folder: Path) -> bytes:
    write(folder / "fingerprint.json", value)
    return (folder / "fingerprint.json").read_bytes()


@pytest.mark.parametrize("level", LEVELS)
def test_equal_files_have_equal_fingerprints_whatever_their_place_order_and_time(
    level: Level, tmp_path: Path
) -> None:
    first = fill(tmp_path / "here", range(300))
    second = fill(tmp_path / "somewhere" / "else", reversed(range(300)))
    for file in second.rglob("*.jpg"):
        os.utime(file, (1, 1))

    record, other = written(of(first, level), first), written(of(second, level), second)

    assert record == other
    assert record.endswith(b"}\n")
    assert str(tmp_path).encode() not in record


def test_the_record_has_level_and_counts(base: Path) -> None:
    content = json.loads(written(of(base), base))

    assert content["level"] == "full"
    assert content["files"] == content["hashed"] == 13
    assert content["bytes"] == 12 * len("picture 0000") + len("one two three")
    assert content["format"] == 1


def test_the_hashes_and_the_sample_stay_as_they_are(tmp_path: Path) -> None:
    value = of(fill(tmp_path, range(300)), Level.SAMPLE)

    assert value.names[:16] == "19d3be0ac32ddaa2"
    assert value.content[:16] == "f1d4a987b5d77224"


def test_a_sample_is_of_images_and_all_label_files_are_read(tmp_path: Path) -> None:
    base = fill(tmp_path, range(SAMPLE_SIZE + 50))

    assert of(base, Level.SAMPLE).hashed == SAMPLE_SIZE + 1
    assert of(base, Level.FULL).hashed == SAMPLE_SIZE + 51


def test_what_is_written_is_read_again(base: Path, tmp_path: Path) -> None:
    value, path = of(base, Level.SAMPLE), path_of("dtd", tmp_path)
    write(path, value)

    assert path == tmp_path / "fingerprints" / "dtd.json"
    assert read(path, "dtd") == value


def _edit_a_picture(base: Path) -> None:
    (base / picture(5)).write_text("picture 9999")


def _edit_the_labels(base: Path) -> None:
    (base / "labels.txt").write_text("one two thief")


def _shift_a_byte(base: Path) -> None:
    (base / picture(1)).write_text("picture 00010")
    (base / picture(2)).write_text("picture 002")


def _swap(base: Path) -> None:
    first, second = base / picture(0), base / picture(3)
    first.write_text("picture 0003")
    second.write_text("picture 0000")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("damage", "difference"),
    [
        (_edit_a_picture, "the content of some of the 13 files read is another"),
        (_edit_the_labels, "the content of some of the 13 files read is another"),
        (_swap, "the content of some of the 13 files read is another"),
        (
            lambda base: (base / picture(5)).rename(base / "images" / "5.jpg"),
            "the names or the sizes of some of the 13 files are others",
        ),
        (_shift_a_byte, "the names or the sizes of some of the 13 files are others"),
        (lambda base: (base / picture(5)).unlink(), "expected 13 files, found 12"),
        (lambda base: fill(base, [99]), "expected 13 files, found 14"),
        (
            lambda base: (base / picture(5)).write_text("picture"),
            "expected 157 bytes in 13 files, found 152",
        ),
    ],
)
def test_a_change_is_described_in_one_line(
    level: Level, damage: Damage, difference: str, base: Path
) -> None:
    recorded = of(base, level)
    check(recorded, sources(base), base, name="dtd")
    damage(base)

    with pytest.raises(BadData) as caught:
        check(recorded, sources(base), base, name="dtd")

    assert difference in str(caught.value)
    assert "restore the files" in str(caught.value)
    assert "run `promptkd data fingerprint dtd` and commit it" in str(caught.value)


def test_only_the_full_level_detects_an_edit_of_equal_size_outside_the_sample(
    tmp_path: Path,
) -> None:
    base = fill(tmp_path, range(SAMPLE_SIZE + 60))
    sample, full = of(base, Level.SAMPLE), of(base, Level.FULL)
    missed = 0
    for number in range(SAMPLE_SIZE + 60):
        file = base / picture(number)
        before = file.read_text()
        file.write_text("picture abcd")
        if of(base, Level.SAMPLE) == sample:
            missed += 1
            assert of(base, Level.FULL) != full
            if missed == 2:
                break
        file.write_text(before)

    assert missed == 2


def test_a_missing_folder_is_named(base: Path) -> None:
    recorded = of(base)
    shutil.rmtree(base / "images")

    with pytest.raises(MissingFile, match="no '.*images'"):
        check(recorded, sources(base), base, name="dtd")


def test_progress_is_reported_to_the_end(base: Path) -> None:
    steps: list[tuple[int, int]] = []
    fingerprint(sources(base), base, level=Level.FULL, on_progress=lambda *step: steps.append(step))

    assert steps[-1] == (13, 13)


def test_a_linked_folder_counts_as_the_folder(base: Path, tmp_path: Path) -> None:
    expected = of(base)
    (base / "images" / "class0").rename(tmp_path / "elsewhere")
    (base / "images" / "class0").symlink_to(tmp_path / "elsewhere")
    (base / "images").rename(tmp_path / "pictures")
    (base / "images").symlink_to(tmp_path / "pictures")

    assert of(base) == expected


@pytest.mark.parametrize("name", ["picture.jpg", "folder"])
def test_a_broken_link_is_refused(name: str, base: Path) -> None:
    (base / "images" / name).symlink_to(base / "nowhere")

    with pytest.raises(BadData, match=f"{name}' is a link that leads nowhere"):
        of(base)


def test_a_folder_that_may_not_be_read_is_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def guarded(folder: str) -> Any:  # permissions do not bind root, as which tests may run
        if folder.endswith("class0"):
            raise PermissionError
        return scan(folder)

    monkeypatch.setattr(os, "scandir", guarded)

    with pytest.raises(BadData, match="class0' may not be read"):
        of(base)


def test_a_link_in_a_circle_is_refused(base: Path) -> None:
    (base / "images" / "class0" / "again").symlink_to(base / "images")

    with pytest.raises(BadData, match="again' is a link to a folder that it is in"):
        of(base)


def test_a_picture_that_is_no_regular_file_is_refused(base: Path) -> None:
    os.mkfifo(base / "images" / "pipe.jpg")

    with pytest.raises(BadData, match="pipe.jpg' is no regular file"):
        of(base)


def test_other_files_count_only_as_sources_of_their_own(base: Path) -> None:
    expected = of(base)
    for name in ("Thumbs.db", ".hidden.jpg", "readme.html"):
        (base / "images" / name).write_text("text")
    (base / "images" / ".cache").mkdir()
    (base / "images" / ".cache" / "0.jpg").write_text("text")
    (base / "other.txt").write_text("text")

    assert of(base) == expected


def test_files_of_two_sources_count_once(base: Path) -> None:
    twice = [base / "images", base / picture(0), base / "images" / "class0", base / "labels.txt"]

    assert fingerprint(twice, base, level=Level.FULL) == of(base)


def test_a_name_may_be_no_utf8(base: Path) -> None:
    file = os.path.join(os.fsencode(base / "images"), b"\xff.jpg")  # noqa: PTH118
    try:
        with open(file, "wb"):  # noqa: PTH123
            pass
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")

    assert of(base).files == 14


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        json.dumps({**vars(Fingerprint(Level.FULL, 1, 1, "", "", 1)), "format": 2}),
        json.dumps({**vars(Fingerprint(Level.FULL, 1, 1, "", "", 1)), "level": "some"}),
        json.dumps({**vars(Fingerprint(Level.FULL, 1, 1, "", "", 1)), "more": 2}),
    ],
)
def test_another_file_is_no_fingerprint(content: str, tmp_path: Path) -> None:
    (tmp_path / "dtd.json").write_text(content)

    with pytest.raises(BadArtifact, match=r"no fingerprint of format 1: run .*fingerprint dtd"):
        read(tmp_path / "dtd.json", "dtd")


def test_twenty_thousand_files_take_little_time(tmp_path: Path) -> None:
    for number in range(20_000):
        folder = tmp_path / f"{number % 20}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(b"%d" % number)

    start = time.process_time()
    value = fingerprint([tmp_path], tmp_path, level=Level.SAMPLE)

    assert time.process_time() - start < 3  # 0.4 s on two slow cores
    assert (value.files, value.bytes, value.hashed) == (20_000, 88_890, SAMPLE_SIZE)
