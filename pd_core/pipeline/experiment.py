"""Experiments of DVC, which may run in a temporary copy of the project (`--queue`, `--temp`).

The copy has the files of git and DVC only, and is deleted at the end.
"""

from __future__ import annotations

import os
from pathlib import Path

_COPIES = Path(".dvc", "tmp", "exps")


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
