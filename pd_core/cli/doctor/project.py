"""Checks of what belongs to the user: settings, data sets, weights."""

from __future__ import annotations

import difflib
import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from pd_core.cli.doctor import Finding, Mark
from pd_core.core.artifacts import SUMS, check_sum
from pd_core.core.atomic import readable
from pd_core.core.errors import PdError
from pd_core.data.acquire.sources import weight_names
from pd_core.data.catalog import fingerprint
from pd_core.data.catalog.catalogue import DatasetSpec, Layout
from pd_core.pipeline.redaction import ENV_FILE, variables
from pd_core.pipeline.settings import variable_names
from pd_core.pipeline.stages.params import PARAMS

_GIT_SECONDS = 20.0
_NO_GIT = 127  # as a shell has it
_OTHERS_MAY_READ = 0o077


def repository() -> Iterator[Finding]:
    """See whether this folder is tracked by git, which DVC and the records of runs need."""
    status, _ = _git("ls-files", "--error-unmatch", str(PARAMS))
    if status == 0:
        _, commit = _git("rev-parse", "--short", "HEAD")
        yield Finding("git", Mark.OK, f"commit {commit.strip()}" if commit else "no commit yet")
    elif status == _NO_GIT:
        yield Finding("git", Mark.WRONG, "git is not installed, or does not answer", "install it")
    else:
        found = f"'{Path.cwd()}' is no git repository, as a ZIP download is none"
        remedy = "clone it by git, or run `git init && git add --all && git commit -m promptkd`"
        yield Finding("git", Mark.WRONG, found, remedy)


def settings() -> Iterator[Finding]:
    """Look for misspelt variables, a data folder that is not there, an `.env` that others see."""
    known = variable_names()
    given = [name.upper() for name in variables() if name.upper().startswith("PD_")]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"write {close[0]}, or remove it" if close else "remove it"
            yield Finding("settings", Mark.WARNING, f"{name} is no setting", remedy)
    if ENV_FILE.is_file():
        yield from _env_file()
    root = variables().get("PD_DATA_ROOT")
    if root and not Path(root).is_dir():
        found = f"PD_DATA_ROOT, {_origin('PD_DATA_ROOT')}: no folder '{root}'"
        yield Finding("settings", Mark.WRONG, found, "correct it, or make the folder")
    used = [f"{name} {_origin(name)}" for name in known if name in given]
    yield Finding("settings", Mark.OK, ", ".join(used) or "none set")


def _origin(name: str) -> str:
    """Return which file sets a variable; the environment goes before it."""
    here = name in (variable.upper() for variable in os.environ)
    return "of the environment" if here else f"of '{ENV_FILE.absolute()}'"


def _env_file() -> Iterator[Finding]:
    if _git("check-ignore", "--quiet", str(ENV_FILE)) == (1, ""):
        remedy = f"add a line {ENV_FILE} to .gitignore"
        yield Finding("settings", Mark.WRONG, f"git does not ignore '{ENV_FILE}'", remedy)
    if os.name == "posix" and ENV_FILE.stat().st_mode & _OTHERS_MAY_READ:
        found = f"other users may read '{ENV_FILE}'"
        yield Finding("settings", Mark.WARNING, found, f"run `chmod 600 {ENV_FILE}`")


def data(specs: Iterable[DatasetSpec], data_root: Path, project: Path) -> Iterator[Finding]:
    """See whether the data sets' files and fingerprints are there, without reading pictures.

    Args:
        specs: The profile's data sets.
        data_root: Folder that holds those that are not embedded.
        project: The repository's root.
    """
    from pd_core.data.acquire.verify import state_of

    changed = _uncommitted(project)
    embedded = 0
    for spec in specs:
        path = fingerprint.path_of(spec.name, project)
        subject = f"data {spec.name}"
        state = state_of(spec, data_root)
        if state not in ("embedded", "there"):
            where = data_root / spec.folder
            yield Finding(subject, Mark.WRONG, f"{state}: '{where}'", _how_to_get(spec))
        elif not path.is_file():
            remedy = f"run `promptkd data fingerprint {spec.name}` and commit '{path}'"
            yield Finding(subject, Mark.WRONG, "has no fingerprint", remedy)
        elif (problem := _unreadable(path, spec.name)) is not None:
            yield Finding(subject, Mark.WRONG, *problem)
        elif path.name in changed:
            yield Finding(
                subject, Mark.WARNING, "its fingerprint is not committed", f"commit '{path}'"
            )
        elif spec.layout is Layout.EMBEDDED:
            embedded += 1
        else:
            yield Finding(subject, Mark.OK, f"there, '{data_root / spec.folder}', fingerprint too")
    if embedded:
        yield Finding("data", Mark.OK, f"{embedded} embedded data sets, and their fingerprints")


def weights(files: Iterable[Path]) -> Iterator[Finding]:
    """See whether weights are there; those that ship with the package are hashed.

    Args:
        files: What the parameters name.
    """
    good = []
    for file in sorted(set(files)):
        if not file.is_file() or file.stat().st_size == 0:
            fetch = f"run `promptkd weights fetch {file.name}`"
            remedy = fetch if file.name in weight_names() else "copy it there, or correct the path"
            found = "is empty" if file.is_file() else "is not there"
            yield Finding("weights", Mark.WRONG, f"'{file}' {found}", remedy)
            continue
        if (file.parent / SUMS).is_file():
            check_sum(file, what="weights", remedy="restore the file")
        good.append(f"'{file.name}' ({readable(file.stat().st_size)})")
    if good:
        yield Finding("weights", Mark.OK, ", ".join(good))


def _how_to_get(spec: DatasetSpec) -> str:
    from pd_core.data.acquire.sources import source_names

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
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, timeout=_GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return _NO_GIT, ""
    return done.returncode, done.stdout
