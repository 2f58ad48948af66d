"""`dvc repro`, whole after a kill at any moment, and patient with stages that are told to end.

DVC writes `dvc.lock` and its list of running processes in place, and takes about a second for a
long lock file: a kill in that second leaves one that it cannot read. Here both are written as all
our files are.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from pd_core import preemption
from pd_core.atomic import sweep, write_bytes
from pd_core.errors import Interrupted

# Under such a name DVC brings a file from its cache.
_DVCS_TEMPORARY = re.compile(r"\.[0-9A-Za-z]{22}\.tmp")


def run(arguments: Sequence[str], data: Path) -> int:
    """Run `dvc repro`; if another one is at work, wait for its turn.

    Args:
        arguments: of `dvc repro`.
        data: folder that the stages write into; what a killed DVC left there is cleared away.

    Returns:
        DVC's exit status.

    Raises:
        Interrupted: SIGTERM came; it was passed on to the stage, which has ended.
    """
    from dvc.cli import main
    from dvc.fs import LocalFileSystem
    from dvc.repo import Repo

    plain = LocalFileSystem.open

    def opened(self: Any, path: str, mode: str = "r", **options: Any) -> Any:
        return _whole(Path(path)) if mode in ("w", "w+") else plain(self, path, mode, **options)

    LocalFileSystem.open = opened
    try:
        root = Path(Repo.find_root())
        for file in (Path("dvc.lock"), root / ".dvc" / "tmp" / "rwlock"):
            if file.parent.is_dir():
                sweep(file)
        _clear(data, root / ".dvc" / "tmp" / "lock")
        with preemption.postponed(_pass_on) as told:
            status = int(main(["--wait-for-lock", "repro", *arguments]))
    finally:
        LocalFileSystem.open = plain
    if status and told():
        raise Interrupted("told to end; start the same command again")
    return status


def _pass_on() -> None:
    """Tell the stage that is running: a scheduler may tell its parent only."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.terminate()


@contextmanager
def _whole(path: Path) -> Iterator[IO[str]]:
    """Take the text of a file, and write it at once."""
    text = io.StringIO()
    yield text
    write_bytes(path, text.getvalue().encode())


def _clear(data: Path, lock: Path) -> None:
    """Delete DVC's temporary files, unless a DVC is at work: they may be its own."""
    from zc.lockfile import LockError, LockFile

    if not lock.parent.is_dir():
        return
    try:
        held = LockFile(str(lock))
    except LockError:
        return
    try:
        for path in data.glob("*/**/.*.tmp"):
            if _DVCS_TEMPORARY.fullmatch(path.name):
                path.unlink()
    finally:
        held.close()
