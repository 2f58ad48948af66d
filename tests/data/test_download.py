import hashlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, file_server

from pd_core.core.errors import BadData, PdError
from pd_core.data.acquire.download import Part, Patience, digest, download
from pd_core.data.acquire.sources import Address, Origin

CONTENT = random.Random(0).randbytes(3_000_000)
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "below" / "file.tar"


def at(url: str, checksum: str = CHECKSUM) -> Address:
    return Address(url, Origin.REPORTED, checksum)


def test_a_file_is_downloaded_with_its_progress_and_nothing_else_is_left(
    server: FileServer, target: Path
) -> None:
    server.add("file", CONTENT)
    progress: list[tuple[int, int]] = []

    came_from = download(
        [at(server.url("file"))], target, on_progress=lambda *step: progress.append(step)
    )

    assert came_from.url == server.url("file")
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["file.tar"]
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert len(progress) == 3


def test_a_cut_connection_is_taken_up_where_it_broke(server: FileServer, target: Path) -> None:
    file = server.add("file", CONTENT)
    file.cuts = [1_000_000, 500_000]

    download([at(server.url("file"))], target, patience=Patience(pause=0))

    assert target.read_bytes() == CONTENT
    assert file.asked == ["", "bytes=1000000-", "bytes=1500000-"]


def test_another_run_takes_up_what_a_killed_one_left(server: FileServer, target: Path) -> None:
    file = server.add("file", CONTENT)
    file.cuts = [2_000_000]
    with pytest.raises(BadData, match="broke|IncompleteRead"):
        download([at(server.url("file"))], target, patience=Patience(attempts=1))

    assert Part(target).size == 2_000_000
    download([at(server.url("file"))], target, patience=Patience(attempts=1))

    assert target.read_bytes() == CONTENT
    assert file.asked == ["", "bytes=2000000-"]
    assert file.versions == ["", '"1"']


def test_a_run_killed_before_the_renaming_only_checks(server: FileServer, target: Path) -> None:
    file = server.add("file", CONTENT)
    target.parent.mkdir()
    part = Part(target)
    part.begin(server.url("file"), '"1"')
    part.file.write_bytes(CONTENT)

    download([at(server.url("file"))], target)

    assert target.read_bytes() == CONTENT
    assert file.asked == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("honoured", [True, False])
def test_a_file_that_changed_in_between_is_downloaded_anew(
    honoured: bool, server: FileServer, target: Path
) -> None:
    old = server.add("file", bytes(len(CONTENT)))
    old.cuts = [1_000_000]
    with pytest.raises(BadData):
        download([at(server.url("file"))], target, patience=Patience(attempts=1))
    new = server.add("file", CONTENT)
    new.etag, new.honours_if_range = '"2"', honoured

    download([at(server.url("file"))], target, patience=Patience(attempts=1))

    assert target.read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_is_thrown_away(
    server: FileServer, target: Path
) -> None:
    server.add("file", CONTENT)
    target.parent.mkdir()
    part = Part(target)
    part.begin(server.url("file"), '"1"')
    part.file.write_bytes(CONTENT + b"more")

    download([at(server.url("file"))], target)

    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(("ranges", "etag"), [(False, '"1"'), (True, ""), (True, 'W/"weak"')])
def test_a_server_without_ranges_or_strong_versions_is_asked_anew(
    ranges: bool, etag: str, server: FileServer, target: Path
) -> None:
    file = server.add("file", CONTENT)
    file.ranges, file.etag, file.cuts = ranges, etag, [1_000_000]

    download([at(server.url("file"))], target, patience=Patience(pause=0))

    assert target.read_bytes() == CONTENT
    assert file.asked == (["", ""] if ranges else ["", "bytes=1000000-"])


def test_a_server_that_never_gets_further_is_given_up(server: FileServer, target: Path) -> None:
    file = server.add("file", CONTENT)
    file.ranges, file.cuts = False, [1000] * 50

    with pytest.raises(BadData, match="could not download 'file.tar'"):
        download([at(server.url("file"))], target, patience=Patience(attempts=4, pause=0))

    assert len(file.asked) == 4


