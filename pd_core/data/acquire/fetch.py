"""Fetch data sets and CLIP weights from their origins or the mirror, and unpack them.

Downloads are kept as they came in `<data root>/archives/<data set>/`, for the mirror;
`<file>.unpacked` beside one records that it was unpacked. Both may be deleted to save space:
without the record a file is unpacked again, without the archive it is downloaded again first.

Archives are untrusted. One is unpacked completely into a temporary folder, from which the wanted
folders and files are moved to where they belong. Its members may be files and folders only: a link,
a device, a path that leads out of the folder, two members for one file (as the file system compares
names), or more members or bytes than allowed, and the archive is refused.
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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from filelock import FileLock, Timeout

from pd_core.core.atomic import check_space
from pd_core.core.errors import BadData, MissingFile, PdError, missing
from pd_core.core.hooks import OnNote, OnProgress
from pd_core.data.acquire.download import digest, download, has_checksum, writing
from pd_core.data.acquire.mirror import Mirror
from pd_core.data.acquire.sources import WEIGHTS, Address, Placement, RemoteFile, Source
from pd_core.data.loading.splits import is_below

ARCHIVES = "archives"
"""Folder below the data root that keeps the downloads."""

_BLOCK = 2**20
_MAX_HEADER = 64 * 2**20  # bytes of a tar header, which is read at once; none comes near it
_ZIP_ENTRY = b"PK\x01\x02"
_CORRUPT = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile)

Watch = Callable[[str], AbstractContextManager[OnProgress]]


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


@dataclass(frozen=True)
class Fetcher:
    """Fetches data sets and weights; files that are complete are not fetched again.

    Its methods raise MissingFile if the user has to do something first or files are not there,
    BadData if a download is corrupt or no address served it, and PdError if the disk is full or
    cannot be written, another process fetches the same data set, or the mirror refuses.

    Attributes:
        root: Data root, which holds all data sets and the folder of the weights.
        watch: Opens a progress display with a title, in bytes.
        on_note: Called with a line about each completed step.
        limits: Limits of archives.
    """

    root: Path
    watch: Watch
    on_note: OnNote
    limits: Limits = LIMITS

    def fetch(self, source: Source) -> None:
        """Download and unpack a data set, by the first of its routes that succeeds."""
        self._require_manual_step(source)
        with self._locked(source) as archives:
            reasons = []
            for route in sorted(source.routes, key=lambda route: not _all_in(archives, route)):
                try:
                    # Small files first: if one of them fails, no large one was downloaded in vain.
                    for file in sorted(route, key=lambda file: file.is_archive):
                        if not self._is_unpacked(source, file):
                            self._download(file, archives / file.name)
                    for file in route:
                        self._install(source, file)
                except BadData as error:
                    reasons.append(str(error))
                else:
                    return
        raise BadData(f"data set '{source.name}': {'; or else: '.join(reasons)}")

    def push(self, source: Source, mirror: Mirror) -> None:
        """Upload the downloaded archives of a data set to the mirror."""
        archives = self._archives(source)
        route = next((route for route in source.routes if _all_in(archives, route)), None)
        if route is None:
            remedy = f"run `promptkd data fetch {source.name}`"
            raise missing(f"archives of '{source.name}'", archives, remedy)
        for file in route:
            self._push(mirror, archives / file.name)

    def pull(self, source: Source, mirror: Mirror) -> None:
        """Download the archives of a data set from the mirror, and unpack them."""
        self._require_manual_step(source)
        archives = self._archives(source)
        for route in source.routes:
            if all(mirror.has(self._key(archives / file.name)) for file in route):
                break
        else:
            raise MissingFile(
                f"the mirror {mirror.url()} does not have '{source.name}'; run `promptkd data "
                f"mirror push {source.name}` where it was fetched"
            )
        with self._locked(source):
            for file in route:
                if not self._is_unpacked(source, file):
                    self._pull(mirror, archives / file.name, file)
                    self._install(source, file)

    def fetch_weights(self, file: RemoteFile) -> None:
        """Download weights to the folder that params.yaml refers to."""
        self._download(file, self.root / WEIGHTS / file.name)

    def push_weights(self, file: RemoteFile, mirror: Mirror) -> None:
        """Upload weights to the mirror."""
        target = self.root / WEIGHTS / file.name
        if problem := check_weights(file, self.root):
            raise BadData(f"weights '{target}': {problem}")
        self._push(mirror, target)

    def pull_weights(self, file: RemoteFile, mirror: Mirror) -> None:
        """Download weights from the mirror."""
        self._pull(mirror, self.root / WEIGHTS / file.name, file)

    def _archives(self, source: Source) -> Path:
        return self.root / ARCHIVES / source.name

    def _key(self, target: Path) -> str:
        return target.relative_to(self.root).as_posix()

    def _require_manual_step(self, source: Source) -> None:
        folder = self.root / source.folder
        if source.by_hand and not (folder / source.needs).exists():
            raise MissingFile(source.by_hand.format(folder=folder))

    @contextmanager
    def _locked(self, source: Source) -> Iterator[Path]:
        """Lock the archives of a data set against other processes; yield their folder."""
        archives = self._archives(source)
        with writing(archives):
            archives.mkdir(parents=True, exist_ok=True)
            lock = FileLock(archives / ".lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise PdError(
                    f"another process is fetching '{source.name}' to '{self.root}'; wait for it"
                ) from None
        try:
            yield archives
        finally:
            lock.release()

    def _download(self, file: RemoteFile, target: Path) -> None:
        """Download a file, unless it is there with the right checksum."""
        if target.is_file() and (not file.checksums or has_checksum(target, file.checksums)):
            self.on_note(f"{file.name}: here already")
            return
        with self.watch(f"fetch {file.name}") as on_progress:
            address = download(file.addresses, target, on_progress=on_progress)
        self.on_note(f"{file.name}: fetched from {address.url} ({trust(address)})")

    def _push(self, mirror: Mirror, target: Path) -> None:
        with self.watch(f"push {target.name}") as on_progress:
            sent = mirror.push(target, self._key(target), on_progress=on_progress)
        self.on_note(f"{target.name}: {'pushed' if sent else 'on the mirror already'}")

    def _pull(self, mirror: Mirror, target: Path, file: RemoteFile) -> None:
        with self.watch(f"pull {target.name}") as on_progress:
            pulled = mirror.pull(
                self._key(target), target, checksums=file.checksums, on_progress=on_progress
            )
        self.on_note(f"{target.name}: {'pulled' if pulled else 'here already'}")

    def _record_of(self, source: Source, file: RemoteFile) -> Path:
        return self._archives(source) / f"{file.name}.unpacked"

    def _is_unpacked(self, source: Source, file: RemoteFile) -> bool:
        targets = (self.root / source.folder / item.target for item in file.placements)
        return self._record_of(source, file).is_file() and all(path.exists() for path in targets)

    def _install(self, source: Source, file: RemoteFile) -> None:
        """Unpack a downloaded file and move its content to where it belongs."""
        if self._is_unpacked(source, file):
            return
        archive, folder = self._archives(source) / file.name, self.root / source.folder
        tree = self.root / f".unpacking-{source.name}-{file.name}"  # on the target's disk
        with writing(tree):
            shutil.rmtree(tree, ignore_errors=True)  # of a killed process
        try:
            if file.is_archive:
                with self.watch(f"unpack {file.name}") as progress:
                    unpack(
                        archive, tree, nested=file.nested, limits=self.limits, on_progress=progress
                    )
            else:
                with writing(tree):
                    tree.mkdir()
                    shutil.copyfile(archive, tree / file.name)
            place(tree, file.placements, folder)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
        record = self._record_of(source, file)
        with writing(record):
            record.write_text(json.dumps({"placed": [p.target for p in file.placements]}) + "\n")
        self.on_note(f"{file.name}: placed in {folder}")


def check_weights(file: RemoteFile, root: Path) -> str:
    """Return what is wrong with a file of weights; empty if its checksum is right or not known."""
    target = root / WEIGHTS / file.name
    if not target.is_file():
        return f"not found; run `promptkd weights fetch {file.name}`"
    if not file.checksums:
        return ""
    actual = digest(target, file.checksums[0])
    if actual in file.checksums:
        return ""
    expected = " or ".join(file.checksums)
    return f"has {actual}, expected {expected}; run `promptkd weights fetch {file.name}`"


def trust(address: Address) -> str:
    """Return where the checksum of an address comes from, in words."""
    kind = address.checksum.partition(":")[0]
    if not address.unverified:
        return f"{kind} as in {address.origin}"
    checksum = f"{kind} from users' reports" if address.checksum else "no checksum known"
    return f"unverified: {checksum}, address from {address.origin}"


def _all_in(folder: Path, route: Sequence[RemoteFile]) -> bool:
    return all((folder / file.name).is_file() for file in route)


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
