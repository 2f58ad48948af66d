"""DVC: `dvc repro` that survives kills and forwards signals, and remotes from the settings."""

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
from shutil import copy2
from tempfile import TemporaryDirectory
from typing import IO, Any

import psutil
from filelock import FileLock

from pd_core.core.atomic import sweep, write_bytes
from pd_core.core.errors import Interrupted, PdError, missing
from pd_core.pipeline import signals
from pd_core.pipeline.code_hash import CODE, is_current
from pd_core.pipeline.processes import END_WITH_PARENT, own_programs_first
from pd_core.pipeline.settings import Settings

NAME = "shared"
"""What DVC calls the remote; it belongs to the settings, so nothing else is kept about it."""

_REPRO = ("--wait-for-lock", "repro")
_SINGLE = "--single-item"
_WITHOUT_ORDER = {"-s", _SINGLE, "-f", "--force", "-i", "--interactive", "-q", "--quiet", "-v"}
_WITHOUT_ORDER |= {"--verbose", "--pull", "--no-commit", "--no-run-cache"}
"""Options of `dvc repro` that mean the same for a stage alone as for it among others."""

_S3 = "s3://"
_PATIENCE = 60.0  # seconds for a stage to save its checkpoint
_PAUSE = 0.05  # seconds between two looks

# Under such a name DVC brings a file from its cache.
_DVCS_TEMPORARY = re.compile(r"\.[0-9A-Za-z]{22}\.tmp")


def end_with_parent() -> None:
    """End as at SIGTERM when the process that started this one has, however it did, if it asked so.

    It asks by the variable `PROMPTKD_END_WITH_PARENT`, which stages do not get, and holds the other
    end of this process's input. What has not ended after a minute, this process or one below it, is
    killed.
    """
    if os.environ.pop(END_WITH_PARENT, ""):
        signals.at_end_of_input(_end)


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
        remedy = "go to the folder of a project's dvc.yaml"
        raise missing("DVC project", folder.absolute(), remedy) from None


def run(arguments: Sequence[str], data: Path) -> int:
    """Run `dvc repro`, and return its status; if another one is at work, wait for its turn.

    What a killed DVC left in the folder that the stages write into is cleared away.

    Raises:
        Interrupted: SIGTERM came; it was passed on to the stage, which has ended.
        MissingFile: this folder is in no DVC project.
    """
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
        with signals.postponed(tell.start) as told:
            status = _repro(arguments, data / CODE, state)
            _wait(below)
    finally:
        ended.set()
        LocalFileSystem.open = plain
    if status and told():
        raise Interrupted(signals.TOLD)
    return status


def _repro(arguments: Sequence[str], code: Path, state: Path) -> int:
    """Run `dvc repro` so that other ones can run stages of other data sets at the same time.

    All of their stages read what the stage `code` writes. Before DVC looks at a stage it locks the
    stage's outputs, and fails where another stage is reading them. So `code` is brought up to date
    first, by one process at a time, and DVC gets the other stages by name. A run that names no
    stage, or needs DVC's own order, is left to DVC.
    """
    from dvc.cli import main

    options, targets = _parsed(arguments)
    if not targets or CODE in targets or not options <= _WITHOUT_ORDER or not _has_code():
        return int(main([*_REPRO, *arguments]))
    with FileLock(state / "promptkd-code.lock"):
        status = 0 if is_current(code) else int(main([*_REPRO, _SINGLE, CODE]))
    stages = targets if options & {"-s", _SINGLE} else _steps(targets)
    alone = [*options, _SINGLE, *(stage for stage in stages if stage != CODE)]
    return status or int(main([*_REPRO, *alone]))


def _parsed(arguments: Sequence[str]) -> tuple[set[str], list[str]]:
    """Part options, none of which takes a value, from targets."""
    options = {argument for argument in arguments if argument.startswith("-")}
    return options, [argument for argument in arguments if argument not in options]


def _has_code() -> bool:
    file = Path("dvc.yaml")
    return file.is_file() and re.search(rf"^  {CODE}:", file.read_text("utf-8"), re.M) is not None


def _steps(targets: Sequence[str]) -> list[str]:
    """Return stages and all that they need, in DVC's order."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    try:
        with Repo() as repo:
            graph = get_active_graph(repo.index.graph)
            stages = plan_repro(graph, collect_stages(repo, targets))
            return [stage.addressing for stage in stages]
    except DvcException:
        return [*targets]  # DVC reports it


def works(process: psutil.Process) -> bool:
    """Whether a process has not ended; one that has may stay in the table as a zombie."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _pass_on(below: list[psutil.Process], ended: threading.Event) -> None:
    """Tell the stage that is running, which a scheduler may not, and one that DVC starts yet.

    Until DVC has ended; all that were told are put on the list.
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


def push(targets: Sequence[str]) -> int:
    """Copy outputs to the remote, and what DVC knows of the runs that made them.

    Without the latter another clone could not take an output whose `dvc.lock` it does not have.
    SIGTERM ends the process at once, without DVC, whose exit status is returned.
    """
    from dvc.cli import main

    with signals.postponed(_end_transfer):
        return int(main(["--wait-for-lock", "push", "--run-cache", *targets]))


def prepare(settings: Settings, root: Path) -> None:
    """Let DVC, in this process, use the remote of the settings; nothing is done if they name none.

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
    """Make an address DVC's default remote, as `shared`; other remotes and settings stay.

    The file is written whole, and only if it has to change: another DVC may be reading it.

    Raises:
        PdError: DVC cannot read its own settings, or they cannot be written.
    """
    from dvc.config import Config, ConfigError

    folder = root / ".dvc"
    remote = {"url": address}
    if endpoint_url and address.startswith(_S3):
        remote["endpointurl"] = endpoint_url
    try:
        known = Config(folder).read("local")
        if known["core"].get("remote") == NAME and known["remote"].get(NAME) == remote:
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
    """Return the environment variables by which DVC's process gets at the remote; they are secret.

    None where boto3 is to look for its own, or the remote is a folder.
    """
    if not (settings.dvc_remote or "").startswith(_S3):
        return {}
    secrets = {
        "AWS_ACCESS_KEY_ID": settings.s3_access_key_id,
        "AWS_SECRET_ACCESS_KEY": settings.s3_secret_access_key,
    }
    return {name: one.get_secret_value() for name, one in secrets.items() if one is not None}


def _end_transfer() -> None:
    """End without DVC, which takes an exception for a file that failed, and goes on to the next."""
    sys.stderr.write(f"stopped: {signals.TOLD}\n")
    sys.stderr.flush()
    os._exit(signals.EXIT_STATUS)


@contextmanager
def _rewritten(file: Path) -> Iterator[Path]:
    """Have a copy of a file changed, in a folder of its own, then put it in the file's place."""
    temporary = file.parent / "tmp"
    temporary.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=temporary) as name:
        copy = Path(name) / file.name
        if file.exists():
            copy2(file, copy)  # with its mode: it may hold secrets
        yield copy.parent
        copy.replace(file)
