"""Waiting for other processes, and free ports for them."""

import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any


def wait_until(
    condition: Callable[[], bool],
    what: str = "the condition is true",
    process: subprocess.Popen[Any] | None = None,
    *,
    seconds: float = 180,
) -> float:
    """Wait until a condition is true, as long as a process lives; return the seconds it took."""
    start = time.monotonic()
    while not condition():
        passed = time.monotonic() - start
        assert passed < seconds, f"not so after {seconds} seconds: {what}"
        assert process is None or process.poll() is None, f"the process has ended before: {what}"
        time.sleep(0.1)
    return time.monotonic() - start


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def free_port() -> int:
    """Return a port of loopback that is not in use."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
