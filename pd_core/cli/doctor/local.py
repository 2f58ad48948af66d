"""Checks of this machine and this folder: versions, git, settings, device, files, disks."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from pd_core.core.artifacts import SUMS, check_sum
from pd_core.core.atomic import existing, readable
from pd_core.core.errors import OLDEST, PdError, activation
from pd_core.data.acquire.sources import source_names, weight_names
from pd_core.data.catalog import fingerprint
from pd_core.data.catalog.catalogue import DatasetSpec, Layout
from pd_core.pipeline.redaction import ENV_FILE, masked, variables
from pd_core.pipeline.settings import variable_names
from pd_core.pipeline.stages.params import PARAMS

SECONDS = 60.0
"""A check's time: importing torch from a cold network disk takes half of it."""


class Mark(StrEnum):
    """How good what was found is."""

    OK = "ok"
    WARNING = "warning"  # works, but not as it should, or not everything
    WRONG = "wrong"  # something that the profile needs does not work


@dataclass(frozen=True)
class Finding:
    """One line of the result: what was looked at, how good it is, what to do if it is not."""

    subject: str
    mark: Mark
    found: str
    remedy: str = ""


Check = Callable[[], Finding | Iterable[Finding]]


def ok(subject: str, found: str) -> Finding:
    """Return the finding of something that works."""
    return Finding(subject, Mark.OK, found)


def warning(subject: str, found: str, remedy: str) -> Finding:
    """Return the finding of something that works, but not as it should."""
    return Finding(subject, Mark.WARNING, found, remedy)


def wrong(subject: str, found: str, remedy: str) -> Finding:
    """Return the finding of something that does not work."""
    return Finding(subject, Mark.WRONG, found, remedy)


def examine(subject: str, check: Check, *, seconds: float = SECONDS) -> list[Finding]:
    """Make a check; whatever it does, it ends in findings without secrets.

    After some seconds it is given up; its thread ends with the process.
    """
    answer: Queue[list[Finding]] = Queue()
    Thread(target=lambda: answer.put(_findings(subject, check)), daemon=True).start()
    try:
        found = answer.get(timeout=seconds)
    except Empty:
        late = f"no answer within {seconds:g} seconds"
        found = [wrong(subject, late, "see why it hangs, then start again")]
    return [Finding(one.subject, one.mark, masked(one.found), masked(one.remedy)) for one in found]


def _findings(subject: str, check: Check) -> list[Finding]:
    try:
        found = check()
        return [found] if isinstance(found, Finding) else list(found)
    except PdError as error:
        text, _, remedy = str(error).partition("; ")
        return [wrong(subject, text, remedy)]
    except Exception as error:  # the other checks have to be made all the same
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [wrong(subject, f"the check failed, {reason}", "report this")]


ENOUGH_SPACE = 5 * 2**30
"""Bytes. Two checkpoints of a fully tuned ViT-B/16 (0.7 GB with its momentum), the student and its
copy in DVC's cache are 2 GB; this leaves room for a second data set."""

LEAST_SPACE = 2**30
"""Bytes: one such checkpoint and its successor, which is written before the first is removed, do
not fit; a stage would end in the middle."""

LEAST_MEMORY = 4 * 2**30
"""Bytes on a GPU: the paper's teacher, ViT-L/14, has 1.7 GB of weights in fp32, and activations."""

_PACKAGES = (
    "torch", "torchvision", "open-clip-torch", "safetensors", "numpy", "pillow", "dvc", "dvc-s3",
    "mlflow", "prefect", "fastapi", "boto3", "pydantic", "pydantic-settings",
)  # fmt: skip
_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)$")
_INSTALL = "run `pip install -c constraints.txt -e .`"
_PROBE = "import sys; from pd_core.core.errors import require; require(); print(sys.prefix)"
_SECONDS = 20.0
_NO_GIT = 127  # as a shell has it
_OTHERS_MAY_READ = 0o077


def python() -> Finding:
    """Look at the version of Python."""
    found = sys.version.partition(" ")[0]
    if sys.version_info >= OLDEST:
        return ok("Python", found)
    return wrong("Python", found, "make the environment with Python 3.11 or newer")


