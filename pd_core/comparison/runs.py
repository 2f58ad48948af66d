"""An MLflow run, or a model version, as one side.

A stage's run brings the parameters of the runs that made what it read; a data set's or benchmark's
run all that is below it.
"""

from __future__ import annotations

import ast
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pd_core import tracking
from pd_core.comparison.predictions import FILE, Predictions
from pd_core.comparison.sides import Measured, Side, nested, scores_of
from pd_core.errors import MissingFile
from pd_core.provenance import content_hash
from pd_core.registry.store import Version, refusals
from pd_core.tracking import lookup

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_PARAMETERS = {
    "seed": "run.seed",
    "protocol": "prepare.protocol",
    "selection": "student.selection",
}
"""Tags of a version that are parameters."""


def find_run(store: str, run_id: str) -> Run | None:
    """Return the run of an id; None if there is none.

    Raises:
        PdError: MLflow refused.
    """
    with refusals(f"look for run '{run_id}'", store):
        return lookup.find(tracking.client(store), run_id)


def side_of_run(given: str, store: str, run: Run, project: Path) -> Side:
    """Read a run.

    Args:
        given: the name that the user gave.
        store: what `tracking.open_store` returned.
        run: of a stage, a data set or a benchmark.
        project: folder of the pipeline, which may hold the run's predictions.

    Raises:
        PdError: MLflow refused.
    """
    mlflow = tracking.client(store)
    with refusals(f"read run '{run.info.run_id}'", store):
        stages = [run] if "stage" in run.data.tags else lookup.below(mlflow, run)
        by_dataset: dict[str, list[Run]] = {}
        for stage in stages:
            if dataset := stage.data.tags.get("dataset"):
                by_dataset.setdefault(dataset, []).append(stage)
        measured = {
            dataset: _measured(mlflow, store, runs, project) for dataset, runs in by_dataset.items()
        }
    return Side(given, "run", run.info.run_id, measured)


def side_of_version(given: str, store: str, version: Version, project: Path) -> Side:
    """Read a model version.

    Args:
        given: the name that the user gave.
        store: what `tracking.open_store` returned.
        version: of a model.
        project: folder of the pipeline, which may hold the version's predictions.

    Raises:
        PdError: MLflow refused.
    """
    name = f"{version.name}/{version.number}"
    run = find_run(store, version.run_id) if version.run_id else None
    known = Measured(version.dataset, {})
    if run is not None and run.data.tags.get("dataset") == version.dataset:
        known = side_of_run(given, store, run, project).measured[version.dataset]
    tagged = {key: value for key, value in version.tags.items() if key in _PARAMETERS}
    params = {**known.params, **{_PARAMETERS[key]: _value(tagged[key]) for key in tagged}}
    numbers = {key: _number(text) for key, text in version.tags.items()}
    measured = Measured(
        version.dataset.removesuffix(f"-{version.tags.get('seed')}"),
        params,
        known.scores or scores_of(nested(numbers, ".")),
        known.predictions,
        absent="nothing was measured of it",
    )
    return Side(given, "version", name, {version.dataset: measured})


def _measured(mlflow: MlflowClient, store: str, runs: list[Run], project: Path) -> Measured:
    """Put together what the runs of a data set's stages know, the latest's word being the last."""
    params: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    for run in runs:
        for one in (*lookup.makers(mlflow, run), run):
            params |= {key: _value(text) for key, text in one.data.params.items()}
        scores |= _scores(run)
    evaluation = next((run for run in runs if run.data.tags["stage"] == "evaluate"), None)

    def predictions() -> Predictions:
        if evaluation is None:
            raise MissingFile("no run of the stage `evaluate`")
        return _predictions(mlflow, store, evaluation, project)

    tags = runs[-1].data.tags
    dataset = tags["dataset"].removesuffix(f"-{tags.get('seed')}")
    return Measured(dataset, params, scores, predictions, absent="nothing was measured in it")


def _scores(run: Run) -> dict[str, dict[str, float]]:
    """Return what a stage measured, or what is noted where a student was registered without one."""
    found = (scores_of(nested(run.data.metrics, separator)) for separator in "/.")
    return next(filter(None, found), {})


def _predictions(mlflow: MlflowClient, store: str, run: Run, project: Path) -> Predictions:
    """Read a run's predictions: those kept with it, or the project's, if they are the same."""
    run_id, tags = run.info.run_id, run.data.tags
    with refusals(f"read the files of run '{run_id}'", store), TemporaryDirectory() as folder:
        if any(file.path == FILE for file in mlflow.list_artifacts(run_id)):
            return Predictions.read(Path(mlflow.download_artifacts(run_id, FILE, folder)))
    place = f"data/evaluate/{tags['dataset']}"
    if tags.get(f"out:{place}") != content_hash(project / place):
        raise MissingFile(f"run {run_id} keeps no predictions, and those in '{place}' are others")
    return Predictions.read(project / place / FILE)


def _value(text: str) -> Any:
    """Return what a parameter was before MLflow made it a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text
