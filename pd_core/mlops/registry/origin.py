"""Check of a version's lineage against `dvc.lock` and the commit.

A distilled student has to be the one of `dvc.lock`, made by code and parameters of a commit. One
with changed classes comes from a version for which that is so, and from the same teacher.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pd_core.core.errors import BadArtifact, PdError
from pd_core.mlops import registry
from pd_core.mlops.registry import DISTILLED, KIND, PARENT, Version
from pd_core.pipeline import code_hash, provenance
from pd_core.pipeline.provenance import Lineage, commit_of, contents, read_yaml

LOCK, PARAMS = "dvc.lock", "params.yaml"
STAGES = ("prepare", "teacher", "class_vectors", "student")

CODE = "data/code/"
"""Folder with the hashes of the code, which a commit does not have; it has the code itself."""

_AGAIN = "`promptkd registry register`"


def faults(store: str, version: Version, *, project: Path, profile: str) -> list[str]:
    """Check a version's lineage; return one line for each fault.

    Args:
        store: the registry's.
        version: to check.
        project: folder of `dvc.lock` and `params.yaml`, in a git repository.
        profile: that these describe, `quickstart` or `paper`.
    """
    try:
        if version.tags.get(KIND, DISTILLED) != DISTILLED:
            return _of_child(store, version, project, profile)
        return list(_of_distilled(version, registry.lineage(store, version), project, profile))
    except BadArtifact as error:
        return [str(error)]


def _of_child(store: str, version: Version, project: Path, profile: str) -> list[str]:
    number = version.tags.get(PARENT, "")
    try:
        parent = registry.find(store, f"{version.name}/{number}")
    except PdError:
        return [f"its parent, version '{number}', is not in the registry"]
    if parent.number >= version.number:
        return [f"its parent, version {number}, is no older than itself"]
    lines = [
        f"its parent, version {number}: {fault}"
        for fault in faults(store, parent, project=project, profile=profile)
    ]
    path = f"data/teacher/{version.dataset}/teacher.safetensors"
    own, inherited = (registry.lineage(store, each).outs.get(path) for each in (version, parent))
    if own is None or own != inherited:
        lines.append(f"its teacher is {own}, that of its parent, version {number}, {inherited}")
    return lines


def _of_distilled(version: Version, lineage: Lineage, project: Path, profile: str) -> Iterator[str]:
    if (own := version.tags.get("profile")) != profile:
        yield f"it is of the profile '{own}', and {project} holds '{profile}'"
        return
    if lineage.git_dirty != "false":
        yield (
            f"code, {PARAMS} or dvc.yaml had changes that were not committed; commit them, "
            f"run `dvc repro` and {_AGAIN}"
        )
    stages = _stages(project, version.dataset)
    missing = [stage for stage in STAGES if stage not in stages]
    if missing:
        names = ", ".join(f"{stage}@{version.dataset}" for stage in missing)
        yield f"{project / LOCK} has no {names}; run `dvc repro`"
        return
    yield from _outputs(project, version.dataset, lineage, stages)
    commit = lineage.git_commit
    if commit_of(project, commit) is None:
        yield f"its commit {commit[:12]} is not in this repository; commit and {_AGAIN}"
        return
    yield from _code(project, commit, stages)
    yield from _params(project, commit, stages)


def _outputs(
    project: Path, name: str, lineage: Lineage, stages: Mapping[str, Any]
) -> Iterator[str]:
    """Compare the version's inputs and the test images with `dvc.lock`, and that within itself."""
    locked = {
        entry["path"]: entry.get("md5") for stage in stages.values() for entry in stage["outs"]
    }
    paths = (
        f"data/prepare/{name}",
        f"data/teacher/{name}/teacher.safetensors",
        f"data/class_vectors/{name}",
        f"data/student/{name}/student.safetensors",
    )
    outs = {path: lineage.outs.get(path, "unknown") for path in paths}
    if others := [path for path in paths if outs[path] != locked.get(path)]:
        first = others[0]
        yield (
            f"{len(others)} of the outputs that it comes from are not those of {LOCK}, as {first}: "
            f"{outs[first]} when it was registered, {locked.get(first)} now; promote a version "
            f"that was registered since, or restore {LOCK} and `dvc checkout`"
        )
    for stage, entry in stages.items():
        for dep in entry["deps"]:
            if dep["path"] in locked and dep.get("md5") != locked[dep["path"]]:
                yield f"{stage} was made with another {dep['path']} than {LOCK} has"
    if provenance.content_hash(project / paths[0]) != locked.get(paths[0]):
        yield f"{paths[0]} is not what {LOCK} has; run `dvc checkout`"


def _code(project: Path, commit: str, stages: Mapping[str, Any]) -> Iterator[str]:
    """Compare the hashes of the stages' code, weights, ... with the files of a commit.

    What git does not hold, such as downloaded weights, is left to DVC.
    """
    deps = {dep["path"]: dep.get("md5") for entry in stages.values() for dep in entry["deps"]}
    changed = [
        path
        for path, content in contents(project, commit, sorted(deps))
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != deps[path]
    ]
    changed += _rooms(project, commit, deps)
    if changed:
        yield (
            f"{len(changed)} files, as {changed[0]}, were others when the stages ran than in its "
            f"commit {commit[:12]} or the installed package; run `dvc repro`, commit and {_AGAIN}"
        )


def _rooms(project: Path, commit: str, deps: Mapping[str, Any]) -> list[str]:
    """Return the files with hashes of code other than the commit's, or the installed package's."""
    hashes = {path: md5 for path, md5 in deps.items() if path.startswith(CODE)}
    if not hashes:
        return []
    names = provenance.files_of(project, commit, code_hash.PACKAGE.name)
    package = dict(contents(project, commit, names))  # empty in a project of the user's own

    def listing(room: str) -> str:
        return code_hash.listing_of(room, package) if package else code_hash.listing(room)

    return [
        path
        for path, value in hashes.items()
        if Path(path).stem not in code_hash.ROOMS
        or code_hash.md5_of(listing(Path(path).stem)) != value
    ]


def _params(project: Path, commit: str, stages: Mapping[str, Any]) -> Iterator[str]:
    """Compare the parameters that the stages ran with and those of a commit."""
    content = dict(contents(project, commit, [PARAMS])).get(PARAMS)
    if content is None:
        yield f"its commit {commit[:12]} has no {PARAMS}"
        return
    committed = read_yaml(content, f"{commit[:12]}:{PARAMS}")
    used = {
        key: value
        for entry in stages.values()
        for key, value in entry.get("params", {}).get(PARAMS, {}).items()
    }
    changed = [key for key, value in used.items() if _lookup(committed, key) != value]
    if changed:
        yield (
            f"{', '.join(sorted(changed))} of {PARAMS} had other values when the stages ran than "
            f"in its commit {commit[:12]}; run `dvc repro`, commit and {_AGAIN}"
        )


def _stages(project: Path, dataset: str) -> dict[str, Any]:
    """Return the data set's entries of `dvc.lock`, by stage."""
    path = project / LOCK
    entries = read_yaml(path.read_bytes(), LOCK)["stages"] if path.is_file() else {}
    return {
        stage: entries[f"{stage}@{dataset}"]
        for stage in STAGES
        if entries.get(f"{stage}@{dataset}")
    }


def _lookup(values: Any, key: str) -> Any:
    """Return a nested value by its dotted key, as DVC does; None if there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values
