"""Unpack zip and tar archives that nobody vouches for.

An archive is unpacked whole into a folder of its own; then what is wanted of it is moved to where
it belongs. Its members may be files and folders only: a link, a device, a path that leads out, two
members for one file (as the file system sees names), more members or bytes than are allowed, and
the archive is refused. Sizes are counted as the bytes come, not only taken from headers.
"""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from pd_core.core.atomic import check_space
from pd_core.core.errors import BadData
from pd_core.data.acquire.download import OnProgress, writing
from pd_core.data.acquire.sources import Placement
from pd_core.data.loading.splits import is_below

_BLOCK = 2**20
_LARGEST_READ = 64 * 2**20  # tar headers are read at once; none is near it
_ZIP_ENTRY = b"PK\x01\x02"
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile)


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to.

    Attributes:
        members: Most files and folders.
        total: Most bytes.
        ratio: Most bytes for each byte of the archive; pictures barely reach two, text ten.
        small: Bytes up to which the ratio does not count.
    """

    members: int = 1_000_000
    total: int = 400 * 2**30
    ratio: int = 100
    small: int = 64 * 2**20


LIMITS = Limits()
"""Wide enough for every archive of the table."""


def unpack(
    archive: Path,
    folder: Path,
    *,
    nested: Sequence[str] = (),
    limits: Limits = LIMITS,
    on_progress: OnProgress | None = None,
) -> None:
    """Unpack an archive into a folder that is empty, or made.

    Args:
        archive: A zip, tar or tar.gz file; its content decides which, not its name.
        folder: Where its members go. After an error it may hold a part of them.
        nested: Names of archives inside, which are unpacked where they lie and removed.
        limits: What it may unpack to; nested archives count for themselves.
        on_progress: Called with bytes done and bytes in all, of the archive as it is packed.

    Raises:
        BadData: The archive is damaged, of another kind, or has a member that it must not have.
        PdError: The disk is full or cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        budget = _Budget(archive, limits)
        unpack_kind = _unpack_zip if _is_zip(archive) else _unpack_tar
        try:
            unpack_kind(archive, folder, budget, on_progress)
        except _BROKEN as error:
            raise BadData(
                f"archive '{archive}' is damaged or cut off ({error}); delete it and fetch it again"
            ) from None
        except FileExistsError as error:
            twice = Path(error.filename).relative_to(folder)
            raise budget.refusal(f"has two members for one file, '{twice}'") from None
        except NotImplementedError as error:  # zipfile's, for a compression that it lacks
            raise budget.refusal(f"cannot be unpacked ({error})") from None
    for name in nested:
        for inner in sorted(folder.rglob(name)):
            unpack(inner, inner.parent, limits=limits)
            inner.unlink()


def place(tree: Path, placements: Iterable[Placement], folder: Path) -> None:
    """Move what is wanted out of an unpacked archive; what other archives put there stays.

    Args:
        tree: The unpacked archive.
        placements: What is wanted and where it goes.
        folder: What their targets are below.

    Raises:
        BadData: Something wanted is not in the archive, or a file is where a folder goes.
        PdError: The disk is full or cannot be written.
    """
    moves = [(_locate(tree, item.found), folder / item.placed) for item in placements]
    for found, target in moves:
        with writing(target):
            _merge(found, target)


def _locate(tree: Path, wanted: str) -> Path:
    for pattern in (wanted, f"*/{wanted}", f"*/*/{wanted}"):
        match sorted(path for path in tree.glob(pattern) if "__MACOSX" not in path.parts):
            case [found]:
                return found
            case [first, second, *_]:
                raise BadData(
                    f"the archive has '{wanted}' twice: '{first.relative_to(tree)}' and "
                    f"'{second.relative_to(tree)}'; its layout is not the known one"
                )
    held = ", ".join(sorted(path.name for path in tree.iterdir())[:5]) or "nothing"
    raise BadData(f"the archive has no '{wanted}', but {held}; its layout is not the known one")


def _merge(found: Path, target: Path) -> None:
    if found.is_dir() and target.is_dir():
        for child in sorted(found.iterdir()):
            _merge(child, target / child.name)
        return
    if target.exists() and found.is_dir() != target.is_dir():
        raise BadData(f"'{target}' is in the way: a file where a folder goes, or the reverse")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(found, target)


