"""What git holds of a project: its revisions, and the files in them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pd_core.errors import BadData


def git(project: Path, *arguments: str, given: bytes = b"") -> bytes | None:
    """Return what git prints; None if it refuses, or is not there.

    Args:
        project: folder that git works in.
        *arguments: of git.
        given: its input.
    """
    command = ["git", "-C", str(project), *arguments]
    try:
        return subprocess.run(command, input=given, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def commit_of(project: Path, revision: str) -> str | None:
    """Return the commit that a revision names; None if it names none."""
    asked = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    answer = git(project, *asked)
    return answer.decode().strip() if answer else None


def contents(project: Path, commit: str, paths: list[str]) -> Iterator[tuple[str, bytes]]:
    """Read files of a commit, those that it has; paths are seen from the project."""
    top = (git(project, "rev-parse", "--show-toplevel") or b"").decode().strip()
    inside = [os.path.relpath((project / path).resolve(), top) for path in paths]
    asked = "".join(f"{commit}:{path}\n" for path in inside).encode()
    answer = git(project, "cat-file", "--batch", given=asked) or b""
    for path in paths:
        header, _, answer = answer.partition(b"\n")
        if not header.endswith(b" missing"):
            kind, size = header.split()[-2:]
            content, answer = answer[: int(size)], answer[int(size) + 1 :]
            if kind == b"blob":
                yield path, content


def read_lock(content: str | bytes, name: str) -> dict[str, Any]:
    """Read the stages of a `dvc.lock`.

    Args:
        content: of the file.
        name: of the file, for the error.

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
    """Read YAML 1.2, as DVC does: `1e-5` is a number.

    Args:
        content: of the file.
        name: of the file, for the error.

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
