"""An environment with some distributions of this one, what they need, and nothing else."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from supply_chain import distributions

_NO_NETWORK = """
import socket

def _refuse(*_, **__):
    raise OSError("there is no network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = _refuse
"""


def environment(folder: Path, requirements: Iterable[str]) -> Path:
    """Make a virtual environment that holds only what requirements ask for, without a network.

    Their files are links to those of this environment; installing torch anew would take minutes.

    Returns:
        Its interpreter.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = (folder / "lib").glob("python3*/site-packages")
    for installed in distributions(requirements).values():
        for name in {Path(file).parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            link = site / name
            if not link.exists():
                link.symlink_to(Path(str(installed.locate_file(name))))
    (site / "sitecustomize.py").write_text(_NO_NETWORK)
    return folder / "bin" / "python"
