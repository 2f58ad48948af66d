"""What a run leaves: its outputs, and what should not be there."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STAGES = ("prepare", "teacher", "class_vectors", "student", "evaluate")

BY_DVC = re.compile(r"/\.[\w-]{22}\.tmp$")
"""Temporary names that DVC gives, not a stage."""

_NAMED_ANEW = {".git", ".dvc", "mlruns", "__pycache__"}  # other names in every run


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody disturbed.

    Attributes:
        seconds: that it took.
        starts: seconds from its start to the start of each stage.
        hashes: SHA-256 of every output.
        files: every file that was there at its end.
    """

    seconds: float
    starts: dict[str, float]
    hashes: dict[str, str]
    files: tuple[str, ...]


def differences(folder: Path, name: str, plain: Undisturbed) -> list[str]:
    """Say in what a run's end is not the undisturbed run's.

    Args:
        folder: the repository that it ran in.
        name: of the data set.
        plain: the undisturbed run.
    """
    found = []
    mine = hashes(folder, name)
    paths = sorted(mine.keys() | plain.hashes.keys())
    if differing := [path for path in paths if mine.get(path) != plain.hashes.get(path)]:
        found.append(f"not the same bytes: {', '.join(differing)}")
    if extra := sorted(set(files(folder)).difference(plain.files)):
        found.append(f"left behind: {', '.join(extra)}")
    if unfinished := sorted(temporary(folder / "data")):
        found.append(f"temporary files left: {', '.join(unfinished)}")
    if damaged := _damaged(folder / ".dvc" / "cache"):
        found.append(f"damaged in DVC's cache: {', '.join(damaged)}")
    return found


def hashes(folder: Path, name: str) -> dict[str, str]:
    """Return the SHA-256 of every output of a data set, by its path in `folder`."""
    found = {}
    for stage in STAGES:
        for path in sorted((folder / "data" / stage / name).rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[path.relative_to(folder).as_posix()] = digest
    return found


def files(folder: Path) -> Iterator[str]:
    """Find every file of a repository whose name does not differ from run to run."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _NAMED_ANEW]
        yield from ((Path(place) / name).relative_to(folder).as_posix() for name in names)


def temporary(data: Path) -> Iterator[str]:
    """Find the names that a file or folder has while it is written, and after a kill."""
    for place, folders, names in os.walk(data):
        for name in (*folders, *names):
            if name.startswith(".") and name != ".gitignore":
                yield (Path(place) / name).relative_to(data.parent).as_posix()


def leftovers(folder: Path) -> list[str]:
    """Find what DVC left of its own: files of the cache without a hash for a name."""
    dvc = folder / ".dvc"
    stored = r"cache/files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?|cache/runs/[0-9a-f]{2}/[0-9a-f/]+"
    locks = r"tmp/(btime|lock|rwlock|rwlock\.lock|promptkd-(code|runs)\.lock)"
    kept = re.compile(rf"{stored}|site/.*|config|\.gitignore|{locks}")
    names = (path.relative_to(dvc).as_posix() for path in dvc.rglob("*") if path.is_file())
    return sorted(name for name in names if not kept.fullmatch(name))


def _damaged(cache: Path) -> list[str]:
    """Find the files of DVC's cache whose content is not what their name, an MD5, says."""
    stored = [path for path in (cache / "files" / "md5").rglob("*") if path.is_file()]
    return [
        path.relative_to(cache).as_posix()
        for path in stored
        if re.fullmatch(r"[0-9a-f]{30}(\.dir)?", path.name)
        and hashlib.md5(path.read_bytes()).hexdigest() != path.parent.name + path.stem
    ]
