"""Repositories of git for tests."""

import subprocess
from pathlib import Path


def commit(folder: Path) -> None:
    """Commit all that is in a project."""
    git(folder, "add", "--all")
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    git(folder, *identity, "commit", "--quiet", "--allow-empty", "--message", "state")


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder; return its output."""
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def dvc_project(folder: Path, config: str = "") -> None:
    (folder / ".dvc" / "tmp").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text(f"[core]\n    no_scm = True\n{config}")
