"""SIGTERM, commands whose output is forwarded, and the workers of one training."""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import IO, TYPE_CHECKING

from pd_core.core.errors import FailedRun, Interrupted
from pd_core.pipeline.redaction import masked, variables
from pd_core.pipeline.settings import load_settings

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.api import RunProcsResult
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

# Programs of this environment, whether or not it is activated.
PROMPTKD = (sys.executable, "-m", "pd_core")
DVC = (sys.executable, "-m", "dvc")

EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: the same command, started again, resumes."""

TERMINATED = "terminated by SIGTERM; start the same command again to resume"

END_WITH_PARENT = "PROMPTKD_END_WITH_PARENT"
"""Variable by which a parent that may be killed requests `dvc.end_with_parent`."""

_RETRY = 0.01  # seconds until a signal that came during an import is sent again
_WINDOW = 10.0  # seconds
_MOST_LINES = 60  # in a window; every line is a row of the server's database
_GRACE = 90.0  # seconds to save a checkpoint, before a command is killed
_REASON = re.compile(r"(?:error|stopped|ERROR): (.+)")


@dataclass(frozen=True)
class Ended:
    """Exit status and output of a command."""

    status: int  # negative if a signal ended it
    output: tuple[str, ...]  # without secrets

    @property
    def reason(self) -> str:
        """The first error in the output, or its last line."""
        errors = [match[1] for line in self.output if (match := _REASON.match(line))]
        return errors[0] if errors else next(iter(self.output[::-1]), "it printed nothing")


def end_at_once() -> None:
    """Let SIGTERM raise `Interrupted`, so that partial files are removed."""
    signal.signal(signal.SIGTERM, _interrupt)


@contextmanager
def postponed(on_signal: Callable[[], None] | None = None) -> Iterator[Callable[[], bool]]:
    """Let the block handle SIGTERM itself; `on_signal` is called at the first one.

    Yields:
        A function that returns True after SIGTERM.
    """
    received = threading.Event()

    def receive(_number: int, _frame: FrameType | None) -> None:
        if not received.is_set():
            received.set()
            if on_signal is not None:
                on_signal()

    before = signal.signal(signal.SIGTERM, receive)
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def at_end_of_input(action: Callable[[], None]) -> None:
    """Call a function, in a thread, when stdin ends because the process at its other end has ended.

    So a process notices that its parent has ended, even if that was killed.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        action()

    threading.Thread(target=wait, daemon=True).start()


def _interrupt(number: int, frame: FrameType | None) -> None:
    # An exception at the wrong instruction there leaves the lock of imports taken: the next import
    # of another thread, such as MLflow's, would wait for ever, and the end of the stage for it.
    if frame is not None and frame.f_code.co_filename == "<frozen importlib._bootstrap>":
        again = threading.Timer(_RETRY, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    raise Interrupted(TERMINATED)


def own_programs_first(path: str) -> str:
    """Return a PATH that begins with this Python's folder, so that `python3` of a stage is it."""
    return os.pathsep.join([str(Path(sys.executable).parent), path])


def run(
    command: Sequence[str],
    folder: Path,
    on_line: Callable[[str], None],
    *,
    extra: Mapping[str, str] | None = None,
    result: IO[str] | None = None,
) -> Ended:
    """Run a command; it ends when this block or this process ends.

    Args:
        command: program and arguments.
        folder: working directory.
        on_line: called with each line of output, without secrets; limited to a few per second.
        extra: additional environment variables.
        result: file for the standard output; `on_line` and the returned output then have the
            standard error only.
    """
    lines: list[str] = []
    limiter = _RateLimiter(on_line)
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment(), **(extra or {}), END_WITH_PARENT: "1"},
        stdin=subprocess.PIPE,  # its end is the end of this process
        stdout=result or subprocess.PIPE,
        stderr=subprocess.PIPE if result else subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        for line in process.stderr or process.stdout or ():
            if text := masked(line.rstrip()):
                lines.append(text)
                limiter.add(text)
        process.wait()
        limiter.flush()
    finally:
        _end(process)
    return Ended(process.returncode, tuple(lines))


def environment() -> dict[str, str]:
    """Return the variables of this process and of `.env`, with its own programs first in PATH."""
    merged = variables()
    if (data_root := load_settings().data_root) is not None:
        merged["PD_DATA_ROOT"] = str(data_root.absolute())  # commands run in other folders
    return {**merged, "PATH": own_programs_first(merged.get("PATH", ""))}


