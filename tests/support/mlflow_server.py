"""An MLflow server on loopback, as a process."""

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from waiting import free_port, wait_until


@contextmanager
def mlflow_server(
    database: Path, folder: Path, *options: str, **environment: str
) -> Iterator[tuple[str, int]]:
    """Run a tracking server with a copy of a database; yield its address and process group."""
    port = free_port()
    folder.mkdir()
    shutil.copyfile(database, folder / "server.db")
    command = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    place = ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", *options]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, *place],
            cwd=folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(f"{address}/health"), seconds=90)
        yield address, server.pid
    finally:
        stop(server.pid)
        server.wait()


def stop(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except OSError:
        return False
