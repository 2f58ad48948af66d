"""Outputs and leftovers of a run, compared with those of an undisturbed one."""

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
    """An undisturbed run.

    Attributes:
        seconds: its duration.
        starts: seconds from its start to the start of each stage.
        hashes: SHA-256 of every output.
        files: all files at its end.
    """

    seconds: float
    starts: dict[str, float]
    hashes: dict[str, str]
    files: tuple[str, ...]


def differences(folder: Path, name: str, plain: Undisturbed) -> list[str]:
    """Return the differences of a repository after a run to the undisturbed run."""
    own = hashes(folder, name)
    paths = sorted(own.keys() | plain.hashes.keys())
    differing = [path for path in paths if own.get(path) != plain.hashes.get(path)]
    lists = {
        "not the same bytes": differing,
        "left behind": sorted(set(files(folder)).difference(plain.files)),
        "temporary files left": sorted(temporary(folder / "data")),
        "damaged in DVC's cache": _damaged(folder / ".dvc" / "cache"),
    }
    return [f"{what}: {', '.join(names)}" for what, names in lists.items() if names]


def hashes(folder: Path, name: str) -> dict[str, str]:
    """Return the SHA-256 of every output of a data set, by its path in `folder`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for stage in STAGES
        for path in sorted((folder / "data" / stage / name).rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def files(folder: Path) -> Iterator[str]:
    """Yield the files of a repository whose names are the same in every run."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _NAMED_ANEW]
        yield from ((Path(place) / name).relative_to(folder).as_posix() for name in names)


def temporary(data: Path) -> Iterator[str]:
    """Yield the temporary names of files and folders that are written, or were at a kill."""
    for place, folders, names in os.walk(data):
        for name in (*folders, *names):
            if name.startswith(".") and name != ".gitignore":
                yield (Path(place) / name).relative_to(data.parent).as_posix()


def leftovers(folder: Path) -> list[str]:
    """Return DVC's own leftovers: files of the cache that are not named by a hash."""
    dvc = folder / ".dvc"
    stored = r"cache/files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?|cache/runs/[0-9a-f]{2}/[0-9a-f/]+"
    locks = r"tmp/(btime|lock|rwlock|rwlock\.lock|promptkd-(code|runs)\.lock)"
    kept = re.compile(rf"{stored}|site/.*|config|\.gitignore|{locks}")
    names = (path.relative_to(dvc).as_posix() for path in dvc.rglob("*") if path.is_file())
    return sorted(name for name in names if not kept.fullmatch(name))


def _damaged(cache: Path) -> list[str]:
    """Return the files of DVC's cache whose MD5 is not their name."""
    stored = [path for path in (cache / "files" / "md5").rglob("*") if path.is_file()]
    return [
        path.relative_to(cache).as_posix()
        for path in stored
        if re.fullmatch(r"[0-9a-f]{30}(\.dir)?", path.name)
        and hashlib.md5(path.read_bytes()).hexdigest() != path.parent.name + path.stem
    ]