def python_of_stages() -> Finding:
    """Start the `python3` that `dvc repro` starts, and see whether it can run a stage.

    It is the one of the shell; `promptkd repro` takes its own.
    """
    subject, remedy = "Python of stages", f"use `promptkd repro`, or {activation()}"
    path = shutil.which("python3")
    if path is None:
        return warning(subject, "no `python3` on the PATH, which `dvc repro` starts", remedy)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [path, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=_SECONDS
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it does not start"])[-1]
        found = reason.removeprefix("error: ").partition("; ")[0]
        return warning(subject, f"`dvc repro` fails: {found}", remedy)
    if Path(done.stdout.strip()) != Path(sys.prefix):
        found = f"`dvc repro` starts '{path}', of another environment than '{sys.prefix}'"
        return warning(subject, found, remedy)
    return ok(subject, f"`dvc repro` starts '{path}', of this environment")


def packages(constraints: Path) -> Iterator[Finding]:
    """Compare the packages that results depend on with those pinned in a file, if it is there."""
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
        yield wrong("packages", ", ".join(broken), _INSTALL)
    if other:
        found = f"{', '.join(other)}: results may differ in the last bits"
        yield warning("packages", found, _INSTALL)
    if not broken and not other:
        listed = ", ".join(f"{name} {version}" for name, version in installed.items())
        yield ok("packages", f"{listed} {'as pinned' if pins else ''}".strip())


def _pins(lines: list[str]) -> dict[str, str]:
    found = filter(None, (_PIN.match(line.strip()) for line in lines))
    return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in found}


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


def repository() -> Finding:
    """See whether this folder is tracked by git, which DVC and the records of runs need."""
    status, _ = _git("ls-files", "--error-unmatch", str(PARAMS))
    if status == 0:
        _, commit = _git("rev-parse", "--short", "HEAD")
        return ok("git", f"commit {commit.strip()}" if commit else "no commit yet")
    if status == _NO_GIT:
        return wrong("git", "git is not installed, or does not answer", "install it")
    remedy = "clone it by git, or run `git init && git add --all && git commit -m promptkd`"
    return wrong("git", f"'{Path.cwd()}' is no git repository, as a ZIP download is none", remedy)


def settings() -> Iterator[Finding]:
    """Look for misspelt variables, a data folder that is not there, an `.env` that others see."""
    known = variable_names()
    given = [name.upper() for name in variables() if name.upper().startswith("PD_")]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"write {close[0]}, or remove it" if close else "remove it"
            yield warning("settings", f"{name} is no setting", remedy)
    if ENV_FILE.is_file():
        if _git("check-ignore", "--quiet", str(ENV_FILE)) == (1, ""):
            remedy = f"add a line {ENV_FILE} to .gitignore"
            yield wrong("settings", f"git does not ignore '{ENV_FILE}'", remedy)
        if os.name == "posix" and ENV_FILE.stat().st_mode & _OTHERS_MAY_READ:
            found = f"other users may read '{ENV_FILE}'"
            yield warning("settings", found, f"run `chmod 600 {ENV_FILE}`")
    root = variables().get("PD_DATA_ROOT")
    if root and not Path(root).is_dir():
        found = f"PD_DATA_ROOT, {_origin('PD_DATA_ROOT')}: no folder '{root}'"
        yield wrong("settings", found, "correct it, or make the folder")
    used = [f"{name} {_origin(name)}" for name in known if name in given]
    yield ok("settings", ", ".join(used) or "none set")


def _origin(name: str) -> str:
    """Return which file sets a variable; the environment goes before it."""
    here = name in (variable.upper() for variable in os.environ)
    return "of the environment" if here else f"of '{ENV_FILE.absolute()}'"


def device(name: str) -> Finding:
    """See whether `cpu`, `mps`, `cuda` or `cuda:<number>` is there, computes, has memory left."""
    kind, _, number = name.partition(":")
    if kind == "cpu":
        free = _free_memory()
        memory = "" if free is None else f", {readable(free)} of memory available"
        return ok("device", f"{name}: {os.cpu_count()} cores{memory}")
    import torch

    mend = "set PD_DEVICE or run.device in params.yaml to one that is there"
    if kind == "mps":
        there = torch.backends.mps.is_available()
        return ok("device", name) if there else wrong("device", f"{name}: not there", mend)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpu = int(number or 0)
    if gpu >= count:
        known = ", ".join(f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(count))
        return wrong("device", f"{name}: not there, found {known or 'no GPU'}", mend)
    torch.ones(1, device=name).add(1).item()  # a driver that does not fit is found by computing
    free, total = torch.cuda.mem_get_info(gpu)
    memory = f"{readable(free)} of {readable(total)} memory free"
    found = f"{name}: {torch.cuda.get_device_name(gpu)}, {memory}"
    if free < LEAST_MEMORY:
        return warning("device", found, "see by `nvidia-smi` who uses it, or take another device")
    return ok("device", found)


