"""The model registry: the distilled student as a version of `promptkd-<data set>`.

A version holds the student's bundle (see `predictor.write_bundle`) and the code in `serving.py`;
weights are safetensors, nothing is pickled. Its metrics are tags, and metrics of its run.
"""

from __future__ import annotations

import base64
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pd_core import predictor, provenance, tracking
from pd_core.errors import PdError
from pd_core.masking import masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

_SCRIPT = Path(__file__).parent.with_name("serving.py")
_ARTIFACT = "student"  # what serving.py calls it
_REQUIREMENTS = (
    "mlflow",
    "numpy",
    "open_clip_torch",
    "pandas",
    "pillow",
    "safetensors",
    "torch",
    "torchvision",
)


@dataclass(frozen=True)
class Registered:
    """A version in the registry.

    Attributes:
        name: `promptkd-<data set>`.
        version: counts from 1.
        created: whether it was added now; False if the same weights were registered before.
        weights: hash of the bundle.
    """

    name: str
    version: int
    created: bool
    weights: str

    @property
    def uri(self) -> str:
        """The address for `mlflow.pyfunc.load_model`."""
        return f"models:/{self.name}/{self.version}"


def register(
    store: str,
    *,
    profile: str,
    dataset: str,
    student: Path,
    vectors: Path,
    metrics: Mapping[str, Mapping[str, float]],
    example: bytes,
    weights: Path | str | None = None,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
    experiment: str = "promptkd",
) -> Registered:
    """Log a student as a loadable model and register it, once per weights.

    Args:
        store: what `tracking.open_store` returned.
        profile: `quickstart` or `paper`; part of the experiment's name.
        dataset: what the student was distilled on.
        student: the `student` stage's safetensors file.
        vectors: the class vectors that it was trained on.
        metrics: who -> base, novel, hm, ... in percent.
        example: a picture file's bytes, the model's input example.
        weights: of the student's CLIP, as in the parameters; None if they ship with the package.
        tags: added to the version: seed, protocol, hashes, ...
        run_id: the run to log to, the `evaluate` stage's; by default a new one.
        experiment: first part of the experiment's name, for a new run.

    Returns:
        The version: a new one, or the one that has these weights already.

    Raises:
        MissingFile: the student or its class vectors are not there.
        PdError: MLflow refused.
    """
    with TemporaryDirectory() as folder:
        bundle = Path(folder) / _ARTIFACT
        predictor.write_bundle(bundle, student=student, vectors=vectors, weights=weights)
        digest = provenance.content_hash(bundle)
        mlflow = tracking.client(store)
        name = model_name(dataset)
        with _refusals(f"register '{name}'", store):
            if known := _find(mlflow, name, digest):
                return Registered(name, int(known.version), created=False, weights=digest)
            run_id = run_id or _new_run(
                mlflow, store, f"{experiment}-{profile}", {"profile": profile, "dataset": dataset}
            )
            numbers = {
                f"{who}.{key}": float(value)
                for who, scores in metrics.items()
                for key, value in scores.items()
            }
            _log_metrics(mlflow, run_id, numbers)
            logged = _log_model(mlflow, run_id, bundle, example)
            _make_model(mlflow, name)
            described = {**{key: f"{value:.2f}" for key, value in numbers.items()}, **(tags or {})}
            made = mlflow.create_model_version(
                name,
                logged.artifact_location,
                run_id=run_id,
                model_id=logged.model_id,
                tags={
                    **described,
                    "profile": profile,
                    "dataset": dataset,
                    "weights": digest,
                    "model_id": logged.model_id,
                },
            )
    return Registered(name, int(made.version), created=True, weights=digest)


def model_name(dataset: str) -> str:
    """Return the name that a data set's students are registered under."""
    return f"promptkd-{dataset}"


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


def _new_run(mlflow: MlflowClient, store: str, experiment: str, tags: Mapping[str, str]) -> str:
    run = mlflow.create_run(
        tracking.experiment_id(mlflow, store, experiment),
        run_name=f"register@{tags['dataset']}",
        tags={**tags, "stage": "register"},
    )
    mlflow.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def _log_metrics(mlflow: MlflowClient, run_id: str, numbers: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    now = round(time.time() * 1000)
    mlflow.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in numbers.items()])


def _log_model(mlflow: MlflowClient, run_id: str, bundle: Path, example: bytes) -> LoggedModel:
    """Log the bundle and the code as a model of a run.

    It is saved locally first, because MLflow notes the local path of code and weights in it, which
    is nobody's business and changes from machine to machine.
    """
    from mlflow.models import Model

    folder = bundle.with_name("model")
    _save(folder, bundle, example)
    experiment = mlflow.get_run(run_id).info.experiment_id
    logged = mlflow.create_logged_model(experiment, name="student", source_run_id=run_id)
    description = Model.load(str(folder))
    description.run_id, description.model_id = run_id, logged.model_id
    flavour = description.flavors["python_function"]
    flavour["model_code_path"] = _SCRIPT.name
    flavour["artifacts"][_ARTIFACT]["uri"] = _ARTIFACT
    description.save(str(folder / "MLmodel"))
    mlflow.log_model_artifacts(logged.model_id, str(folder))
    return mlflow.finalize_logged_model(logged.model_id, "READY")


def _save(folder: Path, bundle: Path, example: bytes) -> None:
    with warnings.catch_warnings():  # MLflow's own, about its own type hints
        warnings.simplefilter("ignore")
        from mlflow import pyfunc

        pyfunc.save_model(
            str(folder),
            python_model=str(_SCRIPT),
            artifacts={_ARTIFACT: str(bundle)},
            signature=_signature(),
            input_example=[base64.b64encode(example).decode()],
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
        )


def _signature() -> ModelSignature:
    """Describe input, output and parameters; the input may be text or bytes, so of any type."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    anything: Any = AnyType
    outputs: list[Any] = [
        ColSpec(Array(DataType.string), "names"),
        ColSpec(Array(DataType.double), "probabilities"),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(anything())]),
        outputs=Schema(outputs),
        params=ParamSchema([ParamSpec("top", DataType.long, 5)]),
    )


@contextmanager
def _refusals(what: str, store: str) -> Iterator[None]:
    """Turn MLflow's errors into one line."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = masked(" ".join(str(error).split()))[:300]
        raise PdError(
            f"cannot {what} in '{masked(store)}': {reason}; see that the tracking server "
            f"is up and has a registry"
        ) from None
