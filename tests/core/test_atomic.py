"""Files and folders appear whole or not at all, also when their writer is killed or has no room."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pd_core.core.atomic import check_space, readable, write_bytes, write_folder
from pd_core.core.errors import NoSpace, PdError

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from pd_core.core import atomic

path, moment = Path(sys.argv[1]), sys.argv[2]


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


match moment:
    case "file":
        os.fsync = die
        atomic.write_bytes(path, b"new")
    case "filling":
        with atomic.write_folder(path) as folder:
            (folder / "a.txt").write_text("half")
            die()
    case "swap":
        rename = Path.rename
        Path.rename = lambda self, target: die() if self.name == "new" else rename(self, target)
        with atomic.write_folder(path) as folder:
            (folder / "a.txt").write_text("new")
"""

WRITTEN_WITHOUT_ROOM = """
import sys
from pathlib import Path
from pd_core.core import atomic

path = Path(sys.argv[1])
try:
    if path.suffix:
        atomic.write_bytes(path, bytes(8 << 20))
    else:
        with atomic.write_folder(path) as folder:
            (folder / "small").write_text("fits")
            (folder / "large").write_bytes(bytes(8 << 20))
except atomic.NoSpace as error:
    sys.exit(f"error: {error}")
"""


def killed(path: Path, moment: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(path), moment])
    assert done.returncode == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_whose_writer_was_killed_is_the_old_one_and_the_next_writer_clears_up(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    killed(path, "file")
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2

    write_bytes(path, b"newer")
    assert names(tmp_path) == ["a.bin"]
    assert path.read_bytes() == b"newer"


def test_whoever_reads_a_file_while_it_is_replaced_reads_the_old_one_to_the_end(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    with path.open("rb") as reader:
        write_bytes(path, b"newer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"newer"


def test_a_folder_whose_writer_was_killed_is_the_old_one_and_the_next_writer_clears_up(
    tmp_path: Path,
) -> None:
    path = tmp_path / "out"
    with write_folder(path) as folder:
        (folder / "a.txt").write_text("old")

    killed(path, "filling")
    assert (path / "a.txt").read_text() == "old"

    with write_folder(path) as folder:
        assert names(folder) == []
        (folder / "a.txt").write_text("newer")
    assert names(tmp_path) == ["out"]


def test_of_a_folder_that_was_being_replaced_the_finished_one_is_found_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "out"
    with write_folder(path) as folder:
        (folder / "a.txt").write_text("old")
    killed(path, "swap")
    assert not path.exists()

    def fail() -> None:
        with write_folder(path):
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert (path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_what_a_living_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with write_folder(path) as first:
        (first / "a.txt").write_text("first")
        script = (
            "from pathlib import Path; from pd_core.core.atomic import write_folder, write_bytes\n"
        )
        script += f"with write_folder(Path({str(path)!r})): pass"
        subprocess.run([sys.executable, "-c", script], check=True)
        assert (first / "a.txt").read_text() == "first"

    assert names(path) == ["a.txt"]
    assert names(tmp_path) == ["out"]


def test_files_of_similar_names_are_not_taken_for_temporary_ones(tmp_path: Path) -> None:
    for name in (".a.json.backup", ".a.jsonl.x.partial", "a.json.partial", ".a"):
        (tmp_path / name).write_text("mine")

    write_bytes(tmp_path / "a.json", b"{}")

    assert len(names(tmp_path)) == 5


@pytest.mark.parametrize("name", ["a.bin", "out"])
def test_a_quota_that_is_used_up_is_one_line_and_loses_nothing(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix:
        path.write_text("old")
    else:
        path.mkdir()
        (path / "small").write_text("old")

    done = subprocess.run(
        [sys.executable, "-c", WRITTEN_WITHOUT_ROOM, str(path)],
        capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot write '{path}': File too large: ")
    assert done.stderr.count("\n") == 1
    assert "make room and start again" in done.stderr
    assert (path if path.suffix else path / "small").read_text() == "old"
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a.bin", "out"])
def test_a_full_disk_is_one_line_and_loses_nothing(name: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    path = disk / name
    first = "old > $1" if path.suffix else "old > $1/small"
    script = f"""
        mount -t tmpfs -o size=2m tmpfs {disk} || exit 99
        {"" if path.suffix else "mkdir $1"}
        echo {first}
        {sys.executable} -c "$2" "$1"; echo "status $?"
        cat {"$1" if path.suffix else "$1/small"}
        ls -A {disk}
    """
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(path), WRITTEN_WITHOUT_ROOM],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode == 1 and "unshare" in done.stderr or done.returncode == 99:
        pytest.skip("no name spaces here; the test with a quota stands for it")

    assert done.stdout.split("\n") == ["status 1", "old", name, ""]
    assert done.stderr.startswith(f"error: cannot write '{path}': No space left on device: ")
    assert ("8.0 MiB are needed, 2.0 MiB are free" in done.stderr) is bool(path.suffix)


def test_room_is_looked_for_before_it_is_needed(tmp_path: Path) -> None:
    place = tmp_path / "not" / "there" / "yet"
    check_space(place, 1, "a test")

    with pytest.raises(NoSpace, match=r"a test needs 1024.0 TiB in '.*yet', where .* are free"):
        check_space(place, 2**50, "a test")
    assert not place.parent.exists()


def test_sizes_are_written_for_people() -> None:
    assert [readable(size) for size in (0, 1023, 1024, 1.5 * 2**30, 2**60)] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "1.5 GiB", "1048576.0 TiB",
    ]  # fmt: skip


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").mkdir()

    with pytest.raises(PdError, match="cannot write .*a.bin"):
        write_bytes(tmp_path / "a.bin", b"")
    assert names(tmp_path) == ["a.bin"]
