"""Commands whose lines are passed on as they come; they end with the process that runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pd_core.masking import masked, variables
from pd_core.reproduce import END_WITH_PARENT, own_programs_first

# The very programs of this environment, whether or not it is activated.
PROMPTKD = (sys.executable, "-m", "pd_core")
DVC = (sys.executable, "-m", "dvc")

_WINDOW = 10.0  # seconds
_MOST_LINES = 60  # in a window; every line is a row of the server's database
_GRACE = 90.0  # seconds to save a checkpoint in; after them it is killed
_REASON = re.compile(r"(?:error|stopped|ERROR): (.+)")


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        status: its exit status; below zero if a signal ended it.
        output: what it said, without secrets.
    """

    status: int
    output: tuple[str, ...]

    @property
    def reason(self) -> str:
        """The first error that it named, or its last line."""
        named = [found[1] for line in self.output if (found := _REASON.match(line))]
        return named[0] if named else next(iter(self.output[::-1]), "it said nothing")


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
        command: what to run.
        folder: where.
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
