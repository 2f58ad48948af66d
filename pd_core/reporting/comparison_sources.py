"""Sides of a comparison, read from git revisions, MLflow runs and model versions."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pd_core.core.artifacts import read_json
from pd_core.core.errors import (
    BadArtifact,
    BadData,
    BadParams,
    MissingFile,
    UnknownName,
)
from pd_core.core.options import BASELINE, TITLES
from pd_core.mlops import registry, tracking
from pd_core.mlops.registry import Version, refusals
from pd_core.mlops.tracking.recorder import flat
from pd_core.pipeline import dvc
from pd_core.pipeline.provenance import commit_of, content_hash, contents, git, read_lock, read_yaml
from pd_core.reporting.comparison import LOCK, PARAMS, PREDICTIONS, WORKSPACE, Measured, Side
from pd_core.reporting.predictions import Predictions
from pd_core.reporting.results import ESTIMATES

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_RUN, _MODEL = "runs:/", "models:/"
_PARAMETERS = {
    "seed": "run.seed",
    "protocol": "prepare.protocol",
    "selection": "student.selection",
}
"""Tags of a version that are parameters."""

_METRICS = re.compile(r"data/evaluate/(?P<name>[^/]+)/metrics\.json")
_ESTIMATES = re.compile(r"data/evaluate/cross_validate/(?P<name>[^/]+)\.json")
_BASELINES = re.compile(rf"data/evaluate/{BASELINE}/(?P<name>[^/]+)\.json")
_LACKING = (
    "the file is not in DVC's cache; get it with `dvc pull`, of an earlier revision with "
    "`dvc fetch --all-commits`, or run that revision"
)

Find = Callable[[str, str], Path]  # a file by its path and hash
Read = Callable[[list[str]], Mapping[str, bytes]]  # contents by path, of files that are there


def find_side(given: str, project: Path, open_store: Callable[[], str]) -> Side:
    """Read the side of a name; git revisions come first.

    Args:
        given: a git revision; the name of an experiment of DVC; `workspace`; the id of an MLflow
            run, with `runs:/` in front or not; a model version such as `greek/3` or
            `greek@champion`, with `models:/` in front or not.
        project: folder of the pipeline.
        open_store: opens MLflow's store, which git revisions need not have.

    Raises:
        UnknownName: it is none of them.
        PdError: it cannot be read.
    """
    if given == WORKSPACE:
        return _read_side(given, WORKSPACE, partial(_workspace, project), project)
    if not given.startswith((_RUN, _MODEL)) and (commit := _commit_of(project, given)):
        return _read_revision(given, commit, project)
    store = open_store()
    run_id = given.removeprefix(_RUN)
    if not given.startswith(_MODEL) and (run := _find_run(store, run_id)):
        return _read_run(given, store, run, project)
    try:
        version = registry.find(store, given)
    except (BadParams, UnknownName) as error:
        raise UnknownName(
            f"'{given}' is no git revision, no MLflow run and no model version ({error})"
        ) from None
    return _read_version(given, store, version, project)


def _read_revision(given: str, commit: str, project: Path) -> Side:
    """Read a revision; its results are in the project, in DVC's cache, or in git's report."""
    return _read_side(given, commit, lambda paths: dict(contents(project, commit, paths)), project)


def _workspace(project: Path, paths: list[str]) -> dict[str, bytes]:
    return {path: (project / path).read_bytes() for path in paths if (project / path).is_file()}


def _commit_of(project: Path, given: str) -> str | None:
    """Return the commit of a git revision or of an experiment of DVC; None if it is neither."""
    if commit := commit_of(project, given):
        return commit
    listed = git(project, "for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{given}")
    return (listed or b"").decode().partition("\n")[0] or None


def _read_side(given: str, name: str, read: Read, project: Path) -> Side:
    """Read a state's parameters, and its results as far as they are at hand."""
    files = read([PARAMS, LOCK])
    if PARAMS not in files:
        raise MissingFile(
            f"revision '{given}' has no {PARAMS} in this folder; give one that has, or go to the "
            f"folder of the pipeline"
        )
    place = f"{name[:7]}:"
    content = read_yaml(files[PARAMS], place + PARAMS)
    params = _params_by_dataset(content, place + PARAMS)
    hashes = _hashes(files[LOCK], place + LOCK) if LOCK in files else {}
    find = _finder(project)
    evaluated = {
        name: _measured(name, paths, params, hashes, find)
        for name, paths in _metrics_files(hashes).items()
    }
    if not all(part.scores for part in evaluated.values()):
        evaluated = _with_reported(evaluated, content, read)
    others = {name: Measured(name, own, absent="not evaluated") for name, own in params.items()}
    return Side(given, "revision", name, others | evaluated)


