"""Where the page's numbers come from: commit, versions, parameters, hashes in `dvc.lock`."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pd_core.pipeline.provenance import ABSENT, commit_tags, content_hash, read_lock, version
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.stages.params import PARAMS

LOCK = Path("dvc.lock")
STAGES = ("prepare", "teacher", "class_vectors", "student", "evaluate")
PACKAGES = ("promptkd", "torch", "torchvision", "open_clip_torch", "numpy", "dvc", "mlflow")

SAME, OTHER, NOT_HERE = "as recorded", "not as recorded", "not here"


@dataclass(frozen=True)
class Output:
    """A file or folder that a stage wrote.

    Attributes:
        path: of it.
        md5: that `dvc.lock` has.
        state: whether what lies there is that.
    """

    path: str
    md5: str
    state: str


@dataclass(frozen=True)
class Origin:
    """Where numbers come from.

    Attributes:
        commit: of git; "none" outside of a repository.
        changed: whether files of that commit were changed.
        versions: by package, and Python's.
        params: text of `params.yaml`.
        outputs: of the stages that `dvc.lock` knows.
    """

    commit: str
    changed: bool
    versions: dict[str, str]
    params: str
    outputs: tuple[Output, ...]


def origin(datasets: Sequence[str], root: Path) -> Origin:
    """Gather where the numbers of the profile in this folder come from.

    Args:
        datasets: whose outputs are compared with `dvc.lock`.
        root: of the repository.

    Raises:
        BadArtifact: `dvc.lock` is damaged.
    """
    tags = commit_tags(root)
    found = {name: version(name) for name in PACKAGES}
    return Origin(
        tags["git_commit"],
        tags.get("git_dirty") == "true",
        {"python": platform.python_version(), **found},
        masked(PARAMS.read_text(encoding="utf-8")),
        tuple(_outputs(_stages(), datasets)),
    )


def _outputs(stages: Mapping[str, Any], datasets: Sequence[str]) -> list[Output]:
    entries = [
        out
        for name in datasets
        for stage in STAGES
        for out in stages.get(f"{stage}@{name}", {}).get("outs", [])
    ]
    return [
        Output(out["path"], out["md5"], _state(Path(out["path"]), out["md5"])) for out in entries
    ]


def _state(path: Path, recorded: str) -> str:
    found = content_hash(path)
    return SAME if found == recorded else NOT_HERE if found == ABSENT else OTHER


def _stages() -> dict[str, Any]:
    """Return the stages of `dvc.lock`; none before the first run."""
    if not LOCK.is_file():
        return {}
    return read_lock(LOCK.read_bytes(), f"'{LOCK}'")
