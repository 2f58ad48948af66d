"""Get data sets and weights, from their origins or from the mirror, and unpack them.

What is downloaded is kept in `<data root>/archives/<data set>/`, as it came, so that it can be
mirrored; `<file>.unpacked` beside it says that it was unpacked. Both may be deleted to save room:
without the note a file is unpacked again, without the archive it is fetched again for that.

Nobody vouches for an archive. It is unpacked whole into a folder of its own; then what is wanted
of it is moved to where it belongs. Its members may be files and folders only: a link, a device, a
path that leads out, two members for one file (as the file system sees names), more members or
bytes than are allowed, and the archive is refused. Sizes are counted as the bytes come, not only
taken from headers.
"""

from __future__ import annotations

import gzip
import json
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from filelock import FileLock, Timeout

from pd_core.core.atomic import check_space
from pd_core.core.errors import BadData, MissingFile, PdError, missing
from pd_core.core.hooks import OnNote, OnProgress
from pd_core.data.acquire import mirror
from pd_core.data.acquire.download import digest, download, writing
from pd_core.data.acquire.mirror import Mirror
from pd_core.data.acquire.sources import FOLDER as WEIGHTS
from pd_core.data.acquire.sources import Address, Placement, RemoteFile, Source
from pd_core.data.loading.splits import is_below

ARCHIVES = "archives"
"""Folder below the data root that keeps what was downloaded."""