def _free_memory() -> int | None:
    """Return how many bytes programs can still get; None where the system does not say."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def data(specs: Iterable[DatasetSpec], data_root: Path, project: Path) -> Iterator[Finding]:
    """See whether the data sets' files and fingerprints are there, without reading pictures."""
    from pd_core.data.acquire.verify import state_of

    changed = _uncommitted(project)
    embedded = 0
    for spec in specs:
        path = fingerprint.path_of(spec.name, project)
        subject, folder = f"data {spec.name}", data_root / spec.folder
        state = state_of(spec, data_root)
        if state not in ("embedded", "there"):
            yield wrong(subject, f"{state}: '{folder}'", _how_to_get(spec))
        elif not path.is_file():
            remedy = f"run `promptkd data fingerprint {spec.name}` and commit '{path}'"
            yield wrong(subject, "has no fingerprint", remedy)
        elif (problem := _unreadable(path, spec.name)) is not None:
            yield wrong(subject, *problem)
        elif path.name in changed:
            yield warning(subject, "its fingerprint is not committed", f"commit '{path}'")
        elif spec.layout is Layout.EMBEDDED:
            embedded += 1
        else:
            yield ok(subject, f"there, '{folder}', fingerprint too")
    if embedded:
        yield ok("data", f"{embedded} embedded data sets, and their fingerprints")


def _how_to_get(spec: DatasetSpec) -> str:
    if spec.name in source_names():
        return f"run `promptkd data fetch {spec.name}`, or correct PD_DATA_ROOT"
    return "put the pictures there, or correct PD_DATA_ROOT"


def _unreadable(path: Path, name: str) -> tuple[str, str] | None:
    try:
        fingerprint.read(path, name)
    except PdError as error:
        found, _, remedy = str(error).rpartition(": ")
        return found, remedy
    return None


def _uncommitted(project: Path) -> set[str]:
    """Return names of fingerprints that differ from the last commit; none without git."""
    folder = fingerprint.path_of("", project).parent
    status, output = _git("status", "--porcelain", "--untracked-files=all", "--", str(folder))
    return {Path(line[3:]).name for line in output.splitlines()} if status == 0 else set()


def _git(*arguments: str) -> tuple[int, str]:
    """Return status and output of git; `_NO_GIT` if there is none."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return _NO_GIT, ""
    return done.returncode, done.stdout


def weights(files: Iterable[Path]) -> Iterator[Finding]:
    """See whether weights are there; those that ship with the package are hashed."""
    good = []
    for file in sorted(set(files)):
        if not file.is_file() or file.stat().st_size == 0:
            fetch = f"run `promptkd weights fetch {file.name}`"
            remedy = fetch if file.name in weight_names() else "copy it there, or correct the path"
            state = "is empty" if file.is_file() else "is not there"
            yield wrong("weights", f"'{file}' {state}", remedy)
            continue
        if (file.parent / SUMS).is_file():
            check_sum(file, what="weights", remedy="restore the file")
        good.append(f"'{file.name}' ({readable(file.stat().st_size)})")
    if good:
        yield ok("weights", ", ".join(good))


def space(places: Mapping[str, Path]) -> Iterator[Finding]:
    """See how much room is left where much is written, once for each disk.

    `places` is what is written -> folder, which need not be there yet.
    """
    disks: dict[int, tuple[Path, list[str]]] = {}
    for what, path in places.items():
        folder = existing(path)
        disks.setdefault(folder.stat().st_dev, (folder, []))[1].append(what)
    for folder, written in disks.values():
        free = shutil.disk_usage(folder).free
        yield space_finding(f"{', '.join(written)} at '{folder}'", free)


def space_finding(where: str, free: int) -> Finding:
    """Judge the room, in bytes, that is left on a disk, named in words."""
    found = f"{readable(free)} free for {where}"
    if free >= ENOUGH_SPACE:
        return ok("disk space", found)
    judged = warning if free >= LEAST_SPACE else wrong
    remedy = "make room; `dvc gc --workspace` removes results of earlier parameters"
    return judged("disk space", f"{found}, {readable(ENOUGH_SPACE)} are enough", remedy)
