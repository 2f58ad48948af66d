"""Child processes: commands whose lines are passed on, and the ranks of one training."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from pd_core.core.errors import FailedRun, Interrupted
from pd_core.pipeline import signals
from pd_core.pipeline.redaction import masked, variables

# The very programs of this environment, whether or not it is activated.
PROMPTKD = (sys.executable, "-m", "pd_core")
DVC = (sys.executable, "-m", "dvc")

END_WITH_PARENT = "PROMPTKD_END_WITH_PARENT"
"""Variable by which a process that may be killed asks for what `end_with_parent` does."""

_WINDOW = 10.0  # seconds
_MOST_LINES = 60  # in a window; every line is a row of the server's database
_GRACE = 90.0  # seconds to save a checkpoint in; after them it is killed
_REASON = re.compile(r"(?:error|stopped|ERROR): (.+)")


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int  # below zero if a signal ended it
    output: tuple[str, ...]  # without secrets

    @property
    def reason(self) -> str:
        """The first error that it named, or its last line."""
        named = [found[1] for line in self.output if (found := _REASON.match(line))]
        return named[0] if named else next(iter(self.output[::-1]), "it said nothing")


def own_programs_first(path: str) -> str:
    """Return a PATH that begins with this Python's folder: DVC's stages are started by `python3`.

    So they run in this environment, whether or not it is activated.
    """
    return os.pathsep.join([str(Path(sys.executable).parent), path])


def run(
    command: Sequence[str],
    folder: Path,
    say: Callable[[str], None],
    *,
    extra: Mapping[str, str] | None = None,
    result: IO[str] | None = None,
) -> Ended:
    """Run a command; whatever ends this block or this process ends the command as well.

    Args:
        command: its words.
        folder: to run it in.
        say: called with each line as it comes, without secrets; of a flood only the first lines.
        extra: variables for its environment, besides those of this process.
        result: a file for its output; `say` and what is returned then have its errors only.
    """
    lines: list[str] = []
    sane = _Sane(say)
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
                sane.line(text)
        process.wait()
        sane.close()
    finally:
        _end(process)
    return Ended(process.returncode, tuple(lines))


def environment() -> dict[str, str]:
    """Return the variables of this process and of `.env`; its own programs come first."""
    known = variables()
    return {**known, "PATH": own_programs_first(known.get("PATH", ""))}


class _Sane:
    """Lets a few lines a second through, and says how many were left out."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._start, self._count = time.monotonic(), 0

    def line(self, text: str) -> None:
        """Say a line, unless there were too many just now."""
        if time.monotonic() - self._start > _WINDOW:
            self.close()
            self._start, self._count = time.monotonic(), 0
        self._count += 1
        if self._count <= _MOST_LINES:
            self._say(text)

    def close(self) -> None:
        """Say what has been left out."""
        if self._count > _MOST_LINES:
            self._say(f"({self._count - _MOST_LINES} lines were left out)")


def _end(process: subprocess.Popen[str]) -> None:
    """Let a command that still runs save and end; kill whatever is left of it."""
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
"""Exit status of a process that ends because another one has."""

_FINE = (0, signals.EXIT_STATUS)
_MEETING = "PROMPTKD_MEETING"
_RANK_GRACE = 10.0  # seconds for the others to notice; one that waits for its GPU never does
_PAUSE = 0.05  # seconds between two looks
_REMEDY = "start the same command again, which goes on from the last checkpoint"
# All are on this machine, so that nobody else has to reach them.
_LOOPBACK = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if sys.platform == "linux" else ()


@dataclass(frozen=True)
class Member:
    """One of the processes that train together."""

    number: int  # from 0
    processes: int  # how many there are
    gpu: int  # its own, where they use any
    meeting: str  # URL by which they find each other


def member() -> Member | None:
    """Return which member this process is, or None if it was not started as one."""
    if not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys():
        return None
    number, processes, gpu = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    )
    return Member(number, processes, gpu, os.environ.get(_MEETING, "env://"))


def end_with_parent() -> None:
    """End this process at once when the one that started it as a member has, however it did."""
    if _MEETING in os.environ:
        signals.at_end_of_input(lambda: os.kill(os.getpid(), signal.SIGKILL))


def together(command: Sequence[str], processes: int) -> int:
    """Run a command in several processes that train together; SIGTERM is passed on to all.

    The first one writes to this process's output. Of the others only a failure is shown.

    Returns:
        The exit status; what is wrong has been said.

    Raises:
        Interrupted: they were told to end before they could say so themselves.
        FailedRun: one was ended from outside.
    """
    with (
        TemporaryDirectory(prefix="promptkd-") as name,
        signals.postponed() as told,
        ExitStack() as stack,
    ):
        folder = Path(name)
        members = [
            stack.enter_context(_started(command, number, processes, folder))
            for number in range(processes)
        ]
        failed = _first_failed(members, told)
        if failed is None:
            return max(one.returncode for one in members)
        if _has_said_why(members[0]):  # as the others may have as well
            return members[0].returncode
        if failed.returncode == -signal.SIGTERM and told():
            raise Interrupted(signals.TOLD)
        number = members.index(failed)
        if not _has_said_why(failed):
            code = failed.returncode
            ended = (
                f"was ended by {signal.Signals(-code).name}" if code < 0 else "has lost the others"
            )
            raise FailedRun(f"process {number} of {processes} {ended}; {_REMEDY}")
        sys.stderr.write(_output(folder, number).read_text(errors="replace"))
        return failed.returncode


def _started(
    command: Sequence[str], number: int, processes: int, folder: Path
) -> subprocess.Popen[bytes]:
    """Start a member; nobody writes to its input, which ends when this process does."""
    environment = {
        **os.environ,
        **dict.fromkeys(_LOOPBACK, "lo"),
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(processes),
        _MEETING: f"file://{folder / 'meeting'}",
    }
    with ExitStack() as stack:
        output = stack.enter_context(_output(folder, number).open("wb")) if number > 0 else None
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output
        )


def _first_failed(
    members: Sequence[subprocess.Popen[bytes]], told: Callable[[], bool]
) -> subprocess.Popen[bytes] | None:
    """Wait until all have ended, which they have to when one has failed; return that one."""
    failed, deadline, passed_on = None, math.inf, False
    while any(one.poll() is None for one in members):
        if told() and not passed_on:
            passed_on = True
            for one in members:
                one.terminate()
        if failed is None and (failed := _failed(members)) is not None:
            deadline = time.monotonic() + _RANK_GRACE
        if time.monotonic() > deadline:
            for one in members:
                one.kill()
        time.sleep(_PAUSE)
    return failed or _failed(members)


def _failed(members: Sequence[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes] | None:
    """Return one that has failed, by itself if there is one such."""
    failed = [one for one in members if one.returncode not in (None, *_FINE)]
    return min(failed, key=lambda one: one.returncode == LOST, default=None)


def _has_said_why(one: subprocess.Popen[bytes]) -> bool:
    return one.returncode > 0 and one.returncode not in (*_FINE, LOST)


def _output(folder: Path, number: int) -> Path:
    """Return the file of what a member but the first says."""
    return folder / f"output-{number}"
