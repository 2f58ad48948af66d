"""`dvc repro`, whole after a kill at any moment, and patient with stages that are told to end.

DVC writes `dvc.lock` and its list of running processes in place, and takes about a second for a
long lock file: a kill in that second leaves one that it cannot read. Here both are written as all
our files are.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from pd_core import preemption
from pd_core.atomic import sweep, write_bytes
from pd_core.errors import Interrupted, missing

END_WITH_PARENT = "PROMPTKD_END_WITH_PARENT"
"""Variable by which a process that may be killed asks for what `end_with_parent` does."""

_PATIENCE = 60.0  # seconds for a stage to save its checkpoint
_PAUSE = 0.05  # seconds between two looks

# Under such a name DVC brings a file from its cache.
_DVCS_TEMPORARY = re.compile(r"\.[0-9A-Za-z]{22}\.tmp")


def own_programs_first(path: str) -> str:
    """Return a PATH that begins with this Python's folder: DVC's stages are started by `python3`.

    So they run in this environment, whether or not it is activated.

    Args:
        path: the PATH as it was.
    """
    return os.pathsep.join([str(Path(sys.executable).parent), path])


def end_with_parent() -> None:
    """End as at SIGTERM when the process that started this one has, however it did, if it asked so.

    It asks by the variable `PROMPTKD_END_WITH_PARENT`, which stages do not get, and holds the other
    end of this process's input. What has not ended after a minute, this process or one below it, is
    killed.
    """
    if os.environ.pop(END_WITH_PARENT, ""):
        preemption.at_end_of_input(_end)


def root(folder: Path = Path()) -> Path:
    """Find the folder of the DVC project that a folder is in, by default this one.

    Raises:
        MissingFile: it is in none.
    """
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        return Path(Repo.find_root(str(folder.absolute())))
    except NotDvcRepoError:
        raise missing(
            "DVC project", folder.absolute(), "go to the folder of a project's dvc.yaml"
        ) from None


def run(arguments: Sequence[str], data: Path) -> int:
    """Run `dvc repro`; if another one is at work, wait for its turn.

    Args:
        arguments: of `dvc repro`.
        data: folder that the stages write into; what a killed DVC left there is cleared away.

    Returns:
        DVC's exit status.

    Raises:
        Interrupted: SIGTERM came; it was passed on to the stage, which has ended.
        MissingFile: this folder is in no DVC project.
    """
    from dvc.cli import main
    from dvc.fs import LocalFileSystem

    plain = LocalFileSystem.open

    def opened(self: Any, path: str, mode: str = "r", **options: Any) -> Any:
        return _whole(Path(path)) if mode in ("w", "w+") else plain(self, path, mode, **options)

    below: list[psutil.Process] = []
    ended = threading.Event()
    state = root() / ".dvc" / "tmp"
    os.environ["PATH"] = own_programs_first(os.environ.get("PATH", ""))
    LocalFileSystem.open = opened
    try:
        for file in (Path("dvc.lock"), state / "rwlock"):
            if file.parent.is_dir():
                sweep(file)
        _clear(data, state / "lock")
        tell = threading.Thread(target=_pass_on, args=(below, ended), daemon=True)
        with preemption.postponed(tell.start) as told:
            status = int(main(["--wait-for-lock", "repro", *arguments]))
            _wait(below)
    finally:
        ended.set()
        LocalFileSystem.open = plain
    if status and told():
        raise Interrupted(preemption.TOLD)
    return status


def works(process: psutil.Process) -> bool:
    """Whether a process has not ended; one that has may stay in the table as a zombie."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _pass_on(below: list[psutil.Process], ended: threading.Event) -> None:
    """Tell the stage that is running, which a scheduler may not, and one that DVC starts yet.

    Args:
        below: gets all that were told.
        ended: set when DVC has.
    """
    while not ended.wait(_PAUSE):
        for process in psutil.Process().children(recursive=True):
            if process not in below:
                below.append(process)
                with suppress(psutil.NoSuchProcess):
                    process.terminate()


def _wait(below: Sequence[psutil.Process]) -> None:
    """Wait until a stage has ended, not only the shell that started it, for which DVC waits."""
    deadline = time.monotonic() + _PATIENCE
    while any(works(process) for process in below) and time.monotonic() < deadline:
        time.sleep(_PAUSE)


def _end() -> None:
    """Let the main thread receive SIGTERM; kill what has not ended in time, this process last."""
    this = psutil.Process()
    below = this.children(recursive=True)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(_PATIENCE)
    for process in (*below, *this.children(recursive=True), this):
        with suppress(psutil.NoSuchProcess):
            process.kill()


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