def test_a_busy_server_is_asked_again(server: FileServer, target: Path) -> None:
    file = server.add("file", CONTENT)
    file.statuses = [503, 429]

    download([at(server.url("file"))], target, patience=Patience(pause=0))

    assert target.read_bytes() == CONTENT


def test_the_next_address_is_tried_and_the_failures_do_not_show(
    server: FileServer, target: Path
) -> None:
    server.add("wrong", b"another file")
    server.add("file", CONTENT)
    urls = [server.url(path) for path in ("missing", "wrong", "file")]

    assert download([at(url) for url in urls], target).url == urls[2]
    assert target.read_bytes() == CONTENT


def test_without_any_working_address_each_is_named_with_its_reason_in_one_line(
    server: FileServer, target: Path
) -> None:
    server.add("wrong", b"another file")
    page = server.add("page", b"<p>Quota exceeded</p>")
    page.content_type = "text/html; charset=utf-8"
    server.add("disguised", b"\n<!DOCTYPE html><html>Sorry</html>")
    closed = "http://127.0.0.1:9/file"
    urls = [server.url(path) for path in ("missing", "wrong", "page", "disguised")]

    with pytest.raises(BadData) as caught:
        download([at(url) for url in (*urls, closed)], target, patience=Patience(attempts=1))

    message = str(caught.value)
    assert f"{urls[0]}: status 404" in message
    assert f"{urls[1]}: checksum sha256:" in message
    assert f"where {CHECKSUM} belongs" in message
    assert message.count("HTML page in place of the file") == 2
    assert f"{closed}: [Errno 111]" in message
    assert "0x" not in message
    assert "\n" not in message
    assert not target.exists()
    assert not Part(target).size


def test_a_part_goes_on_at_the_address_that_it_came_from(server: FileServer, target: Path) -> None:
    second = server.add("second", CONTENT)
    second.cuts = [1_000_000]
    addresses = [at(server.url("first")), at(server.url("second"))]
    with pytest.raises(BadData):
        download(addresses, target, patience=Patience(attempts=1))
    first = server.add("first", CONTENT)

    download(addresses, target, patience=Patience(attempts=1))

    assert second.asked[1:] == ["bytes=1000000-"]
    assert not first.asked


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_above_the_limit_is_refused(
    announced: bool, server: FileServer, target: Path
) -> None:
    server.add("file", CONTENT).announced = announced

    with pytest.raises(BadData, match="more than the 1000000 "):
        download([at(server.url("file"))], target, patience=Patience(most_bytes=1_000_000))

    assert not target.exists()


def test_a_full_disk_is_noticed_before_anything_is_written(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("file", CONTENT)
    usage = shutil.disk_usage("/")._replace(free=2_999_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    with pytest.raises(PdError, match="no room .*3000000 bytes are still to come, 2999999 are fr"):
        download([at(server.url("file"))], target)


def test_a_folder_that_cannot_be_written_is_named(server: FileServer, tmp_path: Path) -> None:
    server.add("file", CONTENT)
    (tmp_path / "taken").touch()

    with pytest.raises(PdError, match="cannot write '.*taken/file.*Not a directory|File exists"):
        download([at(server.url("file"))], tmp_path / "taken" / "file")


def test_an_archive_comes_as_it_lies_on_the_server(server: FileServer, target: Path) -> None:
    import gzip

    packed = gzip.compress(CONTENT)
    file = server.add("file", packed)
    file.content_type = "application/x-tar\r\nContent-Encoding: gzip"

    download([at(server.url("file"), "")], target)

    assert target.read_bytes() == packed


def test_both_kinds_of_checksums_are_known(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")

    assert digest(tmp_path / "file", "md5:...") == "md5:900150983cd24fb0d6963f7d28e17f72"
    assert digest(tmp_path / "file", "sha256").startswith("sha256:ba7816bf8f01cfea414140de5dae2223")
