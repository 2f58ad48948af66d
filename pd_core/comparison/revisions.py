"""A git revision as one side: its `params.yaml`, its `dvc.lock`, and DVC's cache by hash."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pd_core import reproduce
from pd_core.artifacts import read_json
from pd_core.comparison.predictions import FILE, Predictions
from pd_core.comparison.sides import Measured, Side, scores_of
from pd_core.errors import BadArtifact, BadData, MissingFile
from pd_core.provenance import content_hash
from pd_core.repository import contents, read_lock, read_yaml
from pd_core.results import BASELINE
from pd_core.tracking.record import flat

PARAMS, LOCK = "params.yaml", "dvc.lock"

_METRICS = re.compile(r"data/evaluate/(?P<name>[^/]+)/metrics\.json")
_BASELINES = re.compile(rf"data/evaluate/{BASELINE}/(?P<name>[^/]+)\.json")
_LACKING = (
    "the file is not in DVC's cache; get it with `dvc pull`, of an earlier revision with "
    "`dvc fetch --all-commits`"
)

Find = Callable[[str, str], Path]  # a file by its path and hash


def side(given: str, commit: str, project: Path) -> Side:
    """Read a revision.

    Args:
        given: the name that the user gave.
        commit: what it names.
        project: folder of `params.yaml` and `dvc.lock`, in a git repository and a DVC project.

    Raises:
        MissingFile: the revision has no such files, or DVC's cache has none of its metrics.
        BadData: they are not what they should be.
    """
    files = dict(contents(project, commit, [PARAMS, LOCK]))
    for name in (PARAMS, LOCK):
        if name not in files:
            raise MissingFile(
                f"revision '{given}' has no {name} in this folder; give one that has, or go to "
                f"the folder of the pipeline"
            )
    place = f"{commit[:7]}:"
    params = params_by_dataset(read_yaml(files[PARAMS], place + PARAMS), place + PARAMS)
    hashes = _hashes(files[LOCK], place + LOCK)
    find = _finder(project)
    evaluated = {
        name: _measured(name, paths, params, hashes, find)
        for name, paths in _metrics_files(hashes).items()
    }
    if evaluated and not any(one.scores for one in evaluated.values()):
        reason = next(iter(evaluated.values())).absent
        raise MissingFile(f"no metrics of revision '{given}' can be read: {reason}")
    others = {name: Measured(name, own, absent="not evaluated") for name, own in params.items()}
    return Side(given, "revision", commit, others | evaluated)


def params_by_dataset(content: Any, name: str) -> dict[str, dict[str, Any]]:
    """Return for each data set the parameters in force, overrides included, by dotted name.

    Args:
        content: of `params.yaml`.
        name: of the file, for the error.

    Raises:
        BadData: it has no data sets.
    """
    datasets = content.get("datasets") if isinstance(content, Mapping) else None
    if not isinstance(datasets, Mapping):
        raise BadData(f"{name} has no `datasets:`; restore it from git")
    common = {block: value for block, value in content.items() if block != "datasets"}
    return {str(key): flat(_overridden(common, row), ".") for key, row in datasets.items()}


def _overridden(common: Mapping[str, Any], row: Any) -> dict[str, Any]:
    own = row if isinstance(row, Mapping) else {}
    changed = {
        block: {**(common.get(block) or {}), **values}
        for block, values in own.items()
        if isinstance(values, Mapping) and isinstance(common.get(block) or {}, Mapping)
    }
    return {**common, **changed}


def dataset_of(name: str, known: Iterable[str]) -> str:
    """Return the data set of a folder of results: `greek` for `greek-2`, its second seed."""
    fitting = [one for one in known if name == one or name.startswith(f"{one}-")]
    return max(fitting, key=len, default=name)


def _hashes(lock: bytes, name: str) -> dict[str, str]:
    """Return the hashes of all files and folders that stages read or wrote, by path."""
    try:
        return {
            entry["path"]: str(entry["md5"])
            for stage in read_lock(lock, name).values()
            for entry in (*stage.get("deps", []), *stage.get("outs", []))
            if "md5" in entry
        }
    except (AttributeError, KeyError, TypeError):
        raise BadData(f"{name} is no lock file of DVC; restore it from git") from None


def _metrics_files(hashes: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the paths of each data set's metrics, the baseline's last."""
    found: dict[str, list[str]] = {}
    for pattern in (_METRICS, _BASELINES):
        for path in hashes:
            if match := pattern.fullmatch(path):
                found.setdefault(match["name"], []).append(path)
    return found


def _finder(project: Path) -> Find:
    """Return what finds a file by its path and hash: in the project, or in DVC's cache."""
    from dvc.repo import Repo

    with Repo(str(reproduce.root(project))) as repo:
        cache = repo.cache.local

    def find(path: str, digest: str) -> Path:
        for place in (project / path, Path(cache.oid_to_path(digest))):
            if place.is_file() and content_hash(place) == digest:
                return place
        raise MissingFile(_LACKING)

    return find


def _measured(
    name: str,
    paths: Iterable[str],
    params: Mapping[str, Mapping[str, Any]],
    hashes: Mapping[str, str],
    find: Find,
) -> Measured:
    dataset = dataset_of(name, params)
    own = params.get(dataset, {})
    fingerprint = re.compile(rf"(?:.*/)?fingerprints/{re.escape(dataset)}\.json")
    pictures = next((hashes[path] for path in hashes if fingerprint.fullmatch(path)), None)
    file = f"data/evaluate/{name}/{FILE}"

    def predictions() -> Predictions:
        if file not in hashes:
            raise MissingFile(f"{LOCK} has no predictions")
        return Predictions.read(find(file, hashes[file]))

    scores: dict[str, Any] = {}
    try:
        for path in paths:
            scores |= scores_of(read_json(find(path, hashes[path]), what="metrics"))
    except (MissingFile, BadArtifact) as error:
        return Measured(dataset, own, absent=str(error))
    return Measured(dataset, own, scores, predictions, pictures=pictures)
