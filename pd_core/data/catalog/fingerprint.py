"""Fingerprints: what a data set's files are, in a few hundred bytes that git can keep.

DVC would hash every picture at each run, minutes for a million of them. Stages depend on a
fingerprint instead, and compare it with the pictures before they read any. It is made of names,
sizes and contents alone, so the same files give the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from pd_core.core.artifacts import read_json, write_json
from pd_core.core.errors import BadArtifact, BadData, MissingFile
from pd_core.core.hooks import OnProgress
from pd_core.data.loading.splits import is_picture

FILE = "fingerprint.json"
"""Beside a prepared data set: what its images have to be; not there for embedded ones."""

FORMAT = 1
"""Version of the recorded form; another one gives other hashes for the same files."""

SAMPLE_SIZE = 256
"""Pictures whose content is hashed at the level `SAMPLE`."""

MISSED = "a picture edited without changing its size, outside the sample, goes unnoticed"
"""What the level `SAMPLE` cannot see, for those who read its result."""

_SAMPLE_SEED = b"1/"  # put before a name, its hash decides whether the picture is in the sample
_READERS = 8  # threads: hashing and reading let others run
_CHUNK = 64  # files a thread takes at a time


class Level(StrEnum):
    """How much of the content a fingerprint covers, beside all names and sizes."""

    SAMPLE = "sample"  # label files and archives, and `SAMPLE_SIZE` pictures
    FULL = "full"  # every file


@dataclass(frozen=True)
class Fingerprint:
    """What a data set's files are."""

    level: Level  # how much `content` covers
    files: int  # number of files
    bytes: int  # their size together
    names: str  # SHA-256 of all names and sizes, in hexadecimal
    content: str  # SHA-256 of the contents of `hashed` files, in hexadecimal
    hashed: int  # number of files whose content was read
    format: int = FORMAT  # when it was made


class _File(NamedTuple):
    key: bytes  # its name below the base, with forward slashes; bytes sort alike everywhere
    path: str
    size: int
    is_picture: bool


def fingerprint(
    sources: Sequence[Path], base: Path, *, level: Level, on_progress: OnProgress | None = None
) -> Fingerprint:
    """Compute the fingerprint of folders of pictures and of single files.

    The level `SAMPLE` reads files that are no pictures whole, and `SAMPLE_SIZE` pictures, chosen
    by a hash of their names. It misses edits of other pictures that leave their size as it was.

    Args:
        sources: Folders, searched for pictures however deep, and files of any kind. Links are
            followed; hidden files and folders are left out. What is found twice counts once.
        base: Folder above all of them that names start from.
        level: How much content to read.
        on_progress: Gets the number of files read so far, and of those to read.

    Raises:
        MissingFile: A source is not there.
        BadData: A folder has no pictures, a link leads nowhere or in a circle, or a file cannot be
            read.
    """
    try:
        found = {file.key: file for source in sources for file in _files(source, base)}
    except OSError as error:
        raise BadData(f"'{error.filename}' cannot be read ({error.strerror}): restore it") from None
    files = [found[key] for key in sorted(found)]
    names = hashlib.sha256()
    for file in files:
        names.update(b"%b\0%d\n" % (file.key, file.size))
    chosen = _chosen(files, level)
    content = hashlib.sha256()
    for file, digest in zip(chosen, _digests(chosen, on_progress), strict=True):
        content.update(b"%b\0%b\n" % (file.key, digest))
    return Fingerprint(
        level=level,
        files=len(files),
        bytes=sum(file.size for file in files),
        names=names.hexdigest(),
        content=content.hexdigest(),
        hashed=len(chosen),
    )


def check(
    recorded: Fingerprint,
    sources: Sequence[Path],
    base: Path,
    *,
    name: str,
    on_progress: OnProgress | None = None,
) -> None:
    """Compare files with a fingerprint of the same level.

    At the level `SAMPLE` an edited image outside the sample passes if its size is the same.

    Args:
        recorded: What they should be.
        sources: As `fingerprint` got them, and so are the others.
        base: What names start from.
        name: The data set, for the message.
        on_progress: Gets the number of files read so far, and of those to read.

    Raises:
        MissingFile: A source is not there.
        BadData: The files are others; the message says in what, and what to do.
    """
    found = fingerprint(sources, base, level=recorded.level, on_progress=on_progress)
    difference = _difference(recorded, found)
    if difference:
        raise BadData(
            f"data set '{name}' is not what its fingerprint says: {difference}; restore the files "
            f"in '{base}', or run `promptkd data fingerprint {name}` and commit it"
        )


