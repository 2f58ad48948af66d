"""DVC: `dvc repro` that recovers from kills and forwards signals, and the settings' remote."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from shutil import copy2
from tempfile import TemporaryDirectory
from typing import IO

import psutil
from filelock import FileLock

from pd_core.core.atomic import write_bytes
from pd_core.core.errors import BadData, Interrupted, PdError, missing
from pd_core.pipeline import processes
from pd_core.pipeline.code_hash import CODE, is_current
from pd_core.pipeline.processes import END_WITH_PARENT, own_programs_first
from pd_core.pipeline.provenance import read_lock
from pd_core.pipeline.settings import Settings

NAME = "shared"
"""Name under which DVC gets the remote of the settings."""

_REPRO = ("--wait-for-lock", "repro")
_SINGLE = "--single-item"
_WITHOUT_ORDER = {"-s", _SINGLE, "-f", "--force", "-i", "--interactive", "-q", "--quiet", "-v"}
_WITHOUT_ORDER |= {"--verbose", "--pull", "--no-commit", "--no-run-cache"}
"""Options of `dvc repro` that mean the same for a single stage as for one among others."""

_S3 = "s3://"
_PATIENCE = 60.0  # seconds for a stage to save its checkpoint
_PAUSE = 0.05  # seconds between two polls

# Temporary name of a file that DVC checks out.
_DVCS_TEMPORARY = re.compile(r"\.[0-9A-Za-z]{22}\.tmp")


def end_with_parent() -> None:
    """End as at SIGTERM when the parent process ends, if it requested so.

    The parent sets the variable `PROMPTKD_END_WITH_PARENT`, which stages do not inherit, and holds
    the other end of this process's stdin. Processes that have not ended after a minute are killed.
    """
    if os.environ.pop(END_WITH_PARENT, ""):
        processes.at_end_of_input(_end)


def root(folder: Path = Path()) -> Path:
    """Return the root of the DVC project that contains a folder (default: the current one).

    Raises:
        MissingFile: the folder is in no DVC project.
    """
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        return Path(Repo.find_root(str(folder.absolute())))
    except NotDvcRepoError:
        remedy = "go to the folder of a project's dvc.yaml"
        raise missing("DVC project", folder.absolute(), remedy) from None


def run(arguments: Sequence[str], data: Path) -> int:
    """Run `dvc repro` and return its exit status.

    Several runs may be active at a time. What a killed one left behind is repaired first.

    Args:
        arguments: of `dvc repro`.
        data: folder that contains the outputs of the stages.

    Raises:
        Interrupted: SIGTERM arrived and was forwarded to the stage, which has ended.
        MissingFile: the current folder is in no DVC project.
    """
    children: list[psutil.Process] = []
    ended = threading.Event()
    project = root()
    os.environ["PATH"] = own_programs_first(os.environ.get("PATH", ""))
    forward = threading.Thread(target=_forward, args=(children, ended), daemon=True)
    with _protected(project, data), processes.postponed(forward.start) as interrupted:
        try:
            status = _repro(arguments, data / CODE, project / ".dvc" / "tmp")
            _wait(children)
        finally:
            ended.set()
    if status and interrupted():
        raise Interrupted(processes.TERMINATED)
    return status


def _repro(arguments: Sequence[str], code: Path, state: Path) -> int:
    """Run `dvc repro` so that others can run stages of other data sets at the same time.

    All stages depend on the outputs of the stage `code`. DVC locks a stage's outputs before it
    checks the stage, and fails if another stage is reading them. So `code` is updated first, by one
    process at a time, and DVC is given the other stages by name. A run without targets, or with
    options that need DVC's own order, is passed on as it is.
    """
    from dvc.cli import main

    options = {argument for argument in arguments if argument.startswith("-")}  # without values
    targets = [argument for argument in arguments if argument not in options]
    if not targets or CODE in targets or not options <= _WITHOUT_ORDER or not _has_code():
        return int(main([*_REPRO, *arguments]))
    with FileLock(state / "promptkd-code.lock"):
        status = 0 if is_current(code) else int(main([*_REPRO, _SINGLE, CODE]))
    stages = targets if options & {"-s", _SINGLE} else _with_dependencies(targets, state)
    others = (stage for stage in stages if stage != CODE)
    return status or int(main([*_REPRO, *options, _SINGLE, *others]))


def _has_code() -> bool:
    file = Path("dvc.yaml")
    return file.is_file() and re.search(rf"^  {CODE}:", file.read_text("utf-8"), re.M) is not None


def _with_dependencies(targets: Sequence[str], state: Path) -> list[str]:
    """Return stages and those that they depend on, in DVC's order."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    try:
        with _locked(state), Repo() as repo:  # others rewrite dvc.lock under this lock
            graph = get_active_graph(repo.index.graph)
            stages = plan_repro(graph, collect_stages(repo, targets))
            return [stage.addressing for stage in stages]
    except DvcException:
        return [*targets]  # DVC reports it