class _RateLimiter:
    """Passes a limited number of lines on in each time window, and reports how many it omitted."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._start, self._count = time.monotonic(), 0

    def add(self, line: str) -> None:
        """Pass a line on, unless the window has its limit."""
        if time.monotonic() - self._start > _WINDOW:
            self.flush()
            self._start, self._count = time.monotonic(), 0
        self._count += 1
        if self._count <= _MOST_LINES:
            self._on_line(line)

    def flush(self) -> None:
        """Report the number of lines omitted from the window."""
        if self._count > _MOST_LINES:
            self._on_line(f"({self._count - _MOST_LINES} lines were left out)")


def _end(process: subprocess.Popen[str]) -> None:
    """Terminate a command that is still running, and kill what has not ended in time."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


LOST = 70
"""Exit status of a rank that ends because another one has."""

_INIT_METHOD = "PROMPTKD_INIT_METHOD"
_LAUNCHER = "PROMPTKD_LAUNCHER"
_PAUSE = 0.05  # seconds between two polls
_REMEDY = "start the same command again, which resumes from the last checkpoint"
# All ranks are on this machine, so nobody else has to reach them.
_LOOPBACK = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if sys.platform == "linux" else ()


@dataclass(frozen=True)
class Worker:
    """One of the processes of a distributed training, as torch numbers them."""

    rank: int
    world_size: int
    local_rank: int  # its GPU, if it uses one
    init_method: str  # URL by which the ranks find each other


def this_worker() -> Worker | None:
    """Return the worker that this process is; None if it was not started as one."""
    if not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys():
        return None
    rank, world_size, local_rank = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    )
    return Worker(rank, world_size, local_rank, os.environ.get(_INIT_METHOD, "env://"))


def end_with_launcher() -> None:
    """End this worker when the process that launched it has ended, even if that was killed."""
    if launcher := int(os.environ.get(_LAUNCHER, 0)):
        threading.Thread(target=_watch, args=(launcher,), daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_PAUSE)
    os.kill(os.getpid(), signal.SIGKILL)


def launch(command: Sequence[str], world_size: int) -> int:
    """Run a command in the workers of one training on this machine; forward SIGTERM to them.

    Rank 0 writes to this process's output. That of another rank is shown only if it fails.

    Returns:
        The exit status; the reason of a failure has been printed.

    Raises:
        Interrupted: the workers ended by SIGTERM before they could handle it.
        FailedRun: a worker was killed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    # torch raises an exception at the signals named here, and logs what is reported below.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM"
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    ranks = range(world_size)
    with TemporaryDirectory(prefix="promptkd-") as folder, postponed():
        workers = start_processes(
            "promptkd",
            "/bin/sh",
            args={rank: ("-c", _shell(rank, folder), *command) for rank in ranks},
            envs={rank: _variables(rank, world_size, folder) for rank in ranks},
            logs_specs=DefaultLogsSpecs(folder),
        )
        with postponed(lambda: _terminate(workers.pids().values())) as interrupted:
            try:
                result = workers.wait(period=_PAUSE)
            finally:
                workers.close()
        assert result is not None  # no timeout was given
        return _status(result, folder, interrupted=interrupted())


def _shell(rank: int, folder: str) -> str:
    """Return the shell command that a rank is started by; torch's redirects are for Linux only."""
    return f'exec "$0" "$@" > {shlex.quote(_log(rank, folder))} 2>&1' if rank else 'exec "$0" "$@"'


def _log(rank: int, folder: str) -> str:
    return f"{folder}/{rank}.log"


def _variables(rank: int, world_size: int, folder: str) -> dict[str, str]:
    return {
        **dict.fromkeys(_LOOPBACK, "lo"),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        _INIT_METHOD: f"file://{folder}/init",
        _LAUNCHER: str(os.getpid()),
    }


def _terminate(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _status(result: RunProcsResult, folder: str, *, interrupted: bool) -> int:
    """Return the exit status of the worker whose failure ended the others, and show its output."""
    failures = list(result.failures.values())  # in the order in which they were noticed
    if not failures:
        return 0
    rank_0 = result.failures.get(0)
    if rank_0 is not None and _has_reported(rank_0):  # maybe the same as other ranks
        return rank_0.exitcode
    first = min(failures, key=lambda failure: failure.exitcode in (LOST, EXIT_STATUS))
    code = first.exitcode
    if code == -signal.SIGTERM and interrupted:
        if EXIT_STATUS in [failure.exitcode for failure in failures]:
            return EXIT_STATUS  # this worker got a second signal while it ended
        raise Interrupted(TERMINATED)
    if _has_reported(first):
        sys.stderr.write(Path(_log(first.local_rank, folder)).read_text(errors="replace"))
    elif code != EXIT_STATUS:
        reason = f"was ended by {signal.Signals(-code).name}" if code < 0 else "has lost the others"
        raise FailedRun(f"process {first.local_rank} of {len(result.stderrs)} {reason}; {_REMEDY}")
    return code


def _has_reported(failure: ProcessFailure) -> bool:
    return failure.exitcode > 0 and failure.exitcode not in (LOST, EXIT_STATUS)