class _Budget:
    """Counts what comes out of an archive, and refuses what is too much."""

    def __init__(self, archive: Path, limits: Limits) -> None:
        self._archive = archive
        self._limits = limits
        self._packed = archive.stat().st_size
        self._members = self._total = 0

    def member(self, name: str, *, allowed: bool, what: str) -> None:
        """Count a member, and check its name and kind."""
        self._members += 1
        if self._members > self._limits.members:
            raise self.refusal(f"has more than {self._limits.members} members")
        if not is_below(name):
            raise self.refusal(f"has a member that leads out of the folder, '{name[:80]}'")
        if not allowed:
            raise self.refusal(f"has a member that is {what}, '{name[:80]}'")

    def bytes(self, count: int) -> None:
        """Count bytes that were unpacked."""
        self._total += count
        self.check(self._total)

    def check(self, total: int) -> None:
        """Check a number of bytes, those unpacked or those that the archive claims to have."""
        if total > self._limits.total:
            raise self.refusal(f"unpacks to more than {self._limits.total} bytes")
        if total > max(self._limits.small, self._limits.ratio * self._packed):
            raise self.refusal(f"unpacks to more than {self._limits.ratio} times its size")

    def refusal(self, why: str) -> BadData:
        """Make the error."""
        return BadData(f"archive '{self._archive}' {why}; it is refused: do not trust its source")


def _is_zip(archive: Path) -> bool:
    with archive.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _unpack_zip(
    archive: Path, folder: Path, budget: _Budget, on_progress: OnProgress | None
) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        claimed = sum(member.file_size for member in members)
        budget.check(claimed)
        check_space(folder, claimed, f"unpacking '{archive}'")
        total, done = sum(member.compress_size for member in members), 0
        for member in members:
            if _ZIP_ENTRY in member.comment + member.extra:  # zipfile does not count them
                raise zipfile.BadZipFile("an entry of its list swallows the next one")
            kind = stat.S_IFMT(member.external_attr >> 16)
            allowed = kind in (0, stat.S_IFREG, stat.S_IFDIR) and not member.flag_bits & 1
            budget.member(member.filename, allowed=allowed, what="encrypted, a link or a device")
            target = folder / member.filename
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            with packed.open(member) as source:
                _write(source, target, budget.bytes)
            done += member.compress_size
            if on_progress is not None:
                on_progress(done, total)


def _unpack_tar(
    archive: Path, folder: Path, budget: _Budget, on_progress: OnProgress | None
) -> None:
    total = archive.stat().st_size
    check_space(folder, total, f"unpacking '{archive}'")  # at the least, if it is packed
    with ExitStack() as stack:
        raw = stack.enter_context(archive.open("rb"))
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        plain = stack.enter_context(gzip.GzipFile(fileobj=raw)) if zipped else raw
        counted = _Counted(plain, budget)
        packed = stack.enter_context(tarfile.open(fileobj=cast(IO[bytes], counted), mode="r:"))
        for member in packed:
            allowed = (member.isreg() and not member.issparse()) or member.isdir()
            budget.member(member.name, allowed=allowed, what="a link, a device or a sparse file")
            target = folder / member.name
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            source = packed.extractfile(member)
            if source is not None:
                _write(source, target, expected=member.size)
            if on_progress is not None:
                on_progress(raw.tell(), total)
        if counted.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes this for the end as well
            raise tarfile.ReadError("no end mark")
        while counted.read(_BLOCK):  # to the end, where gzip has its checksum
            pass


def _write(
    source: IO[bytes],
    target: Path,
    count: Callable[[int], None] | None = None,
    expected: int | None = None,
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with target.open("xb") as file:
        while block := source.read(_BLOCK):
            if count is not None:
                count(len(block))
            file.write(block)
            written += len(block)
    if expected is not None and written != expected:
        raise EOFError(f"'{target.name}' has {written} of {expected} bytes")


class _Counted:
    """A stream out of an archive whose bytes are counted, headers and all.

    Attributes:
        last: What was read last.
    """

    def __init__(self, stream: BinaryIO | gzip.GzipFile, budget: _Budget) -> None:
        self.last = b""
        self._stream = stream
        self._budget = budget

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes."""
        if size > _LARGEST_READ:
            raise self._budget.refusal(f"has a header of {size} bytes")
        self.last = self._stream.read(size)
        self._budget.bytes(len(self.last))
        return self.last

    def seek(self, position: int) -> int:
        """Go to a position."""
        return self._stream.seek(position)

    def tell(self) -> int:
        """Return the position."""
        return self._stream.tell()
