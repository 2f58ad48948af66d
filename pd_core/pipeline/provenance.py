"""Provenance of a result: git commit, hashes of files and parameters, package versions, memory."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from pd_core.core.errors import BadData


def git(project: Path, *arguments: str, given: bytes = b"") -> bytes | None:
    """Return what git prints in a folder, given an input; None if it refuses, or is not there."""
    command = ["git", "-C", str(project), *arguments]
    try:
        return subprocess.run(command, input=given, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def commit_of(project: Path, revision: str) -> str | None:
    """Return the commit that a revision names; None if it names none."""
    command = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    return _git(project, *command) or None


def contents(project: Path, commit: str, paths: list[str]) -> Iterator[tuple[str, bytes]]:
    """Read files of a commit, those that it has; paths are seen from the project."""
    top = _git(project, "rev-parse", "--show-toplevel") or ""
    seen = {path: os.path.relpath((project / path).resolve(), top) for path in paths}
    # A link may lead out of the repository, which git refuses.
    inside = {path: name for path, name in seen.items() if not name.startswith("..")}
    names = "".join(f"{commit}:{name}\n" for name in inside.values()).encode()
    output = git(project, "cat-file", "--batch", given=names) or b""
    for path in inside:
        header, _, output = output.partition(b"\n")
        if not header.endswith(b" missing"):
            kind, size = header.split()[-2:]
            content, output = output[: int(size)], output[int(size) + 1 :]
            if kind == b"blob":
                yield path, content


def files_of(project: Path, commit: str, folder: str) -> list[str]:
    """List the files that a commit has in a folder; paths are seen from the project."""
    top = _git(project, "rev-parse", "--show-toplevel") or ""
    inside = os.path.relpath((project / folder).resolve(), top)
    listed = (
        git(project, "ls-tree", "-r", "-z", "--name-only", "--full-tree", commit, inside) or b""
    )
    names = listed.decode(errors="surrogateescape").split("\0")
    return [f"{folder}{name.removeprefix(inside)}" for name in names if name]


def read_lock(content: str | bytes, name: str) -> dict[str, Any]:
    """Read the stages of a `dvc.lock`, which errors call by a name.

    Raises:
        BadData: it is no such file.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        # Hashes need no YAML 1.2, and this reader takes a tenth of the time.
        return dict(YAML(typ="safe").load(content)["stages"])
    except (YAMLError, KeyError, TypeError, ValueError):
        raise BadData(f"{name} is no lock file of DVC; restore it from git") from None


def read_yaml(content: str | bytes, name: str) -> Any:
    """Read YAML 1.2, as DVC does: `1e-5` is a number; errors call the file by its name.

    Raises:
        BadData: it is not YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(content)
    except YAMLError as error:
        problem = str(error).partition("\n")[0]
        raise BadData(f"{name} is not YAML ({problem}); restore it from git") from None


# What changes while a pipeline runs says nothing about its code. (DVC takes the .gitignore of an
# output away before the stage, and puts it back behind it.)
_WRITTEN_BY_STAGES = [
    f":(exclude,top,glob)**/{path}" for path in ("dvc.lock", ".gitignore", "reports/**")
]

ABSENT = "absent"
"""The hash recorded for a path that does not exist."""

NO_COMMIT = "none"
"""The commit recorded outside a git repository."""


def content_hash(path: Path) -> str:
    """Return the hash that DVC gives a file or folder.

    A file's is the MD5 of its bytes; a folder's is the MD5 of the JSON list of its files' hashes,
    sorted by path, with ".dir" after it. `__pycache__` folders do not count, nor does `.gitignore`,
    which DVC puts beside outputs after the stage that wrote them.

    Returns:
        The hash, or "absent" if there is nothing at `path`.
    """
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and file.name != ".gitignore"]
        entries = [
            {"md5": _file_md5(file), "relpath": file.relative_to(path).as_posix()}
            for file in files
            if "__pycache__" not in file.relative_to(path).parts
        ]
        listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
        return _md5(listing.encode()) + ".dir"
    return _file_md5(path) if path.is_file() else ABSENT


def params_hash(params: Mapping[str, object]) -> str:
    """Return the MD5 of the parameters as JSON with sorted keys."""
    return _md5(json.dumps(params, sort_keys=True, default=str).encode())


def hashes(
    paths: Iterable[Path], project: Path, computed: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return hashes by path as seen from the project, with those that are already `computed`."""
    return {
        **(computed or {}),
        **{name_in(project, path): content_hash(project / path) for path in paths},
    }


@dataclass(frozen=True)
class Lineage:
    """Commit and files that a result comes from.

    Attributes:
        git_commit: of the code; "none" outside a repository.
        git_dirty: "true" if tracked files differed from it, else "false"; "" outside a repository.
        params_md5: hash of the parameters.
        deps: hashes of what was read, by path as seen from the project.
        outs: hashes of what was written.
    """

    git_commit: str = NO_COMMIT
    git_dirty: str = ""
    params_md5: str = ""
    deps: Mapping[str, str] = field(default_factory=dict)
    outs: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_commit(cls, project: Path, **values: Any) -> Self:
        """Return the lineage of a result of the code in a project as it is now."""
        tags = commit_tags(project)
        return cls(tags["git_commit"], tags.get("git_dirty", ""), **values)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `text` returned."""
        return cls(**json.loads(text))

    def text(self) -> str:
        """Return the content of `lineage.json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    def digest(self) -> str:
        """Return the MD5 of `lineage.json`."""
        return _md5(self.text().encode())


def name_in(project: Path, path: Path) -> str:
    """Return a path as seen from the project, not from this machine's root.

    MLflow refuses names with `..`, so those of files outside the project go without.
    """
    seen = Path(os.path.relpath(project / path, project))
    return Path(*(part for part in seen.parts if part != "..")).as_posix()


def commit_tags(project: Path) -> dict[str, str]:
    """Return `git_commit` of a folder, and `git_dirty`: whether tracked files differ from it."""
    commit = _git(project, "rev-parse", "HEAD")
    if commit is None:
        return {"git_commit": NO_COMMIT}
    changes = _git(project, "status", "--porcelain", "-uno", "--", ":/", *_WRITTEN_BY_STAGES)
    return {"git_commit": commit, "git_dirty": str(bool(changes)).lower()}


def identity(project: Path) -> tuple[str, ...]:
    """Return options that give git an author, where it has none."""
    if _git(project, "config", "user.email") is not None:
        return ()
    return "-c", "user.name=promptkd", "-c", "user.email=promptkd@localhost"


def code_commit(project: Path) -> str | None:
    """Return the last commit that changed more than results; None if there is none.

    Clones that differ in `dvc.lock` and reports alone are at the same one.
    """
    return _git(project, "log", "-1", "--format=%H", "--", ":/", *_WRITTEN_BY_STAGES) or None


def version(package: str) -> str:
    """Return the version of an installed package, or "absent"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ABSENT


def peak_memory() -> float:
    """Return the most memory that this process has held, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)  # bytes there, KiB here


def _git(project: Path, *arguments: str) -> str | None:
    output = git(project, *arguments)
    return None if output is None else output.decode().strip()


def _file_md5(path: Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    except OSError as error:
        raise BadData(f"'{path}' cannot be read ({error.strerror}); restore it") from None
    return digest.hexdigest()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
