"""Files are written whole or not at all, and the same content gives the same bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pd_core.core.artifacts import read_json, read_tensors, write_json, write_tensors, write_text
from pd_core.core.atomic import write_folder
from pd_core.core.errors import BadArtifact, MissingFile, PdError, unknown

WRITE = """
import sys
from pathlib import Path
from test_artifacts import write_metadata
write_metadata(Path(sys.argv[1]))
"""


def write_metadata(path: Path) -> None:
    metadata = {key: key for key in ["a", "bc", "def", "ghij", "klmno"]}
    write_tensors(path, {"y": torch.ones(2, 3), "x": torch.arange(5)}, metadata)


def test_json_comes_back_and_has_sorted_keys_and_a_final_newline(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.json"
    write_json(path, {"b": 1, "a": ["ü", None, 0.5]})

    assert read_json(path) == {"a": ["ü", None, 0.5], "b": 1}
    assert path.read_text(encoding="utf-8").startswith('{\n  "a"')
    assert path.read_bytes().endswith(b"}\n")


def test_json_refuses_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"b": torch.randn(2, 3), "a": torch.tensor(7), "t": torch.randn(3, 4).T}
    write_tensors(path, tensors, {"model": "größer"})

    values, metadata = read_tensors(path)

    assert metadata == {"model": "größer"}
    assert values.keys() == tensors.keys()
    assert all(torch.equal(values[name], value) for name, value in tensors.items())


def test_equal_tensors_give_equal_bytes_in_every_process(tmp_path: Path) -> None:
    # The order of the metadata would follow a hash that differs from process to process.
    here, elsewhere = tmp_path / "here.safetensors", tmp_path / "elsewhere.safetensors"
    write_metadata(here)
    command = [sys.executable, "-c", WRITE, str(elsewhere)]
    subprocess.run(command, check=True, cwd=Path(__file__).parent)

    assert here.read_bytes() == elsewhere.read_bytes()


def test_a_failed_block_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with write_folder(out) as folder:
        write_text(folder / "a.txt", "old")

    def fail() -> None:
        with write_folder(out) as folder:
            write_text(folder / "a.txt", "half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert (out / "a.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    for name in ("old.txt", "new.txt"):
        with write_folder(out) as folder:
            write_text(folder / name, name)

    assert [path.name for path in out.iterdir()] == ["new.txt"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_missing_file_says_what_to_run(tmp_path: Path) -> None:
    for read in (read_json, read_tensors):
        with pytest.raises(MissingFile, match="teacher not found.*run `dvc repro teacher@dtd`"):
            read(tmp_path / "no", what="teacher", remedy="run `dvc repro teacher@dtd`")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(b'{"half')

    for read in (read_json, read_tensors):
        with pytest.raises(BadArtifact, match="damaged"):
            read(path)


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "below"

    with pytest.raises(PdError, match="cannot write .*below") as caught:
        write_json(place, {})
    assert "\n" not in str(caught.value)
    with pytest.raises(PdError, match="cannot write .*below"), write_folder(place):
        pass


def test_an_unknown_name_gets_a_guess_and_the_known_ones() -> None:
    error = unknown("data set", "dtd2", ["dtd", "pets"])

    assert str(error) == "unknown data set 'dtd2'; did you mean 'dtd'? known: dtd, pets"
    assert "did you mean" not in str(unknown("data set", "zzz", ["dtd", "pets"]))


def test_an_error_is_one_line_whatever_it_was_made_from() -> None:
    assert str(PdError("two\n  lines")) == "two lines"


def test_json_files_are_plain_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1, 2])

    assert json.loads((tmp_path / "a.json").read_text()) == [1, 2]
