"""Runs of one data set's stages that are killed, and started again by the same command.

Each run has its own copy of the repository, without DVC cache and results.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from comparison import (
    BY_DVC,
    STAGES,
    Undisturbed,
    differences,
    files,
    hashes,
    leftovers,
    temporary,
)
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
REPRO = (sys.executable, "-m", "pd_core", "repro")

_TRIES = 20  # of a run that may be over before its kill
_POLL = 0.001  # seconds; a small file is written in a few milliseconds
_LOCK_SECONDS = 1.0  # what DVC takes to write dvc.lock, about
_STARTED = re.compile(r"^Running stage '(\w+)@", re.MULTILINE)
_RESUMED = re.compile(r"^.*\bcontinues from checkpoint.*$", re.MULTILINE)


_running: set[subprocess.Popen[bytes]] = set()
_stopped = threading.Event()


class Moment(StrEnum):
    """Moment of a kill."""

    TIME = "time"  # any time, uniformly
    WRITE = "write"  # while a stage writes one of its files, or a checkpoint
    LOCK = "lock"  # while DVC writes dvc.lock


class BrokenSetup(Exception):
    """The undisturbed run, or a tool of the experiment, failed."""


@dataclass(frozen=True)
class Kill:
    """One kill: how many seconds after the start, and in which stage ("" before the first)."""

    seconds: float
    stage: str


@dataclass(frozen=True)
class KilledRun:
    """Result of a run that was killed and started again.

    Attributes:
        kills: in order, each of a start of its own.
        resumed: messages about checkpoints after each kill.
        seconds: duration of the last start.
        leftovers: temporary files in DVC's folder.
        failures: differences to the undisturbed run.
    """

    kills: tuple[Kill, ...]
    resumed: tuple[str, ...]
    seconds: float
    leftovers: tuple[str, ...]
    failures: tuple[str, ...]


def copy_repository(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> str:
    """Copy the working tree to a repository of its own, with changed parameters.

    Args:
        folder: of the copy.
        changes: new values of `params.yaml`: block -> key -> value.

    Returns:
        The hash of its tree.
    """
    listed = _output(["git", "ls-files", "-co", "--exclude-standard"], ROOT).splitlines()
    for name in listed:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    _change(folder / "params.yaml", changes)
    author = ["-c", "user.name=faults", "-c", "user.email=faults@localhost"]
    _output(["git", "init", "--quiet"], folder)
    _output(["git", "add", "--all"], folder)
    _output(["git", *author, "commit", "--quiet", "-m", "all"], folder)
    return _output(["git", "rev-parse", "HEAD^{tree}"], folder).strip()


def undisturbed_run(template: Path, folder: Path, name: str) -> Undisturbed:
    """Run the stages of a data set in a copy of `template`, and remove the copy.

    Raises:
        BrokenSetup: the run failed, or skipped stages.
    """
    shutil.copytree(template, folder, symlinks=True)
    log = _log(folder, 0)
    starts: dict[str, float] = {}
    begin = time.monotonic()
    with _started(folder, name, log) as process:
        while process.poll() is None:
            for stage in _STARTED.findall(_text(log)):
                starts.setdefault(stage, round(time.monotonic() - begin, 3))
            time.sleep(0.05)
    seconds = time.monotonic() - begin
    if process.returncode != 0 or tuple(starts) != STAGES:
        raise BrokenSetup(f"the undisturbed run failed, or skipped stages; see {log}")
    run = Undisturbed(seconds, starts, hashes(folder, name), tuple(files(folder)))
    shutil.rmtree(folder)
    log.unlink()
    return run


def killed_run(
    template: Path,
    folder: Path,
    name: str,
    plain: Undisturbed,
    *,
    generator: random.Random,
    moment: Moment,
    times: int,
) -> KilledRun:
    """Run the stages in a copy of `template`, kill them `times` times, finish, and compare.

    The copy is removed unless there are failures.

    Raises:
        BrokenSetup: there was nothing to kill, or a tool failed.
    """
    kills = [_first_kill(template, folder, name, plain, moment, generator)]
    while len(kills) < times:
        left = max(plain.seconds - sum(kill.seconds for kill in kills), 1.0)
        log = _log(folder, len(kills))
        kill = _start_and_kill(folder, name, log, moment, generator.uniform(0, left), generator)
        if kill is None:
            break
        kills.append(kill)
    begin = time.monotonic()
    log = _log(folder, len(kills))
    with _started(folder, name, log) as process:
        process.wait()
    seconds = time.monotonic() - begin
    failures = _failures(folder, name, plain, process.returncode, log)
    logs = [_log(folder, number) for number in range(len(kills) + 1)]
    result = KilledRun(
        kills=tuple(kills),
        resumed=tuple(" ".join(_RESUMED.findall(_text(path))).strip() for path in logs[1:]),
        seconds=seconds,
        leftovers=tuple(leftovers(folder)),
        failures=tuple(failures),
    )
    if not failures:
        shutil.rmtree(folder)
        for path in logs:
            path.unlink(missing_ok=True)
    return result


def stop() -> None:
    """End all runs; each of them raises BrokenSetup."""
    _stopped.set()
    for process in list(_running):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _change(path: Path, changes: Mapping[str, Mapping[str, Any]]) -> None:
    yaml = YAML()
    params = yaml.load(path)
    for block, values in changes.items():
        params[block].update(values)
    yaml.dump(params, path)


def _output(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=_environment(folder), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BrokenSetup(f"{' '.join(command)} failed: {done.stdout}{done.stderr}".strip())
    return done.stdout


def _environment(folder: Path) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PD_")}
    return {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",  # what was printed before a kill is in the log
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder / ".dvc" / "site"),  # else it outlives the copy
    }


@contextmanager
def _started(folder: Path, name: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the user's command in a process group of its own."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*REPRO, f"evaluate@{name}"], cwd=folder, env=_environment(folder),
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    _running.add(process)
    try:
        yield process
        process.wait()
    finally:
        _running.discard(process)
    if _stopped.is_set():
        raise BrokenSetup("stopped")


def _first_kill(
    template: Path,
    folder: Path,
    name: str,
    plain: Undisturbed,
    moment: Moment,
    generator: random.Random,
) -> Kill:
    """Start anew until the kill comes before the end."""
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder, symlinks=True)
        after = generator.uniform(plain.starts[STAGES[0]], plain.seconds)
        kill = _start_and_kill(folder, name, _log(folder, 0), moment, after, generator)
        if kill is not None:
            return kill
    raise BrokenSetup(f"{_TRIES} runs ended before their kill, at a moment of kind '{moment}'")


def _start_and_kill(
    folder: Path,
    name: str,
    log: Path,
    moment: Moment,
    after: float,
    generator: random.Random,
) -> Kill | None:
    """Start, and kill at the first such moment after so many seconds; None if it ended before."""
    whole = (folder / "dvc.lock").stat().st_size
    begin = time.monotonic()
    with _started(folder, name, log) as process:
        while process.poll() is None:
            if time.monotonic() - begin >= after and _has_come(moment, folder, whole):
                if moment is Moment.LOCK:
                    time.sleep(generator.uniform(0, _LOCK_SECONDS))
                seconds = time.monotonic() - begin
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                _wait_for_the_end_of(process.pid)
                stages = _STARTED.findall(_text(log))
                return Kill(round(seconds, 3), stages[-1] if stages else "")
            time.sleep(_POLL)
    return None


def _has_come(moment: Moment, folder: Path, whole: int) -> bool:
    match moment:
        case Moment.TIME:
            return True
        case Moment.WRITE:
            return any(not BY_DVC.search(name) for name in temporary(folder / "data"))
        case Moment.LOCK:
            return (folder / "dvc.lock").stat().st_size < whole


def _wait_for_the_end_of(group: int) -> None:
    """Wait until no process of a group is alive; zombies do not count."""
    while True:
        listed = _output(["ps", "-A", "-o", "pgid=,stat="], ROOT).splitlines()
        states = [row.split() for row in listed]
        if not any(row[0] == str(group) and not row[1].startswith("Z") for row in states):
            return
        time.sleep(0.02)


def _failures(folder: Path, name: str, plain: Undisturbed, status: int, log: Path) -> list[str]:
    if status != 0:
        last = " ".join(_text(log).split()[-40:])
        return [f"the last start ends with status {status}: {last}"]
    failures = differences(folder, name, plain)
    command = [sys.executable, "-m", "dvc", "status", "--json", "--with-deps", f"evaluate@{name}"]
    if (state := json.loads(_output(command, folder))) != {}:
        failures.append(f"`dvc status` is not clean: {state}")
    return failures


def _log(folder: Path, start: int) -> Path:
    return folder.with_name(f"{folder.name}-{start}.log")


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