def path_of(name: str, project: Path) -> Path:
    """Where the fingerprint of a data set is kept: in the repository, not beside the pictures."""
    return project / "fingerprints" / f"{name}.json"


def write(path: Path, value: Fingerprint) -> None:
    """Write a fingerprint as JSON."""
    write_json(path, asdict(value))


def read(path: Path, name: str) -> Fingerprint:
    """Read what `write` wrote for a data set.

    Raises:
        MissingFile: There is no such file.
        BadArtifact: It is not a fingerprint, or one of another format.
    """
    remedy = f"run `promptkd data fingerprint {name}`"
    content = read_json(path, what="fingerprint", remedy=remedy)
    match content:
        case {
            "level": ("sample" | "full") as level,
            "files": int(files),
            "bytes": int(size),
            "names": str(names),
            "content": str(hashes),
            "hashed": int(hashed),
            "format": int(form),
            **rest,
        } if not rest and form == FORMAT:
            return Fingerprint(Level(level), files, size, names, hashes, hashed, form)
        case _:
            raise BadArtifact(f"'{path}' is no fingerprint of format {FORMAT}: {remedy}")


def _difference(recorded: Fingerprint, found: Fingerprint) -> str:
    """Say in what two fingerprints differ, the coarsest thing only; nothing if they are equal."""
    if found.files != recorded.files:
        return f"expected {recorded.files} files, found {found.files}"
    if found.bytes != recorded.bytes:
        return f"expected {recorded.bytes} bytes in {recorded.files} files, found {found.bytes}"
    if found.names != recorded.names:
        return f"the names or the sizes of some of the {recorded.files} files are others"
    if found.content != recorded.content:
        return f"the content of some of the {recorded.hashed} files read is another"
    return ""


def _files(source: Path, base: Path) -> Iterator[_File]:
    name = source.relative_to(base).as_posix()
    path = os.fspath(source)
    try:
        info = source.stat()
    except FileNotFoundError:
        raise MissingFile(f"no '{path}': restore it, or correct PD_DATA_ROOT") from None
    if stat.S_ISDIR(info.st_mode):
        prefix = "" if name == "." else f"{name}/"
        pictures = list(_pictures(path, prefix, frozenset([_identity(info)])))
        if not pictures:
            raise BadData(f"'{path}' has no pictures: restore them")
        yield from pictures
    else:
        yield _file(name, path, info, is_picture(source.name))


def _pictures(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[_File]:
    """Yield a folder's pictures, however deep; `above` are the folders that lead here."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                here = _identity(Path(entry.path).stat())
                if here in above:
                    raise BadData(f"'{entry.path}' links to a folder it is in: remove the link")
                yield from _pictures(entry.path, f"{name}/", above | {here})
            elif is_picture(entry.name):
                yield _file(name, entry.path, _followed(entry), True)
            elif entry.is_symlink():
                _followed(entry)  # may have been a folder of pictures


def _file(name: str, path: str, info: os.stat_result, is_picture: bool) -> _File:
    if not stat.S_ISREG(info.st_mode):
        raise BadData(f"'{path}' is no regular file: remove it")
    # Names that are not UTF-8 come back as the bytes that they are.
    return _File(name.encode("utf-8", "surrogateescape"), path, info.st_size, is_picture)


def _followed(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except FileNotFoundError:
        raise BadData(f"'{entry.path}' is a link that leads nowhere: mend or remove it") from None


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _chosen(files: list[_File], level: Level) -> list[_File]:
    """Return the files whose content counts, in the order given."""
    match level:
        case Level.FULL:
            return files
        case Level.SAMPLE:
            drawn = heapq.nsmallest(SAMPLE_SIZE, (f for f in files if f.is_picture), key=_draw)
            sample = {file.key for file in drawn}
            return [file for file in files if not file.is_picture or file.key in sample]


def _draw(file: _File) -> bytes:
    return hashlib.sha256(_SAMPLE_SEED + file.key).digest()


def _digests(files: list[_File], on_progress: OnProgress | None) -> Iterator[bytes]:
    """Yield the SHA-256 of every file's content, in order."""
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    done = 0
    with ThreadPoolExecutor(_READERS) as pool:
        for digests in pool.map(_hash_all, chunks):
            yield from digests
            done += len(digests)
            if on_progress is not None:
                on_progress(done, len(files))


def _hash_all(files: list[_File]) -> list[bytes]:
    return [_hash(file.path) for file in files]


def _hash(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise BadData(f"'{path}' cannot be read ({error.strerror}): restore it") from None
