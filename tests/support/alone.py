"""An environment with some distributions of this one, what they need, and nothing else."""

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

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
    for found in _closure(requirements):
        for name in {Path(file).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            link = site / name
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(name))))
    (site / "sitecustomize.py").write_text(_NO_NETWORK)
    return folder / "bin" / "python"


def _closure(requirements: Iterable[str]) -> list[Distribution]:
    found: dict[str, Distribution] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        asked = waiting.pop()
        name = re.sub(r"[-_.]+", "-", asked.name).lower()
        extras = asked.extras or {""}
        wanted = not asked.marker or any(asked.marker.evaluate({"extra": x}) for x in extras)
        if name in found or not wanted:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # of another system
            continue
        needs = (Requirement(text) for text in found[name].requires or ())
        waiting += [
            need
            for need in needs
            if not need.marker or any(need.marker.evaluate({"extra": x}) for x in extras)
        ]
    return list(found.values())
