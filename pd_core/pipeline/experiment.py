"""Experiments of DVC, which may run in a temporary copy of the project (`--queue`, `--temp`).

The copy has the files of git and DVC only, and is deleted at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pd_core.pipeline import provenance

_COPIES = Path(".dvc", "tmp", "exps")


_AUTHOR = "promptkd <promptkd@localhost>"


@dataclass(frozen=True)
class Row:
    """An experiment that was computed elsewhere, for `dvc exp show`.

    Attributes:
        name: of the experiment.
        files: text of the files that differ from the last commit, by path in the project.
        seconds: time of the experiment, since 1970.
    """

    name: str
    files: Mapping[str, str]
    seconds: int


def recorded(project: Path) -> set[str]:
    """Return the names of the experiments at the last commit."""
    head = provenance.commit_of(project, "HEAD") or ""
    listed = provenance.git(project, "for-each-ref", "--format=%(refname)", _folder(head)) or b""
    return {line.rpartition("/")[2] for line in listed.decode().splitlines()}


def record(project: Path, rows: Iterable[Row]) -> None:
    """Record experiments at the last commit, in one call of git, where there is a repository.

    DVC's own `dvc exp save` needs the workspace, and seconds for each.
    """
    head = provenance.commit_of(project, "HEAD")
    prefix = provenance.git(project, "rev-parse", "--show-prefix")
    if head is None or prefix is None:
        return
    folder, inside = _folder(head), prefix.decode().strip()
    commits = [_commit(row, f"{folder}/{row.name}", head, inside) for row in rows]
    provenance.git(project, "fast-import", "--quiet", "--force", given=b"".join(commits))


def _folder(head: str) -> str:
    """Return DVC's references of the experiments at a commit."""
    return f"refs/exps/{head[:2]}/{head[2:]}"


def _commit(row: Row, reference: str, parent: str, prefix: str) -> bytes:
    """Return a commit in the format of `git fast-import`."""
    message = f"dvc: commit experiment {row.name}"
    lines = [
        f"commit {reference}\ncommitter {_AUTHOR} {row.seconds} +0000\n".encode(),
        _data(message),
        f"from {parent}\n".encode(),
    ]
    for path, text in row.files.items():
        lines += [f"M 100644 inline {prefix}{path}\n".encode(), _data(text)]
    return b"".join(lines)


def _data(text: str) -> bytes:
    content = text.encode()
    return b"data %d\n%s\n" % (len(content), content)


def name() -> str:
    """Return the name of the experiment that this process belongs to; "" outside of one."""
    return os.environ.get("DVC_EXP_NAME", "")


def origin(folder: Path) -> Path:
    """Return a folder of the user's project: in a temporary copy, the one that it is a copy of."""
    root, here = os.environ.get("DVC_ROOT"), folder.resolve()
    if not root or not here.is_relative_to(Path(root).resolve() / _COPIES):
        return folder
    return _top(Path(root).resolve()) / here.relative_to(_top(here))


def link_ignored(folder: Path) -> None:
    """Link images, weights and other entries of a folder that a temporary copy lacks."""
    source = origin(folder)
    if source == folder or not source.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        link = folder / entry.name
        if not link.exists() and not link.is_symlink():
            link.symlink_to(entry)


def _top(folder: Path) -> Path:
    """Return the root of the git repository that a folder is in."""
    return next(above for above in (folder, *folder.parents) if (above / ".git").exists())
