"""Commands as a user types them, one after the other; a table of what happened is printed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Shell:
    """A shell in a folder.

    Attributes:
        folder: where commands run.
        variables: environment.
        rows: command, outcome and seconds of each command.
        failures: output of the commands that did otherwise than expected.
    """

    folder: Path
    variables: Mapping[str, str]
    rows: list[tuple[str, str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __call__(self, command: str, expected: str, *, status: int = 0) -> str:
        """Run a command of bash; return what the expression's group matches in its output."""
        start = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=self.variables,
            stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
        output = (done.stdout + done.stderr).decode(errors="replace")
        match = re.search(expected, output, re.DOTALL)
        as_expected = match is not None and done.returncode == status
        if not as_expected:
            self.failures.append(f"$ {command}\n{output[-3000:]}\nexpected: {expected}, {status}")
        outcome = " ".join(match[0].split())[:60] if match and as_expected else "FAILED"
        self.rows.append((command, outcome, time.monotonic() - start))
        return match.group(match.lastindex or 0) if match else ""


@contextmanager
def shell(folder: Path, variables: Mapping[str, str]) -> Iterator[Shell]:
    """Yield a shell; print its table, and fail if a command did otherwise than expected."""
    made = Shell(folder, variables)
    try:
        yield made
    finally:
        for command, outcome, seconds in made.rows:
            sys.stdout.write(f"| `{command}` | {outcome} | {seconds:.1f} |\n")
    assert not made.failures, "\n\n".join(made.failures)
