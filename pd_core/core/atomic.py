"""Atomic writes of files and folders.

Content is written under a temporary name beside its destination, flushed to the disk, and renamed.
The writer locks the temporary name; a lock ends with its process, so the next writer of the same
destination recognises the remains of a killed one and removes them.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pd_core.core.errors import NoSpace, PdError

_PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, file size
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically, creating its folder.

    Raises:
        NoSpace: the disk is full; the old file is kept.
        PdError: the folder cannot be written.
    """
    with write_file(path, len(data)) as file:
        file.write(data)


@contextmanager
def write_file(path: Path, size: int | None = None) -> Iterator[IO[bytes]]:
    """Write a file of any size atomically, creating its folder: yields a file to write to.

    If the block raises or its process is killed, `path` stays as it was. An OSError of the block is
    taken for one of writing.

    Args:
        path: of the file.
        size: of its content in bytes, for the message where the disk is full.

    Raises:
        NoSpace: the disk is full; the old file is kept.
        PdError: the folder cannot be written.
    """
    with _explained(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        descriptor, temporary = _temporary_file(path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o644)  # a temporary file is private to the user
                temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Replace a folder atomically: yields an empty folder, which takes the place of `path`.

    If the block raises or its process is killed, `path` stays as it was.

    Raises:
        NoSpace: the disk is full.
        PdError: the parent folder cannot be written.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        lock, temporary = _temporary_folder(path)
    try:
        new = temporary / "new"
        new.mkdir()
        with _explained(path, only_full=True):
            yield new
        with _explained(path):
            for file in new.rglob("*"):
                _sync(file)
            _swap(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def sweep(path: Path) -> None:
    """Remove what killed writers of `path` left beside it.

    A writer killed between the two renames of a folder had finished: its new folder is put in
    place.
    """
    for temporary in _temporaries(path):
        descriptor = _lock_abandoned(temporary)
        if descriptor is None:
            continue
        try:
            if (temporary / "old").is_dir() and not path.exists():
                (temporary / "new").rename(path)
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise NoSpace unless `needed` bytes are free in a folder, which need not exist yet."""
    free = shutil.disk_usage(existing(folder)).free
    if free < needed:
        raise NoSpace(
            f"{what} needs {readable(needed)} in '{folder}', where {readable(free)} are free;"
            " make room and start again"
        )


def existing(path: Path) -> Path:
    """Return a path, or its nearest parent that exists."""
    path = path.resolve()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def readable(size: float) -> str:
    """Format a number of bytes, such as "1.5 GiB"."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{size:.0f} {_UNITS[0]}"


def _temporary_file(path: Path) -> tuple[int, Path]:
    """Create a locked file beside `path`; return its descriptor and its path."""
    while True:
        descriptor, name = tempfile.mkstemp(_PARTIAL, f".{path.name}.", path.parent)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.exists(name):  # noqa: PTH110  another process may have swept it before the lock
            return descriptor, Path(name)
        os.close(descriptor)


def _temporary_folder(path: Path) -> tuple[int, Path]:
    """Create a locked folder beside `path`; return its descriptor and its path."""
    while True:
        temporary = Path(tempfile.mkdtemp(_PARTIAL, f".{path.name}.", path.parent))
        try:
            descriptor = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:  # swept before it could be locked
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():
            return descriptor, temporary
        os.close(descriptor)


def _temporaries(path: Path) -> list[Path]:
    with os.scandir(path.parent) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if entry.name.startswith(f".{path.name}.") and entry.name.endswith(_PARTIAL)
        ]


def _lock_abandoned(temporary: Path) -> int | None:
    """Lock a temporary name unless its writer is alive; return the descriptor."""
    try:
        descriptor = os.open(temporary, os.O_RDONLY)
    except OSError:  # the writer has just finished, or is another user
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _swap(temporary: Path, path: Path) -> None:
    """Rename the new folder to `path`; the old one is moved into the temporary folder."""
    old = temporary / "old"
    if path.exists():
        path.rename(old)
    try:
        (temporary / "new").rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path, needed: int | None = None, *, only_full: bool = False) -> Iterator[None]:
    """Turn an OSError into a PdError; with `only_full`, only for want of space."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(path, needed, error) from None
        if only_full:
            raise
        reason = error.strerror or str(error)
        raise PdError(
            f"cannot write '{path}': {reason}; choose a folder you can write to"
        ) from None


def _full(path: Path, needed: int | None, error: OSError) -> NoSpace:
    free = readable(shutil.disk_usage(existing(path)).free)
    wanted = "" if needed is None else f"{readable(needed)} are needed, "
    return NoSpace(
        f"cannot write '{path}': {error.strerror}: {wanted}{free} are free; make room and start"
        " again, the old content is kept"
    )