def _with_reported(
    evaluated: Mapping[str, Measured], content: Mapping[str, Any], read: Read
) -> dict[str, Measured]:
    """Add metrics of the report, which git has, to those data sets whose own are not at hand."""
    path = f"reports/{(content.get('profile') or {}).get('name')}/summary.json"
    try:
        rows = json.loads(read([path]).get(path, b"{}")).get("datasets", {})
    except ValueError:
        rows = {}
    return {
        name: part
        if part.scores or name not in rows
        else replace(part, scores=scores_of(rows[name]), source=path)
        for name, part in evaluated.items()
    }


def _params_by_dataset(content: Any, name: str) -> dict[str, dict[str, Any]]:
    """Return for each data set the parameters in force, overrides included, by dotted name."""
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


def _dataset_of(name: str, datasets: Iterable[str]) -> str:
    """Return the data set of a folder of results: `greek` for `greek-2`, its second seed."""
    fitting = (dataset for dataset in datasets if name == dataset or name.startswith(f"{dataset}-"))
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
    files: dict[str, list[str]] = {}
    for pattern in (_METRICS, _ESTIMATES, _BASELINES):
        for path in hashes:
            if match := pattern.fullmatch(path):
                files.setdefault(match["name"], []).append(path)
    return files


def _finder(project: Path) -> Find:
    """Return a function from path and hash to a file of the project or of DVC's cache."""
    from dvc.repo import Repo

    with Repo(str(dvc.root(project))) as repo:
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
    dataset = _dataset_of(name, params)
    own = params.get(dataset, {})
    fingerprint = re.compile(rf"(?:.*/)?fingerprints/{re.escape(dataset)}\.json")
    pictures = next((hashes[path] for path in hashes if fingerprint.fullmatch(path)), None)
    file = f"data/evaluate/{name}/{PREDICTIONS}"

    def predictions() -> Predictions:
        if file not in hashes:
            raise MissingFile(f"{LOCK} has no predictions")
        return Predictions.read(find(file, hashes[file]))

    scores: dict[str, Any] = {}
    try:
        for path in paths:
            scores |= scores_of(read_json(find(path, hashes[path]), what="metrics"))
    except (MissingFile, BadArtifact) as error:
        return Measured(dataset, own, {}, predictions, absent=str(error), pictures=pictures)
    return Measured(dataset, own, scores, predictions, pictures=pictures)


def _find_run(store: str, run_id: str) -> Run | None:
    with refusals(f"look for run '{run_id}'", store):
        return tracking.find(tracking.client(store), run_id)


def _read_run(given: str, store: str, run: Run, project: Path) -> Side:
    """Read the run of a stage, a data set or a benchmark; the project may hold its predictions."""
    mlflow = tracking.client(store)
    with refusals(f"read run '{run.info.run_id}'", store):
        stages = [run] if "stage" in run.data.tags else tracking.below(mlflow, run)
        by_dataset: dict[str, list[Run]] = {}
        for stage in stages:
            if dataset := stage.data.tags.get("dataset"):
                by_dataset.setdefault(dataset, []).append(stage)
        measured = {
            dataset: _measured_by(mlflow, store, runs, project)
            for dataset, runs in by_dataset.items()
        }
    return Side(given, "run", run.info.run_id, measured)


