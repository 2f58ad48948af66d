"""Register a job's student as a version of `promptkd-<data set>`, each once."""

from __future__ import annotations

import base64
import io
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from PIL import Image

from pd_core.core.artifacts import read_json
from pd_core.core.errors import MissingFile
from pd_core.evaluation import cross_validate
from pd_core.mlops import bundle, predictor, tracking
from pd_core.mlops.drift import Reference
from pd_core.mlops.registry.card import Metrics, card
from pd_core.mlops.registry.store import FILES, model_name, refusals
from pd_core.models.portable.student import PortableStudent
from pd_core.pipeline import provenance
from pd_core.pipeline.stages.layout import Job

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from PIL import Image

_SCRIPT = Path(__file__).with_name("student_model.py")
_ARTIFACT = "student"  # what the script calls it
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "torch")


def save(folder: Path, bundle: Path, example: bytes) -> None:
    """Make the model's folder.

    Args:
        folder: to make; what MLflow notes of this machine's paths is taken out again.
        bundle: see `pd_core.mlops.bundle`.
        example: a picture file's bytes, the model's input example.
    """
    with warnings.catch_warnings():  # MLflow's own, about its own type hints
        warnings.simplefilter("ignore")
        from mlflow import pyfunc
        from mlflow.models import Model

        pyfunc.save_model(
            str(folder),
            python_model=str(_SCRIPT),
            artifacts={_ARTIFACT: str(bundle)},
            signature=signature(),
            input_example=[base64.b64encode(example).decode()],
            pip_requirements=requirements(),
        )
    description = Model.load(str(folder))
    flavour = description.flavors["python_function"]
    flavour["model_code_path"] = _SCRIPT.name
    flavour["artifacts"][_ARTIFACT]["uri"] = _ARTIFACT
    description.save(str(folder / "MLmodel"))


def requirements() -> list[str]:
    """Pin what the model needs to run, without the build that a wheel's version may name."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in _REQUIREMENTS]


def signature() -> ModelSignature:
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


KIND = "kind"
DISTILLED = "distilled"


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
    save(folder, student, example)
    experiment = mlflow.get_run(run_id).info.experiment_id
    logged = mlflow.create_logged_model(experiment, name="student", source_run_id=run_id)
    description = Model.load(str(folder))
    description.run_id, description.model_id = run_id, logged.model_id
    description.save(str(folder / "MLmodel"))
    mlflow.log_model_artifacts(logged.model_id, str(folder))
    return mlflow.finalize_logged_model(logged.model_id, "READY"), provenance.content_hash(folder)


OnNote = Callable[[str], None]


def register_student(
    store: str,
    job: Job,
    *,
    profile: str,
    experiment: str,
    run_id: str | None = None,
    on_note: OnNote | None = None,
) -> Registered:
    """Register the student that a job's stages made, once.

    Args:
        store: what `tracking.open_store` returned.
        job: whose stages have run, or whose outputs were pulled.
        profile: `quickstart` or `paper`.
        experiment: first part of the experiment's name.
        run_id: the run to log to, the `evaluate` stage's; None for a new one.
        on_note: called with a line about what could not be had.

    Raises:
        MissingFile: an output is not there.
        BadArtifact: the outputs do not fit together.
        PdError: MLflow refused.
    """
    metrics = _metrics(job)
    student = predictor.stand_alone(
        job.student / "student.safetensors",
        job.vectors / "class_vectors.safetensors",
        job.params.student.weights,
        device=job.device,
        remedy=f"run `dvc repro student@{job.student.name}`",
    )
    origin = Origin(
        profile=profile,
        dataset=job.student.name,
        metrics=metrics,
        counts=bundle.counts(job.prepared),
        tags=_tags(job, metrics),
        run_id=run_id,
        experiment=experiment,
    )
    example, reference = _pictures(job, student.image_size, on_note)
    return register(store, student, origin, example=example, reference=reference)


def _metrics(job: Job) -> dict[str, Any]:
    """Read who reached what; remarks among the numbers are left out."""
    content = read_json(
        job.evaluation / "metrics.json",
        what="evaluation",
        remedy=f"run `dvc repro evaluate@{job.evaluation.name}`",
    )
    return {who: scores for who, scores in content.items() if isinstance(scores, Mapping)}


def _tags(job: Job, metrics: Mapping[str, Any]) -> dict[str, str]:
    outputs = [
        job.prepared,
        job.teacher / "teacher.safetensors",
        job.vectors,
        job.student / "student.safetensors",
    ]
    return {
        "seed": str(job.seed),
        "protocol": job.params.prepare.protocol,
        "selection": job.params.student.selection,
        **({} if "student" in metrics else cross_validate.UNKNOWN),
        **provenance.hash_tags("out", outputs, Path()),
        **provenance.commit_tags(Path()),
    }


def _pictures(
    job: Job, size: int, on_note: OnNote | None
) -> tuple[bytes, Iterable[Image.Image] | None]:
    """Return the input example, and pictures that the student was trained on.

    Where they are not, as on a machine that only pulled results, the example is plain grey.
    """
    try:
        example = bundle.example_picture(job.prepared, data_root=job.data_root)
        return example, bundle.training_pictures(job.prepared, data_root=job.data_root)
    except MissingFile as error:
        if on_note is not None:
            on_note(f"'{job.student.name}' is registered without a reference for drift: {error}")
        file = io.BytesIO()
        Image.new("RGB", (size, size), "grey").save(file, format="PNG")
        return file.getvalue(), None