@contextmanager
def _protected(project: Path, data: Path) -> Iterator[None]:
    """Keep a copy of the lock file during a run, since DVC rewrites it in place.

    Each run holds a shared lock. The first one repairs what a killed run left, and the last one
    removes the copy.
    """
    state = project / ".dvc" / "tmp"
    state.mkdir(parents=True, exist_ok=True)
    lock, copy = project / "dvc.lock", state / "promptkd-dvc.lock"
    with (state / "promptkd-runs.lock").open("a") as runs:
        with _locked(state):
            if _is_only_one(runs):
                _restore(lock, copy)
                _remove_corrupt(state / "rwlock")
            fcntl.flock(runs, fcntl.LOCK_SH)
            _clear(data)
            if not copy.exists():
                write_bytes(copy, lock.read_bytes() if lock.exists() else b"")
        try:
            yield
        finally:
            if _is_only_one(runs):
                _restore(lock, copy)


def _locked(state: Path) -> AbstractContextManager[object]:
    """Return the lock under which DVC reads and writes its files."""
    from dvc.lock import make_lock

    lock: AbstractContextManager[object]
    lock = make_lock(str(state / "lock"), tmp_dir=str(state), friendly=True, wait=True)
    return lock


def _is_only_one(runs: IO[str]) -> bool:
    try:
        fcntl.flock(runs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _restore(lock: Path, copy: Path) -> None:
    """Remove the copy of a lock file; if that one was not written completely, restore it first.

    DVC takes stages that are in neither from its run cache, without running them again.
    """
    if copy.exists() and not _is_complete(lock, before := copy.read_bytes()):
        sys.stderr.write(f"{lock.name} was not written completely; its last state is restored\n")
        if before:
            copy.replace(lock)
        else:
            lock.unlink()
    copy.unlink(missing_ok=True)


def _is_complete(lock: Path, before: bytes) -> bool:
    """Return True if a lock file is valid to its end, and has all stages that it had before."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    content = lock.read_bytes() if lock.exists() else b""
    if content == before:
        return bool(before) or not lock.exists()
    try:
        stages = read_lock(content, "dvc.lock")
        COMPILED_LOCKFILE_SCHEMA({"schema": "2.0", "stages": stages})
        last = list(stages.values())[-1:]
        outs = [out for stage in last for out in stage.get("outs", [])]
        is_whole = content.endswith(b"\n") and all("size" in out for out in outs)
        return is_whole and (not before or read_lock(before, "copy").keys() <= stages.keys())
    except (BadData, Invalid):
        return False


def _remove_corrupt(rwlock: Path) -> None:
    """Delete a corrupt list of the files that running stages use: DVC would refuse to start."""
    try:
        json.loads(rwlock.read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        rwlock.unlink()


def _clear(data: Path) -> None:
    """Delete DVC's temporary files, while no other DVC is active."""
    for path in data.glob("*/**/.*.tmp"):
        if _DVCS_TEMPORARY.fullmatch(path.name):
            path.unlink()


def works(process: psutil.Process) -> bool:
    """Return True if a process has not ended; an ended one may remain as a zombie."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _forward(children: list[psutil.Process], ended: threading.Event) -> None:
    """Send SIGTERM to the stage that is running, and to those that DVC still starts.

    Schedulers may signal the parent only. The processes are added to `children`.
    """
    while not ended.wait(_PAUSE):
        for process in psutil.Process().children(recursive=True):
            if process not in children:
                children.append(process)
                with suppress(psutil.NoSuchProcess):
                    process.terminate()


def _wait(children: Sequence[psutil.Process]) -> None:
    """Wait until a stage has ended; DVC waits only for the shell that started it."""
    deadline = time.monotonic() + _PATIENCE
    while any(works(process) for process in children) and time.monotonic() < deadline:
        time.sleep(_PAUSE)


def _end() -> None:
    """Send SIGTERM to the main thread, and kill what has not ended in time, this process last."""
    this = psutil.Process()
    children = this.children(recursive=True)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(_PATIENCE)
    for process in (*children, *this.children(recursive=True), this):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def push(targets: Sequence[str]) -> int:
    """Run `dvc push` with the run cache and return its exit status.

    Without the run cache, another clone could not use an output that its `dvc.lock` does not list.
    SIGTERM ends the process at once.
    """
    from dvc.cli import main

    with processes.postponed(_end_transfer):
        return int(main(["--wait-for-lock", "push", "--run-cache", *targets]))


def prepare(settings: Settings, root: Path) -> None:
    """Configure DVC, in this process, for the remote of the settings, if there is one.

    Raises:
        PdError: DVC cannot read its own settings, or they cannot be written.
    """
    if settings.dvc_remote is None:
        return
    configure(root, settings.dvc_remote, settings.s3_endpoint_url)
    if given := credentials(settings):
        os.environ.pop("AWS_SESSION_TOKEN", None)  # belongs to a key that is replaced
        os.environ.update(given)


def configure(root: Path, address: str, endpoint_url: str | None) -> None:
    """Make an address DVC's default remote, named `shared`; other remotes and settings remain.

    The file is replaced, and only if it has to change: another DVC may be reading it.

    Raises:
        PdError: DVC cannot read its own settings, or they cannot be written.
    """
    from dvc.config import Config, ConfigError

    folder = root / ".dvc"
    remote = {"url": address}
    if endpoint_url and address.startswith(_S3):
        remote["endpointurl"] = endpoint_url
    try:
        current = Config(folder).read("local")
        if current["core"].get("remote") == NAME and current["remote"].get(NAME) == remote:
            return
        with (
            _rewritten(folder / "config.local") as copy,
            Config(folder, local_dvc_dir=copy).edit("local") as values,
        ):
            values["core"]["remote"] = NAME
            values["remote"][NAME] = remote
    except ConfigError:  # its text may hold a secret
        raise PdError(
            f"DVC cannot read its settings in '{folder}'; run `dvc config --list`, it says why"
        ) from None
    except OSError as error:
        raise PdError(
            f"PD_DVC_REMOTE cannot be set in '{folder}' ({error.strerror}); make it writable"
        ) from None


def credentials(settings: Settings) -> dict[str, str]:
    """Return environment variables with the credentials of the remote; their values are secret.

    Empty if boto3 is to find its own credentials, or the remote is a folder.
    """
    if not (settings.dvc_remote or "").startswith(_S3):
        return {}
    secrets = {
        "AWS_ACCESS_KEY_ID": settings.s3_access_key_id,
        "AWS_SECRET_ACCESS_KEY": settings.s3_secret_access_key,
    }
    return {
        name: secret.get_secret_value() for name, secret in secrets.items() if secret is not None
    }


def _end_transfer() -> None:
    """Exit at once: DVC would treat an exception as one failed file and continue."""
    sys.stderr.write(f"stopped: {processes.TERMINATED}\n")
    sys.stderr.flush()
    os._exit(processes.EXIT_STATUS)


@contextmanager
def _rewritten(file: Path) -> Iterator[Path]:
    """Yield a folder with a copy of a file to edit, then replace the file by it."""
    temporary = file.parent / "tmp"
    temporary.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=temporary) as name:
        copy = Path(name) / file.name
        if file.exists():
            copy2(file, copy)  # with its mode: it may hold secrets
        yield copy.parent
        copy.replace(file)
