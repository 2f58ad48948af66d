"""Unpack archives that are not trusted, and move the wanted parts to where they belong.

Members may be files and folders only: a link, a device, a path that leads out of the folder, two
members for one file (as the file system compares names), or more members or bytes than allowed, and
the archive is refused.
"""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from pd_core.core.atomic import check_space
from pd_core.core.errors import BadData
from pd_core.core.hooks import OnProgress
from pd_core.data.acquire.download import writing
from pd_core.data.acquire.sources import Placement
from pd_core.data.loading.splits import is_below

_BLOCK = 2**20
_MAX_HEADER = 64 * 2**20  # bytes of a tar header, which is read at once; none comes near it
_ZIP_ENTRY = b"PK\x01\x02"
_CORRUPT = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile)


@dataclass(frozen=True)
class Limits:
    """Limits of what an archive unpacks to; the defaults fit every archive of the table.

    Attributes:
        members: Number of members.
        total: Bytes.
        ratio: Bytes for each byte of the archive; images barely reach two, text ten.
        small: Bytes up to which the ratio does not count.
    """

    members: int = 1_000_000
    total: int = 400 * 2**30
    ratio: int = 100
    small: int = 64 * 2**20


LIMITS = Limits()


def unpack(
    archive: Path,
    folder: Path,
    *,
    nested: Sequence[str] = (),
    limits: Limits = LIMITS,
    on_progress: OnProgress | None = None,
) -> None:
    """Unpack an untrusted archive.

    Args:
        archive: A zip, tar or tar.gz file; its content decides, not its name.
        folder: Empty or new folder; after an error it may hold some of the members.
        nested: Names of archives inside, which are unpacked where they are and removed.
        limits: Limits of the archive; nested ones count separately.
        on_progress: Called with bytes done and total bytes of the archive.

    Raises:
        BadData: The archive is corrupt, of another format, or has a forbidden member.
        PdError: The disk is full or cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        guard = _Guard(archive, limits)
        unpack_format = _unpack_zip if _is_zip(archive) else _unpack_tar
        try:
            unpack_format(archive, folder, guard, on_progress)
        except _CORRUPT as error:
            raise BadData(
                f"archive '{archive}' is damaged or cut off ({error}); delete it and fetch it again"
            ) from None
        except FileExistsError as error:
            path = Path(error.filename).relative_to(folder)
            raise guard.refusal(f"has two members for one file, '{path}'") from None
        except NotImplementedError as error:  # a compression that zipfile lacks
            raise guard.refusal(f"cannot be unpacked ({error})") from None
    for name in nested:
        for inner in sorted(folder.rglob(name)):
            unpack(inner, inner.parent, limits=limits)
            inner.unlink()


def place(tree: Path, placements: Iterable[Placement], folder: Path) -> None:
    """Move the wanted parts of an unpacked archive to their targets; other files there stay.

    Args:
        tree: The unpacked archive.
        placements: Wanted folders and files, and their targets.
        folder: Folder that the targets are below.

    Raises:
        BadData: A wanted part is missing, or a target is a file and the part a folder or reverse.
        PdError: The disk is full or cannot be written.
    """
    moves = [(_locate(tree, item.member), folder / item.target) for item in placements]
    for part, target in moves:
        with writing(target):
            _merge(part, target)


def _locate(tree: Path, wanted: str) -> Path:
    for pattern in (wanted, f"*/{wanted}", f"*/*/{wanted}"):
        match sorted(path for path in tree.glob(pattern) if "__MACOSX" not in path.parts):
            case [path]:
                return path
            case [first, second, *_]:
                raise BadData(
                    f"the archive has '{wanted}' twice: '{first.relative_to(tree)}' and "
                    f"'{second.relative_to(tree)}'; its layout is not the known one"
                )
    names = ", ".join(sorted(path.name for path in tree.iterdir())[:5]) or "nothing"
    raise BadData(f"the archive has no '{wanted}', but {names}; its layout is not the known one")


def _merge(part: Path, target: Path) -> None:
    if part.is_dir() and target.is_dir():
        for child in sorted(part.iterdir()):
            _merge(child, target / child.name)
        return
    if target.exists() and part.is_dir() != target.is_dir():
        raise BadData(f"'{target}' is in the way: a file where a folder goes, or the reverse")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(part, target)


class _Guard:
    """Checks the members of an archive, and counts what it unpacks to."""

    def __init__(self, archive: Path, limits: Limits) -> None:
        self._archive = archive
        self._limits = limits
        self._packed = archive.stat().st_size
        self._members = self._total = 0

    def check_member(self, name: str, *, allowed: bool, kinds: str) -> None:
        """Count a member, and check its name and kind."""
        self._members += 1
        if self._members > self._limits.members:
            raise self.refusal(f"has more than {self._limits.members} members")
        if not is_below(name):
            raise self.refusal(f"has a member that leads out of the folder, '{name[:80]}'")
        if not allowed:
            raise self.refusal(f"has a member that is {kinds}, '{name[:80]}'")

    def count(self, size: int) -> None:
        """Count unpacked bytes."""
        self._total += size
        if self._total > self._limits.total:
            raise self.refusal(f"unpacks to more than {self._limits.total} bytes")
        if self._total > max(self._limits.small, self._limits.ratio * self._packed):
            raise self.refusal(f"unpacks to more than {self._limits.ratio} times its size")

    def refusal(self, reason: str) -> BadData:
        """Return the error."""
        return BadData(
            f"archive '{self._archive}' {reason}; it is refused: do not trust its source"
        )


def _is_zip(archive: Path) -> bool:
    with archive.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _unpack_zip(archive: Path, folder: Path, guard: _Guard, on_progress: OnProgress | None) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        size = sum(member.file_size for member in members)
        guard.count(size)  # zipfile reads no more of a member than it claims to have
        check_space(folder, size, f"unpacking '{archive}'")
        total, done = sum(member.compress_size for member in members), 0
        for member in members:
            if _ZIP_ENTRY in member.comment + member.extra:  # zipfile does not count them
                raise zipfile.BadZipFile("an entry of its list swallows the next one")
            kind = stat.S_IFMT(member.external_attr >> 16)
            allowed = kind in (0, stat.S_IFREG, stat.S_IFDIR) and not member.flag_bits & 1
            kinds = "encrypted, a link or a device"
            guard.check_member(member.filename, allowed=allowed, kinds=kinds)
            target = folder / member.filename
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            with packed.open(member) as content:
                _write(content, target)
            done += member.compress_size
            if on_progress is not None:
                on_progress(done, total)


def _unpack_tar(archive: Path, folder: Path, guard: _Guard, on_progress: OnProgress | None) -> None:
    total = archive.stat().st_size
    check_space(folder, total, f"unpacking '{archive}'")  # a lower bound if it is compressed
    with archive.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = _TarStream(gzip.GzipFile(fileobj=raw) if compressed else raw, guard)
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as packed:
            for member in packed:
                allowed = (member.isreg() and not member.issparse()) or member.isdir()
                kinds = "a link, a device or a sparse file"
                guard.check_member(member.name, allowed=allowed, kinds=kinds)
                target, content = folder / member.name, packed.extractfile(member)
                if content is None:
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                _write(content, target)
                if on_progress is not None:
                    on_progress(raw.tell(), total)
        if stream.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a cut off file for complete
            raise tarfile.ReadError("no end mark")
        while stream.read(_BLOCK):  # to the end, where gzip has its checksum
            pass


def _write(content: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        shutil.copyfileobj(content, file, _BLOCK)


class _TarStream:
    """Stream for tarfile that counts the bytes it reads; `last` are those of the last read."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, guard: _Guard) -> None:
        self.last = b""
        self.seek, self.tell = stream.seek, stream.tell
        self._stream = stream
        self._guard = guard

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes."""
        if size > _MAX_HEADER:
            raise self._guard.refusal(f"has a header of {size} bytes")
        self.last = self._stream.read(size)
        self._guard.count(len(self.last))
        return self.last
