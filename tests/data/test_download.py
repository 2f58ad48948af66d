import gzip
import hashlib
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from file_server import FileServer, server

from pd_core.core.errors import BadData, PdError
from pd_core.data.acquire.download import Part, Retries, digest, download
from pd_core.data.acquire.sources import Address, Origin

__all__ = ["server"]  # fixtures

CONTENT = random.Random(0).randbytes(3_000_000)
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "below" / "file.tar"


def get(target: Path, *urls: str, checksum: str = CHECKSUM, **options: Any) -> Address:
    """Download from the first of some URLs, without a pause before retries."""
    addresses = [Address(url, Origin.REPORTED, checksum) for url in urls]
    return download(addresses, target, retries=Retries(**{"backoff": 0, **options}))


def write_part(target: Path, url: str, content: bytes) -> None:
    """Leave a partial file, as a killed run does."""
    target.parent.mkdir(exist_ok=True)
    part = Part(target)
    part.begin(url, '"1"')
    part.file.write_bytes(content)


def test_a_file_is_downloaded_with_progress_and_nothing_else_is_left(
    server: FileServer, target: Path
) -> None:
    server.add("file", CONTENT)
    progress: list[tuple[int, int]] = []
    address = Address(server.url("file"), Origin.REPORTED, CHECKSUM)

    assert download([address], target, on_progress=lambda *step: progress.append(step)) == address

    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["file.tar"]
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert len(progress) == 3


def test_a_broken_transfer_is_resumed(server: FileServer, target: Path) -> None:
    file = server.add("file", CONTENT)
    file.cuts = [1_000_000, 500_000]

    get(target, server.url("file"))

    assert target.read_bytes() == CONTENT
    assert file.asked == ["", "bytes=1000000-", "bytes=1500000-"]


def test_a_later_run_resumes_the_partial_file(server: FileServer, target: Path) -> None:
    file = server.add("file", CONTENT)
    file.cuts = [2_000_000]
    with pytest.raises(BadData, match="broke|IncompleteRead"):
        get(target, server.url("file"), attempts=1)

    assert Part(target).size == 2_000_000
    get(target, server.url("file"), attempts=1)

    assert target.read_bytes() == CONTENT
    assert file.asked == ["", "bytes=2000000-"]
    assert file.versions == ["", '"1"']


@pytest.mark.parametrize("extra", [b"", b"more"], ids=["complete", "too long"])
def test_a_partial_file_of_the_full_size_is_only_verified(
    extra: bytes, server: FileServer, target: Path
) -> None:
    file = server.add("file", CONTENT)
    write_part(target, server.url("file"), CONTENT + extra)

    get(target, server.url("file"))

    assert target.read_bytes() == CONTENT
    assert file.asked == [f"bytes={len(CONTENT + extra)}-", *([""] if extra else [])]


@pytest.mark.parametrize("honoured", [True, False])
def test_a_file_that_changed_in_between_is_downloaded_anew(
    honoured: bool, server: FileServer, target: Path
) -> None:
    file = server.add("file", CONTENT)
    file.etag, file.honours_if_range = '"2"', honoured
    write_part(target, server.url("file"), bytes(1_000_000))

    get(target, server.url("file"), attempts=1)

    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(("ranges", "etag"), [(False, '"1"'), (True, ""), (True, 'W/"weak"')])
def test_without_ranges_or_strong_validators_the_download_starts_over(
    ranges: bool, etag: str, server: FileServer, target: Path
) -> None:
    file = server.add("file", CONTENT)
    file.ranges, file.etag, file.cuts = ranges, etag, [1_000_000]

    get(target, server.url("file"))

    assert target.read_bytes() == CONTENT
    assert file.asked == (["", ""] if ranges else ["", "bytes=1000000-"])


def test_a_server_without_progress_is_given_up(server: FileServer, target: Path) -> None:
    file = server.add("file", CONTENT)
    file.ranges, file.cuts = False, [1000] * 50

    with pytest.raises(BadData, match="could not download 'file.tar'"):
        get(target, server.url("file"), attempts=4)

    assert len(file.asked) == 4


def test_a_busy_server_gets_retries(server: FileServer, target: Path) -> None:
    file = server.add("file", CONTENT)
    file.statuses = [503, 429]

    get(target, server.url("file"))

    assert target.read_bytes() == CONTENT
    file.statuses = [503] * 9
    with pytest.raises(BadData, match="status 503"):
        get(target, server.url("file"), attempts=3)
    assert file.statuses == [503] * 6


def test_the_next_address_is_used_if_one_fails(server: FileServer, target: Path) -> None:
    server.add("wrong", b"another file")
    server.add("file", CONTENT)
    urls = [server.url(path) for path in ("missing", "wrong", "file")]

    assert get(target, *urls).url == urls[2]
    assert target.read_bytes() == CONTENT


def test_if_all_addresses_fail_each_is_named_with_its_reason(
    server: FileServer, target: Path
) -> None:
    server.add("wrong", b"another file")
    page = server.add("page", b"<p>Quota exceeded</p>")
    page.content_type = "text/html; charset=utf-8"
    server.add("disguised", b"\n<!DOCTYPE html><html>Sorry</html>")
    closed = "http://127.0.0.1:9/file"
    urls = [server.url(path) for path in ("missing", "wrong", "page", "disguised")]

    with pytest.raises(BadData) as caught:
        get(target, *urls, closed, attempts=1)

    message = str(caught.value)
    assert f"{urls[0]}: status 404" in message
    assert f"{urls[1]}: checksum is sha256:" in message
    assert f"expected {CHECKSUM}" in message
    assert message.count("HTML page") == 2
    assert f"{closed}: [Errno 111]" in message
    assert "0x" not in message
    assert "\n" not in message
    assert not target.exists()
    assert not Part(target).size


def test_a_partial_file_is_resumed_at_its_own_address(server: FileServer, target: Path) -> None:
    first, second = server.add("first", CONTENT), server.add("second", CONTENT)
    write_part(target, server.url("second"), CONTENT[:1_000_000])

    get(target, server.url("first"), server.url("second"))

    assert second.asked == ["bytes=1000000-"]
    assert not first.asked


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_above_the_limit_is_refused(
    announced: bool, server: FileServer, target: Path
) -> None:
    server.add("file", CONTENT).announced = announced

    with pytest.raises(BadData, match="more than the limit of 1000000"):
        get(target, server.url("file"), max_bytes=1_000_000)

    assert not target.exists()


def test_a_full_disk_is_noticed_before_anything_is_written(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("file", CONTENT)
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    with pytest.raises(PdError, match="needs 2.9 MiB .* 1000 bytes are free; make room"):
        get(target, server.url("file"))

    assert not Part(target).size


def test_a_folder_that_cannot_be_written_is_named(server: FileServer, tmp_path: Path) -> None:
    server.add("file", CONTENT)
    (tmp_path / "taken").touch()

    with pytest.raises(PdError, match="cannot write '.*taken/file.*Not a directory|File exists"):
        get(tmp_path / "taken" / "file", server.url("file"))


def test_a_gzip_archive_is_not_decoded(server: FileServer, target: Path) -> None:
    packed = gzip.compress(CONTENT)
    file = server.add("file", packed)
    file.content_type = "application/x-tar\r\nContent-Encoding: gzip"

    get(target, server.url("file"), checksum="")

    assert target.read_bytes() == packed


def test_checksums_are_md5_or_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")

    assert digest(tmp_path / "file", "md5:...") == "md5:900150983cd24fb0d6963f7d28e17f72"
    assert digest(tmp_path / "file", "sha256").startswith("sha256:ba7816bf8f01cfea414140de5dae2223")
