"""Register students: as versions of `promptkd-<data set>`, each once.

A version is a folder that MLflow loads (see `model_folder`) with the student's bundle in it. Its
metrics are tags, and metrics of its run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pd_core import bundle, provenance, tracking
from pd_core.monitoring import Reference
from pd_core.portable.student import PortableStudent
from pd_core.registry import model_folder
from pd_core.registry.card import Metrics, card
from pd_core.registry.store import FILES, model_name, refusals

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from PIL import Image

KIND = "kind"
DISTILLED = "distilled"

_ARTIFACT = "student"  # the bundle's name in the model's folder


@dataclass(frozen=True)
class Registered:
    """A version in the registry.

    Attributes:
        name: `promptkd-<data set>`.
        version: counts from 1.
        created: whether it was added now; False if the same student was registered before.
        weights: the student's hash.
    """

    name: str
    version: int
    created: bool
    weights: str

    @property
    def uri(self) -> str:
        """The address for `mlflow.pyfunc.load_model`."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Origin:
    """Where a student comes from.

    Attributes:
        profile: `quickstart` or `paper`; part of the experiment's name.
        dataset: what it was distilled on.
        metrics: who -> base, novel, hm, ... in percent.
        counts: see `samples.counts`.
        tags: of the version: seed, protocol, hashes, ...
        run_id: the run to log to, the `evaluate` stage's; None for a new one.
        experiment: first part of the experiment's name, for a new run.
        card: the model card; None to write it.
    """

    profile: str
    dataset: str
    metrics: Metrics = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    run_id: str | None = None
    experiment: str = "promptkd"
    card: str | None = None


def register(
    store: str,
    student: PortableStudent,
    origin: Origin,
    *,
    example: bytes,
    reference: Iterable[Image.Image] | Reference | None = None,
) -> Registered:
    """Log a student as a loadable model and register it, once.

    Args:
        store: what `tracking.open_store` returned.
        student: on any device.
        origin: where it comes from.
        example: a picture file's bytes, the model's input example.
        reference: pictures that it was trained on, or what it says about them, for monitoring.

    Returns:
        The version: a new one, or the one that is this student already, whose tags are brought up
        to date.

    Raises:
        PdError: MLflow refused.
    """
    name = model_name(origin.dataset)
    with TemporaryDirectory() as temporary, refusals(f"register '{name}'", store):
        folder = Path(temporary) / _ARTIFACT
        digest = bundle.write_student(folder, student, {"dataset": origin.dataset})
        mlflow = tracking.client(store)
        if known := _find(mlflow, name, digest):
            for key, value in _lineage(origin.tags).items():
                mlflow.set_model_version_tag(name, known.version, key, value)
            return Registered(name, int(known.version), created=False, weights=digest)
        if not isinstance(reference, Reference | None):
            reference = bundle.reference_of(student, reference)
        text = origin.card or card(
            name, bundle.read_info(folder), origin.metrics, origin.counts, origin.tags
        )
        bundle.complete(folder, student, card=text, reference=reference)
        numbers = _numbers(origin.metrics)
        run_id = origin.run_id or _new_run(mlflow, store, origin)
        _log_metrics(mlflow, run_id, numbers)
        logged, files = _log_model(mlflow, run_id, folder, example)
        _make_model(mlflow, name)
        tags = {
            KIND: DISTILLED,
            **{key: f"{value:.2f}" for key, value in numbers.items()},
            **origin.tags,
            "profile": origin.profile,
            "dataset": origin.dataset,
            "weights": digest,
            FILES: files,
            "model_id": logged.model_id,
        }
        made = mlflow.create_model_version(
            name,
            logged.artifact_location,
            run_id=run_id,
            model_id=logged.model_id,
            tags=tags,
            description=text,
        )
    return Registered(name, int(made.version), created=True, weights=digest)


def _lineage(tags: Mapping[str, str]) -> dict[str, str]:
    """Choose the tags that may become right later, as when the code is committed."""
    return {key: value for key, value in tags.items() if key.startswith(("git_", "out:"))}


def _numbers(metrics: Metrics) -> dict[str, float]:
    return {
        f"{who}.{key}": float(value)
        for who, scores in metrics.items()
        for key, value in scores.items()
    }


def _find(mlflow: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    found = mlflow.search_model_versions(f"name = '{name}' and tags.weights = '{digest}'")
    return min(found, key=lambda entry: int(entry.version), default=None)


def _make_model(mlflow: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        mlflow.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _new_run(mlflow: MlflowClient, store: str, origin: Origin) -> str:
    run = mlflow.create_run(
        tracking.experiment_id(mlflow, store, f"{origin.experiment}-{origin.profile}"),
        run_name=f"register@{origin.dataset}",
        tags={"profile": origin.profile, "dataset": origin.dataset, "stage": "register"},
    )
    mlflow.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def _log_metrics(mlflow: MlflowClient, run_id: str, numbers: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    now = round(time.time() * 1000)
    mlflow.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in numbers.items()])


def _log_model(
    mlflow: MlflowClient, run_id: str, student: Path, example: bytes
) -> tuple[LoggedModel, str]:
    """Log the bundle and the code as a model of a run; return it with the hash of its files.

    It is saved locally first, because MLflow notes the local path of code and weights in it, which
    is nobody's business and changes from machine to machine.
    """
    from mlflow.models import Model

    folder = student.with_name("model")
    model_folder.save(folder, student, example)
    experiment = mlflow.get_run(run_id).info.experiment_id
    logged = mlflow.create_logged_model(experiment, name="student", source_run_id=run_id)
    description = Model.load(str(folder))
    description.run_id, description.model_id = run_id, logged.model_id
    description.save(str(folder / "MLmodel"))
    mlflow.log_model_artifacts(logged.model_id, str(folder))
    return mlflow.finalize_logged_model(logged.model_id, "READY"), provenance.content_hash(folder)