def _read_version(given: str, store: str, version: Version, project: Path) -> Side:
    """Read a model version: its run, and its tags."""
    name = f"{version.name}/{version.number}"
    run = _find_run(store, version.run_id) if version.run_id else None
    logged = Measured(version.dataset, {})
    if run is not None and run.data.tags.get("dataset") == version.dataset:
        logged = _read_run(given, store, run, project).measured[version.dataset]
    tagged = {key: value for key, value in version.tags.items() if key in _PARAMETERS}
    params = {**logged.params, **{_PARAMETERS[key]: _value(tagged[key]) for key in tagged}}
    numbers = {key: _value(text) for key, text in version.tags.items()}
    measured = Measured(
        version.dataset.removesuffix(f"-{version.tags.get('seed')}"),
        params,
        logged.scores or scores_of(_nested(numbers)),
        logged.predictions,
        absent="nothing was measured of it",
    )
    return Side(given, "version", name, {version.dataset: measured})


def _measured_by(mlflow: MlflowClient, store: str, runs: list[Run], project: Path) -> Measured:
    """Merge the records of a data set's stages, the latest run last."""
    params: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    for run in runs:
        for maker in (*tracking.makers(mlflow, run), run):
            params |= {key: _value(text) for key, text in maker.data.params.items()}
        scores |= scores_of(_nested(run.data.metrics))
    evaluation = next((run for run in runs if run.data.tags["stage"] == "evaluate"), None)

    def predictions() -> Predictions:
        if evaluation is None:
            raise MissingFile("no run of the stage `evaluate`")
        return _run_predictions(mlflow, store, evaluation, project)

    tags = runs[-1].data.tags
    dataset = tags["dataset"].removesuffix(f"-{tags.get('seed')}")
    return Measured(dataset, params, scores, predictions, absent="nothing was measured in it")


def _run_predictions(mlflow: MlflowClient, store: str, run: Run, project: Path) -> Predictions:
    """Read a run's predictions: its artifact, or the project's file, if it is the same."""
    run_id = run.info.run_id
    with refusals(f"read the files of run '{run_id}'", store), TemporaryDirectory() as folder:
        if any(file.path == PREDICTIONS for file in mlflow.list_artifacts(run_id)):
            return Predictions.read(Path(mlflow.download_artifacts(run_id, PREDICTIONS, folder)))
    place = f"data/evaluate/{run.data.tags['dataset']}"
    if tracking.lineage_of(mlflow, run).outs.get(place) != content_hash(project / place):
        raise MissingFile(f"run {run_id} keeps no predictions, and those in '{place}' are others")
    return Predictions.read(project / place / PREDICTIONS)


def _value(text: str) -> Any:
    """Return the value of a parameter that MLflow made a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def scores_of(content: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the accuracies by model and metric of a metrics file or a run's metrics.

    Args:
        content: model -> metric -> percent among others; and estimates, metric -> model.
    """
    rows = [
        (model, metric, value)
        for model, row in content.items()
        if model in TITLES and isinstance(row, Mapping)
        for metric, value in row.items()
    ]
    for metric in ESTIMATES:
        if isinstance(row := content.get(metric), Mapping):
            rows += [(model, metric, value) for model, value in row.items()]
    scores: dict[str, dict[str, float]] = {}
    for model, metric, value in rows:
        if isinstance(value, Real) and not isinstance(value, bool):
            scores.setdefault(model, {})[metric] = float(value)
    return scores


def _nested(metrics: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Return metrics such as `student/hm` or `student.hm` as `student` -> `hm`, without others."""
    nested: dict[str, dict[str, object]] = {}
    for name, value in metrics.items():
        model, *metric = re.split("[/.]", name, maxsplit=1)
        if metric:
            nested.setdefault(model, {})[metric[0]] = value
    return nested
