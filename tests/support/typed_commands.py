"""Commands that are typed in a shell, one after the other, and a table of what they printed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
USER = {
    f"GIT_{role}_{key}": value
    for role in ("AUTHOR", "COMMITTER")
    for key, value in (("NAME", "Tester"), ("EMAIL", "tester@example.org"))
}


def table(folder: Path, steps: Iterable[tuple[str, str]], **environment: str) -> str:
    """Type commands in a folder; each has to succeed, and to print a text.

    Returns:
        A row for each command: seconds, the command, and the line with the text.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PD_")}
    own = {"PATH": PROGRAMS, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **USER, **environment}
    rows = []
    for command, text in steps:
        start = time.perf_counter()
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env={**inherited, **own}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        lines = [line.strip() for line in done.stdout.splitlines() if text in line]
        rows.append(f"{seconds:6.1f} s  {command}\n          {lines[0] if lines else ''}")
        assert done.returncode == 0, "\n".join([*rows, done.stdout])
        assert text in done.stdout, "\n".join([*rows, done.stdout])
    return "\n".join(rows)
