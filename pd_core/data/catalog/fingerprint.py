"""Fingerprints of data sets: hashes of their files, in a few hundred bytes for git.

DVC would hash every image at each run, which takes minutes for a million. Stages depend on a
fingerprint instead, and compare it with the images before they read any. It covers names, sizes and
contents alone, so the same files give the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

from pd_core.core.artifacts import read_json, write_json
from pd_core.core.errors import BadArtifact, BadData, MissingFile
from pd_core.core.hooks import OnProgress
from pd_core.data.loading.splits import is_hidden, is_picture

FILE = "fingerprint.json"
"""Expected fingerprint of the images, in a prepared data set that is not embedded."""

FORMAT = 1
"""Version of the format; another one gives other hashes for the same files."""

SAMPLE_SIZE = 256
"""Images whose content is hashed at the level `SAMPLE`."""

MISSED = "an image edited without changing its size, outside the sample, goes unnoticed"
"""Limitation of the level `SAMPLE`, for messages."""

_SAMPLE_SEED = b"1/"  # prefix of a name; the hash of both draws the sample
_THREADS = 8  # hashing and reading release the lock
_CHUNK = 64  # files a thread takes at a time


class Level(StrEnum):
    """Content that a fingerprint covers, beside all names and sizes."""

    SAMPLE = "sample"  # label files and archives, and `SAMPLE_SIZE` images
    FULL = "full"  # every file


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of a data set's files."""

    level: Level  # coverage of `content`
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
    """Compute the fingerprint of folders of images and of single files.

    The level `SAMPLE` reads all files that are no images, and `SAMPLE_SIZE` images, drawn by a hash
    of their names. It does not detect edits of other images that keep their size.

    Args:
        sources: Folders, searched for images however deep, and files of any kind. Links are
            followed; hidden files and folders are left out. Duplicates count once.
        base: Folder above all of them that names start from.
        level: Content to read.
        on_progress: Called with files read and total files to read.

    Raises:
        MissingFile: A source is missing.
        BadData: A folder has no images, a link is broken or circular, or a file cannot be read.
    """
    try:
        by_key = {file.key: file for source in sources for file in _files(source, base)}
    except OSError as error:
        raise BadData(f"'{error.filename}' cannot be read ({error.strerror}): restore it") from None
    files = [by_key[key] for key in sorted(by_key)]
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
    """Compare files with a recorded fingerprint, at its level.

    Args:
        recorded: Expected fingerprint.
        sources: As for `fingerprint`.
        base: As for `fingerprint`.
        name: Name of the data set, for the error.
        on_progress: As for `fingerprint`.

    Raises:
        MissingFile: A source is missing.
        BadData: The files differ.
    """
    actual = fingerprint(sources, base, level=recorded.level, on_progress=on_progress)
    difference = _difference(recorded, actual)
    if difference:
        raise BadData(
            f"data set '{name}' is not what its fingerprint says: {difference}; restore the files "
            f"in '{base}', or run `promptkd data fingerprint {name}` and commit it"
        )


def path_of(name: str, project: Path) -> Path:
    """Return the path of a data set's fingerprint in the repository."""
    return project / "fingerprints" / f"{name}.json"


def write(path: Path, value: Fingerprint) -> None:
    """Write a fingerprint as JSON."""
    write_json(path, asdict(value))


def read(path: Path, name: str) -> Fingerprint:
    """Read the fingerprint of a data set.

    Raises:
        MissingFile: There is no such file.
        BadArtifact: It is no fingerprint, or one of another format.
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


def walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the files below a folder, however deep: path below it, and entry.

    Links are followed; hidden files and folders, and those of systems, are left out.

    Raises:
        BadData: A link leads to a folder that it is in, or a folder may not be read.
    """
    return _walk(os.fspath(folder), "", frozenset([_identity(folder.stat())]))


def _walk(
    folder: str, prefix: str, above: frozenset[tuple[int, int]]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not is_hidden(entry.name)]
    except PermissionError:
        raise BadData(f"folder '{folder}' may not be read: give yourself the permission") from None
    for entry in entries:
        if not entry.is_dir():
            yield f"{prefix}{entry.name}", entry
            continue
        identity = _identity(Path(entry.path).stat())
        if identity in above:
            raise BadData(f"'{entry.path}' is a link to a folder that it is in: remove it")
        yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {identity})


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _difference(recorded: Fingerprint, actual: Fingerprint) -> str:
    """Describe the coarsest difference of two fingerprints; empty if they are equal."""
    if actual.files != recorded.files:
        return f"expected {recorded.files} files, found {actual.files}"
    if actual.bytes != recorded.bytes:
        return f"expected {recorded.bytes} bytes in {recorded.files} files, found {actual.bytes}"
    if actual.names != recorded.names:
        return f"the names or the sizes of some of the {recorded.files} files are others"
    if actual.content != recorded.content:
        return f"the content of some of the {recorded.hashed} files read is another"
    return ""


def _files(source: Path, base: Path) -> Iterator[_File]:
    name = source.relative_to(base).as_posix()
    try:
        info = source.stat()
    except FileNotFoundError:
        raise MissingFile(f"no '{source}': restore it, or correct PD_DATA_ROOT") from None
    if not stat.S_ISDIR(info.st_mode):
        yield _file(name, os.fspath(source), info, is_picture(source.name))
        return
    prefix, empty = "" if name == "." else f"{name}/", True
    for path, entry in walk(source):
        if is_picture(entry.name):
            empty = False
            yield _file(f"{prefix}{path}", entry.path, _followed(entry), True)
        elif entry.is_symlink():
            _followed(entry)  # it may have been a folder of images
    if empty:
        raise BadData(f"'{source}' has no images: restore them")


def _file(name: str, path: str, info: os.stat_result, is_picture: bool) -> _File:
    if not stat.S_ISREG(info.st_mode):
        raise BadData(f"'{path}' is no regular file: remove it")
    # Names that are not UTF-8 become the bytes that they are.
    return _File(name.encode("utf-8", "surrogateescape"), path, info.st_size, is_picture)


def _followed(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except FileNotFoundError:
        raise BadData(f"'{entry.path}' is a link that leads nowhere: mend or remove it") from None


def _chosen(files: list[_File], level: Level) -> list[_File]:
    """Return the files whose content is hashed, in the given order."""
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
    """Yield the SHA-256 of each file's content, in order."""
    paths = [file.path for file in files]
    with ThreadPool(_THREADS) as pool:
        for done, digest in enumerate(pool.imap(_hash, paths, chunksize=_CHUNK), start=1):
            yield digest
            if on_progress is not None and (done % _CHUNK == 0 or done == len(files)):
                on_progress(done, len(files))


def _hash(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise BadData(f"'{path}' cannot be read ({error.strerror}): restore it") from None