_BLOCK = 2**20
_LARGEST_READ = 64 * 2**20  # tar headers are read at once; none is near it
_ZIP_ENTRY = b"PK\x01\x02"
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile)


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to; the default is wide enough for every archive of the table."""

    members: int = 1_000_000
    total: int = 400 * 2**30  # bytes
    ratio: int = 100  # bytes for each byte of the archive; images barely reach two, text ten
    small: int = 64 * 2**20  # bytes up to which the ratio does not count


LIMITS = Limits()


Watch = Callable[[str], AbstractContextManager[OnProgress]]


@dataclass(frozen=True)
class Fetcher:
    """Gets data sets and weights; what is done already is not done again.

    Each method may raise MissingFile: the user has to do something first, or files are not there;
    BadData: what came is damaged, or no address gave it, and the message has each with its reason;
    PdError: the disk is full or cannot be written, another process fetches the same data set, or
    the mirror cannot be reached, or refuses.

    Attributes:
        root: Folder that holds all data sets, and the folder of the weights.
        watch: Makes what shows the progress of something with a title, in bytes.
        on_note: Called with a line about each thing done.
        limits: What an archive may unpack to.
    """

    root: Path
    watch: Watch
    on_note: OnNote
    limits: Limits = LIMITS

    def fetch(self, source: Source) -> None:
        """Download and unpack a data set, by the first of its routes that leads to it."""
        self._require_by_hand(source)
        with self._alone(source) as kept:
            reasons = []
            for route in sorted(source.routes, key=lambda route: not _all_here(route, kept)):
                try:
                    # Plain files first: if one cannot be had, nothing large came in vain.
                    for file in sorted(route, key=lambda file: file.is_archive):
                        if not self._is_unpacked(source, file):
                            self._bring(file, kept / file.name)
                    for file in route:
                        self._install(source, file)
                except BadData as error:
                    reasons.append(str(error))
                else:
                    return
        raise BadData(f"data set '{source.name}': {'; or else: '.join(reasons)}")

    def push(self, source: Source, to: Mirror) -> None:
        """Copy the kept archives of a data set to the mirror."""
        kept = self._kept(source)
        route = next((route for route in source.routes if _all_here(route, kept)), None)
        if route is None:
            remedy = f"run `promptkd data fetch {source.name}`"
            raise missing(f"archives of '{source.name}'", kept, remedy)
        for file in route:
            self._push(to, kept / file.name)

    def pull(self, source: Source, origin: Mirror) -> None:
        """Get the archives of a data set from the mirror, and unpack them."""
        self._require_by_hand(source)
        kept = self._kept(source)
        for route in source.routes:
            if all(mirror.has(origin, self._path(kept / file.name)) for file in route):
                break
        else:
            raise MissingFile(
                f"the mirror s3://{origin.bucket}/{origin.prefix} does not have '{source.name}'; "
                f"run `promptkd data mirror push {source.name}` where it was fetched"
            )
        with self._alone(source):
            for file in route:
                if not self._is_unpacked(source, file):
                    self._pull(origin, kept / file.name, file)
                    self._install(source, file)

    def fetch_weights(self, file: RemoteFile) -> None:
        """Download weights to where the profiles look for them."""
        self._bring(file, self.root / WEIGHTS / file.name)

    def push_weights(self, file: RemoteFile, to: Mirror) -> None:
        """Copy weights to the mirror."""
        target = self.root / WEIGHTS / file.name
        if problem := check_weights(file, self.root):
            raise BadData(f"weights '{target}': {problem}")
        self._push(to, target)

    def pull_weights(self, file: RemoteFile, origin: Mirror) -> None:
        """Get weights from the mirror."""
        self._pull(origin, self.root / WEIGHTS / file.name, file)

    def _kept(self, source: Source) -> Path:
        return self.root / ARCHIVES / source.name

    def _path(self, target: Path) -> str:
        """Return what the mirror calls a file."""
        return target.relative_to(self.root).as_posix()

    def _require_by_hand(self, source: Source) -> None:
        folder = self.root / source.folder
        if source.by_hand and not (folder / source.needs).exists():
            raise MissingFile(source.by_hand.format(folder=folder))

    @contextmanager
    def _alone(self, source: Source) -> Iterator[Path]:
        """Keep other processes from the archives of a data set; return their folder."""
        kept = self._kept(source)
        with writing(kept):
            kept.mkdir(parents=True, exist_ok=True)
            lock = FileLock(kept / ".lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise PdError(
                    f"another process is fetching '{source.name}' to '{self.root}'; wait for it"
                ) from None
        try:
            yield kept
        finally:
            lock.release()

    def _bring(self, file: RemoteFile, target: Path) -> None:
        """Download a file, unless it is here and is what it should be."""
        known = file.checksums
        if target.is_file() and (not known or any(digest(target, one) == one for one in known)):
            self.on_note(f"{file.name}: here already")
            return
        with self.watch(f"fetch {file.name}") as on_progress:
            address = download(file.addresses, target, on_progress=on_progress)
        self.on_note(f"{file.name}: fetched from {address.url} ({trust(address)})")

    def _push(self, to: Mirror, target: Path) -> None:
        with self.watch(f"push {target.name}") as on_progress:
            sent = mirror.push(to, target, self._path(target), on_progress=on_progress)
        self.on_note(f"{target.name}: {'pushed' if sent else 'on the mirror already'}")

    def _pull(self, origin: Mirror, target: Path, file: RemoteFile) -> None:
        path, known = self._path(target), file.checksums
        with self.watch(f"pull {target.name}") as on_progress:
            came = mirror.pull(origin, path, target, checksums=known, on_progress=on_progress)
        self.on_note(f"{target.name}: {'pulled' if came else 'here already'}")

    def _note_of(self, source: Source, file: RemoteFile) -> Path:
        return self._kept(source) / f"{file.name}.unpacked"

    def _is_unpacked(self, source: Source, file: RemoteFile) -> bool:
        targets = (self.root / source.folder / item.placed for item in file.placements)
        return self._note_of(source, file).is_file() and all(path.exists() for path in targets)

    def _install(self, source: Source, file: RemoteFile) -> None:
        """Put what a kept file holds where it belongs, all of it or nothing."""
        if self._is_unpacked(source, file):
            return
        kept, folder = self._kept(source) / file.name, self.root / source.folder
        tree = self.root / f".unpacking-{source.name}-{file.name}"  # on the disk where things go
        with writing(tree):
            shutil.rmtree(tree, ignore_errors=True)  # of a process that was killed
        try:
            if file.is_archive:
                with self.watch(f"unpack {file.name}") as progress:
                    unpack(kept, tree, nested=file.nested, limits=self.limits, on_progress=progress)
            else:
                with writing(tree):
                    tree.mkdir()
                    shutil.copyfile(kept, tree / file.name)
            place(tree, file.placements, folder)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
        note = self._note_of(source, file)
        with writing(note):
            placed = [item.placed for item in file.placements]
            note.write_text(json.dumps({"placed": placed}) + "\n")
        self.on_note(f"{file.name}: placed in {folder}")


def check_weights(file: RemoteFile, root: Path) -> str:
    """Say what is wrong with weights; nothing if they are there and what they should be."""
    target = root / WEIGHTS / file.name
    if not target.is_file():
        return f"not found; run `promptkd weights fetch {file.name}`"
    found = digest(target, file.checksums[0])
    if found in file.checksums:
        return ""
    expected = " or ".join(file.checksums)
    return f"has {found}, expected {expected}; run `promptkd weights fetch {file.name}`"


def trust(address: Address) -> str:
    """Say how far an address can be trusted."""
    kind = address.checksum.partition(":")[0]
    if not address.unverified:
        return f"{kind} as in {address.origin}"
    known = f"{kind} from users' reports" if address.checksum else "no checksum known"
    return f"unverified: {known}, address from {address.origin}"


def _all_here(route: Sequence[RemoteFile], kept: Path) -> bool:
    return all((kept / file.name).is_file() for file in route)


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
    """A stream out of an archive whose bytes are counted, headers too; `last` is the last read."""

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
