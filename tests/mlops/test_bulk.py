"""Many images are classified as single ones are, and whatever cannot be read is reported."""

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from pd_core.core.errors import BadData, BadParams, MissingFile
from pd_core.mlops.bulk.inputs import ImageFiles
from pd_core.mlops.bulk.outputs import Format, format_of, writer
from pd_core.mlops.bulk.predict import Count, Row, classify
from pd_core.models.portable.network import Network, Sizes
from pd_core.models.portable.student import PortableStudent

NAMES = ("zero", "one, or two", 'a "third"')
ROWS = [
    Row("a.png", [("zero", 0.75), (NAMES[1], 0.25)]),
    Row("b, c.png", [], "No such file or directory"),
    Row(os.fsdecode(b"caf\xe9.png"), [(NAMES[2], 1.0), ("zero", 0.0)]),
]


@pytest.fixture(scope="module")
def student() -> PortableStudent:
    sizes = Sizes(
        image_size=16, patch_size=8, width=8, layers=1, heads=2, hidden=16, activation="gelu",
        prompt_depth=0, prompt_length=0, joint_width=8, feature_width=8, projector_layers=1,
        classes=3,
    )  # fmt: skip
    return PortableStudent(Network(sizes), {"names": NAMES})


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an entered folder with seven images, a text, a broken image and hidden files."""
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.jpg", "deep/er/c.PNG", "deep/d.png", "e[1].png", ".hidden/x.png"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(file)
    (tmp_path / "photos" / "broken.png").write_text("no image")
    (tmp_path / "photos" / "notes.txt").write_text("")
    (tmp_path / "photos" / "IMG.XYZ").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*given: str, lists: tuple[str, ...] = ()) -> list[str]:
    return [Path(path).as_posix() for path in ImageFiles(given, lists)]


EVERY = [f"photos/{name}" for name in ("a.jpg", "b.png", "broken.png", "e[1].png")] + [
    "photos/deep/d.png", "photos/deep/er/c.PNG",
]  # fmt: skip


@pytest.mark.usefixtures("photos")
def test_a_folder_stands_for_the_images_below_it_in_order() -> None:
    files = ImageFiles(["photos"])
    assert [Path(path).as_posix() for path in files] == EVERY
    assert files.left_out == {".txt": 1, ".xyz": 1}


@pytest.mark.usefixtures("photos")
def test_patterns_name_files_and_folders_and_a_file_with_brackets_is_itself() -> None:
    assert found("photos/*.png") == ["photos/b.png", "photos/broken.png", "photos/e[1].png"]
    assert found("photos/**/*.PNG") == ["photos/deep/er/c.PNG"]
    assert found("photos/de*") == ["photos/deep/d.png", "photos/deep/er/c.PNG"]
    assert found("photos/e[1].png") == ["photos/e[1].png"]
    assert found("photos/*.bmp", "gone") == ["photos/*.bmp", "gone"]  # reported when opened


def test_lists_may_have_a_byte_order_mark_blank_lines_and_names_that_are_not_utf8(
    photos: Path,
) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (photos / "photos" / "b.png").rename(photos / name)
    lines = b"\xef\xbb\xbfphotos/a.jpg\r\n\r\nphotos/deep\n" + os.fsencode(name)
    (photos / "list.txt").write_bytes(lines)
    assert found(lists=("list.txt",)) == ["photos/a.jpg", *EVERY[-2:], name]
    with pytest.raises(MissingFile, match="list of images not found"):
        ImageFiles([], ["gone.txt"])


def test_paths_come_from_standard_input(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "list.txt").write_text("photos/b.png\nphotos/a.jpg\n")
    with (photos / "list.txt").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert found("-") == ["photos/b.png", "photos/a.jpg"]


def test_links_in_a_circle_end(photos: Path) -> None:
    (photos / "photos" / "deep" / "up").symlink_to(photos / "photos")
    assert found("photos") == EVERY


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 1), (3, 2), (2, 64)])
def test_many_images_have_the_predictions_of_single_ones(
    photos: Path, student: PortableStudent, workers: int, batch_size: int
) -> None:
    paths = [*EVERY, "gone.png", "photos"]
    batches = list(classify(student, paths, top=2, workers=workers, batch_size=batch_size))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    rows = [row for batch in batches for row in batch]
    assert [row.image for row in rows] == paths
    errors = {row.image: row.error for row in rows if row.error}
    assert errors == {
        "photos/broken.png": "cannot identify image file",
        "gone.png": "No such file or directory",
        "photos": "Is a directory",
    }
    for row in rows:
        if not row.error:
            single = student.classify(photos / row.image, top=2)
            assert [name for name, _ in row.ranking] == [name for name, _ in single]
            assert dict(row.ranking) == pytest.approx(dict(single), abs=1e-6)


def test_only_a_few_files_are_read_ahead(photos: Path, student: PortableStudent) -> None:
    taken = 0

    def paths() -> Any:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield str(photos / "photos" / "a.jpg")

    rows = classify(student, paths(), top=1, workers=2, batch_size=5)
    next(rows)
    assert taken == 14  # ten are ahead of the first file, and go on with each of the five


def test_a_failure_is_counted_and_raised_at_the_end() -> None:
    count = Count()
    with pytest.raises(BadData, match="no image found"):
        count.check_any()
    count.add(ROWS)
    count.add(ROWS[:1])
    count.check_any()
    with pytest.raises(BadData, match=r"1 of 4 images .* 'b, c.png' \(No such file"):
        count.check_all()


def written(file: Path, format_: Format) -> Path:
    with writer(format_, file, 2) as write:
        write(ROWS[:1])
        write(ROWS[1:])
        assert not file.exists()
    return file


COLUMNS = ["image", "class", "probability", "class_2", "probability_2", "error"]
CELLS: list[list[Any]] = [
    ["a.png", "zero", 0.75, NAMES[1], 0.25, None],
    ["b, c.png", None, None, None, None, "No such file or directory"],
    ["caf\\xe9.png", NAMES[2], 1.0, "zero", 0.0, None],
]


def test_csv_has_a_line_an_image(tmp_path: Path) -> None:
    text = written(tmp_path / "rows.csv", Format.CSV).read_text("utf-8")
    head, *lines = csv.reader(io.StringIO(text))
    assert head == COLUMNS
    assert lines == [["" if cell is None else str(cell) for cell in cells] for cells in CELLS]


def test_parquet_has_the_same_columns(tmp_path: Path) -> None:
    table = parquet.read_table(written(tmp_path / "rows.parquet", Format.PARQUET))
    assert table.column_names == COLUMNS
    assert [list(row.values()) for row in table.to_pylist()] == CELLS
    assert str(table.schema.field("probability_2").type) == "double"


def test_parquet_is_not_written_to_standard_output() -> None:
    with pytest.raises(BadParams, match="--out"), writer(Format.PARQUET, None, 2):
        pass


def test_json_and_json_lines_hold_the_same(tmp_path: Path) -> None:
    lines = written(tmp_path / "rows.jsonl", Format.JSONL).read_text("utf-8").splitlines()
    content = json.loads(written(tmp_path / "rows.json", Format.JSON).read_text("utf-8"))
    assert [json.loads(line) for line in lines] == content
    assert content[0]["predictions"][1] == {"name": NAMES[1], "probability": 0.25}
    assert content[1] == {"image": "b, c.png", "error": "No such file or directory"}


def test_the_table_has_a_line_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    with writer(Format.TABLE, None, 2) as write:
        write(ROWS[:2])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "image probability class", "a.png 75.0% zero", "25.0% one, or two",
        "b, c.png - cannot be read: No such file or directory",
    ]  # fmt: skip


def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path: Path) -> None:
    def fail() -> None:
        with writer(Format.CSV, tmp_path / "rows.csv", 2) as write:
            write(ROWS)
            raise BadData("stop")

    with pytest.raises(BadData, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_format_is_that_of_the_suffix() -> None:
    assert format_of(Path("a/b.CSV")) is Format.CSV
    assert format_of(Path("b.parquet")) is Format.PARQUET
    assert format_of(Path("b.txt")) is format_of(None) is Format.TABLE
