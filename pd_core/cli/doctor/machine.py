"""Checks of the machine: versions, the device, room on disks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from pd_core.cli.doctor import Finding, Mark
from pd_core.core.atomic import readable
from pd_core.core.interpreter import OLDEST, activation

ENOUGH_SPACE = 5 * 2**30
"""Bytes. Two checkpoints of a fully tuned ViT-B/16 (0.7 GB with its momentum), the student and its
copy in DVC's cache are 2 GB; this leaves room for a second data set."""

LEAST_SPACE = 2**30
"""Bytes: one such checkpoint and its successor, which is written before the first is removed, do
not fit; a stage would end in the middle."""

LEAST_MEMORY = 4 * 2**30
"""Bytes on a GPU: the paper's teacher, ViT-L/14, has 1.7 GB of weights in fp32, and activations."""

_PACKAGES = (
    "torch",
    "torchvision",
    "open-clip-torch",
    "safetensors",
    "numpy",
    "pillow",
    "dvc",
    "dvc-s3",
    "mlflow",
    "prefect",
    "fastapi",
    "boto3",
    "pydantic",
    "pydantic-settings",
)
_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)$")
_INSTALL = "run `pip install -c constraints.txt -e .`"
_PROBE = "import sys; from pd_core.core.interpreter import require; require(); print(sys.prefix)"
_PROBE_SECONDS = 20.0


def python() -> Iterator[Finding]:
    """Look at the version of Python."""
    found = sys.version.partition(" ")[0]
    if sys.version_info >= OLDEST:
        yield Finding("Python", Mark.OK, found)
    else:
        yield Finding("Python", Mark.WRONG, found, "make the environment with Python 3.11 or newer")


def python_of_stages() -> Iterator[Finding]:
    """Start the `python3` that `dvc repro` starts, and see whether it can run a stage.

    It is the one of the shell; `promptkd repro` takes its own.
    """
    subject, remedy = "Python of stages", f"use `promptkd repro`, or {activation()}"
    path = shutil.which("python3")
    if path is None:
        found = "no `python3` on the PATH, which `dvc repro` starts"
        yield Finding(subject, Mark.WARNING, found, remedy)
        return
    package = str(Path(__file__).parents[3])
    done = subprocess.run(
        [path, "-c", _PROBE],
        env={**os.environ, "PYTHONPATH": package}, capture_output=True, text=True, check=False,
        timeout=_PROBE_SECONDS,
    )  # fmt: skip
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it does not start"])[-1]
        found = reason.removeprefix("error: ").partition("; ")[0]
        yield Finding(subject, Mark.WARNING, f"`dvc repro` fails: {found}", remedy)
    elif Path(done.stdout.strip()) != Path(sys.prefix):
        found = f"`dvc repro` starts '{path}', of another environment than '{sys.prefix}'"
        yield Finding(subject, Mark.WARNING, found, remedy)
    else:
        yield Finding(subject, Mark.OK, f"`dvc repro` starts '{path}', of this environment")


def packages(constraints: Path) -> Iterator[Finding]:
    """Compare the versions of the packages that results depend on with those that are pinned.

    Args:
        constraints: The repository's `constraints.txt`; it need not be there.
    """
    pins = _pins(constraints.read_text("utf-8").splitlines() if constraints.is_file() else [])
    required = _pins(_requirements())
    installed = {name: _version(name) for name in _PACKAGES}
    broken = [
        f"{name} is {version or 'not installed'}, {required.get(name, 'any version')} is required"
        for name, version in installed.items()
        if version is None or version != required.get(name, version)
    ]
    other = [
        f"{name} is {version}, pinned is {pins[name]}"
        for name, version in installed.items()
        if version and name not in required and version != pins.get(name, version)
    ]
    if broken:
        yield Finding("packages", Mark.WRONG, ", ".join(broken), _INSTALL)
    if other:
        yield Finding(
            "packages",
            Mark.WARNING,
            f"{', '.join(other)}: results may differ in the last bits",
            _INSTALL,
        )
    if not broken and not other:
        listed = ", ".join(f"{name} {version}" for name, version in installed.items())
        yield Finding("packages", Mark.OK, f"{listed} {'as pinned' if pins else ''}".strip())


def device(name: str) -> Iterator[Finding]:
    """See whether the device is there, computes, and has memory left.

    Args:
        name: `cpu`, `mps`, `cuda` or `cuda:<number>`.
    """
    kind = name.partition(":")[0]
    if kind == "cpu":
        free = _free_memory()
        memory = "" if free is None else f", {readable(free)} of memory available"
        yield Finding("device", Mark.OK, f"{name}: {os.cpu_count()} cores{memory}")
        return
    import torch

    mend = "set PD_DEVICE or run.device in params.yaml to one that is there"
    if kind == "mps":
        if torch.backends.mps.is_available():
            yield Finding("device", Mark.OK, name)
        else:
            yield Finding("device", Mark.WRONG, f"{name}: not there", mend)
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ", ".join(f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(count))
    number = int(name.partition(":")[2] or 0)
    if number >= count:
        yield Finding("device", Mark.WRONG, f"{name}: not there, found {known or 'no GPU'}", mend)
        return
    torch.ones(1, device=name).add(1).item()  # a driver that does not fit is found by computing
    free, total = torch.cuda.mem_get_info(number)
    found = (
        f"{name}: {torch.cuda.get_device_name(number)}, "
        f"{readable(free)} of {readable(total)} memory free"
    )
    if free < LEAST_MEMORY:
        full = "see by `nvidia-smi` who uses it, or take another device"
        yield Finding("device", Mark.WARNING, found, full)
    else:
        yield Finding("device", Mark.OK, found)


def space(places: Mapping[str, Path]) -> Iterator[Finding]:
    """See how much room is left where much is written, once for each disk.

    Args:
        places: What is written there -> folder, which need not be there yet.
    """
    disks: dict[int, tuple[Path, list[str]]] = {}
    for what, path in places.items():
        folder = existing(path)
        disks.setdefault(folder.stat().st_dev, (folder, []))[1].append(what)
    for folder, written in disks.values():
        free = shutil.disk_usage(folder).free
        yield space_finding(f"{', '.join(written)} at '{folder}'", free)


def space_finding(where: str, free: int) -> Finding:
    """Judge the room that is left on a disk.

    Args:
        where: The disk, in words.
        free: Bytes.
    """
    found = f"{readable(free)} free for {where}"
    if free >= ENOUGH_SPACE:
        return Finding("disk space", Mark.OK, found)
    mark = Mark.WARNING if free >= LEAST_SPACE else Mark.WRONG
    return Finding(
        "disk space",
        mark,
        f"{found}, {readable(ENOUGH_SPACE)} are enough",
        "make room; `dvc gc --workspace` removes results of earlier parameters",
    )


def existing(path: Path) -> Path:
    """Return a path, or the nearest folder above it that is there."""
    path = path.resolve()
    return next(place for place in (path, *path.parents) if place.exists())


def _pins(lines: list[str]) -> dict[str, str]:
    found = (_PIN.match(line.strip()) for line in lines)
    return {_normal(match[1]): match[2] for match in found if match}


def _requirements() -> list[str]:
    """Return what this package asks for, wherever it is installed."""
    try:
        return metadata.requires("promptkd") or []
    except metadata.PackageNotFoundError:  # started from a folder of the source
        return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name).partition("+")[0]  # without the build, "+cu130"
    except metadata.PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _free_memory() -> int | None:
    """Return how many bytes programs can still get; None where the system does not say."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
