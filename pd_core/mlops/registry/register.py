"""Register a job's student as a version of `promptkd-<data set>`, each once."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from PIL import Image

from pd_core.core.artifacts import read_json
from pd_core.core.errors import MissingFile, PdError
from pd_core.core.scores import is_worse
from pd_core.data.loading.prepared import read_prepared, read_unlabelled
from pd_core.evaluation import evaluate
from pd_core.evaluation.class_metrics import ClassMetrics, of_evaluation
from pd_core.mlops import bundle, predictor, registry, tracking
from pd_core.mlops.bundle import Metrics
from pd_core.mlops.drift import Reference
from pd_core.mlops.registry import (
    DISTILLED,
    FILES,
    INPUT,
    KIND,
    Version,
    ignoring,
    model_name,
    refusals,
)
from pd_core.mlops.registry.gate import check_files
from pd_core.mlops.registry.images import example_image, grey_image, training_images
from pd_core.mlops.tracking import COMMIT, LINEAGE, milliseconds, write_lineage
from pd_core.mlops.tracking.nesting import source_tags
from pd_core.models.portable.student import DESCRIPTION, PortableStudent
from pd_core.pipeline import provenance
from pd_core.pipeline.provenance import Lineage
from pd_core.pipeline.stages.jobs import Job

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import ModelSignature

_SCRIPT = Path(__file__).with_name("student_model.py")
_ARTIFACT = "student"  # what the script calls it
_MODEL_TAGS = ("mlflow.user", "mlflow.source.name", "mlflow.source.type", COMMIT)
_NEEDED = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "torch")
_RUNTIME = {"onnx": "onnxruntime"}  # needed beside them, by format of an exported student


@dataclass(frozen=True)
class Registered:
    """A version in the registry; not `created` if the same student was registered before."""

    name: str
    version: int
    created: bool
    weights: str  # hash of the student


@dataclass(frozen=True)
class Origin:
    """Data, code and results that a student comes from.

    Attributes:
        profile: `quickstart` or `paper`; part of the experiment's name.
        dataset: the data set that it was distilled on.
        lineage: commit and hashes.
        metrics: accuracies in percent.
        classes: metrics over all classes, by classifier.
        counts: of classes and images, see `_counts`.
        tags: of the version: seed, protocol, ...
        run_id: the run to log to, the `evaluate` stage's; None for a new one.
        experiment: first part of the experiment's name, for a new run.
        card: the model card; None to write it.
    """

    profile: str
    dataset: str
    lineage: Lineage = field(default_factory=Lineage)
    metrics: Metrics = field(default_factory=dict)
    classes: Mapping[str, ClassMetrics] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    run_id: str | None = None
    experiment: str = "promptkd"
    card: str | None = None

    def version_tags(self) -> dict[str, str]:
        """Return the tags of a version; its headline accuracy is one of them."""
        student = self.metrics.get("student", {})
        key = next((key for key in ("hm", "all") if key in student), None)
        accuracy = {f"student/{key}": f"{student[key]:.2f}"} if key else {}
        accuracy |= self._class_tags()
        if is_worse(self.metrics):
            accuracy["caution"] = "worse than the zero-shot student"
        return {KIND: DISTILLED, **accuracy, "profile": self.profile, **self.tags}

    def _class_tags(self) -> dict[str, str]:
        """Return the student's metrics, with intervals, where the classes are unequal."""
        student = self.classes.get("student")
        if student is None or not student.unequal:
            return {}
        shown = {f"student/{metric}": str(value) for metric, value in student.metrics.items()}
        return {**shown, "largest_class": f"{student.largest_class:.1f}"}

    def card_tags(self) -> dict[str, str]:
        """Return the entries of the model card's tables."""
        hashes = {f"out:{path}": value for path, value in self.lineage.outs.items()}
        return {**self.version_tags(), "git_commit": self.lineage.git_commit, **hashes}


def look_up_packages() -> None:
    """Let MLflow look up the modules of all installed packages, which it does once a process.

    It does so for the first model that it saves, to compare pinned with installed versions.
    """
    from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

    warn_dependency_requirement_mismatches([_NEEDED[0]])


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
        store: the registry's.
        student: on any device.
        origin: its data, code and results.
        example: an image file's bytes, the model's input example.
        reference: images that it was trained on, or its predictions for them, for monitoring.

    Returns:
        The version: a new one, or the one that is this student already, with the files that were
        registered, whose lineage is brought up to date.
    """
    name = model_name(origin.dataset)
    with TemporaryDirectory() as temporary, refusals(f"register '{name}'", store):
        folder = Path(temporary) / _ARTIFACT
        digest = bundle.write_student(folder, student, {"dataset": origin.dataset})
        mlflow = tracking.client(store)
        entries = mlflow.search_model_versions(f"name = '{name}' and tags.weights = '{digest}'")
        if match := _intact(store, name, sorted(int(entry.version) for entry in entries)):
            write_lineage(mlflow, str(match.run_id), origin.lineage, name)
            registry.set_tags(store, match, {LINEAGE: origin.lineage.digest()})
            return Registered(name, match.number, created=False, weights=digest)
        if not isinstance(reference, Reference | None):
            reference = bundle.reference_of(student, reference)
        info = read_json(folder / DESCRIPTION)
        text = origin.card or bundle.card(
            name, info, origin.metrics, origin.counts, origin.card_tags(), origin.classes
        )
        bundle.complete(folder, student, card=text, reference=reference)
        run_id = origin.run_id or _new_run(mlflow, store, origin)
        write_lineage(mlflow, run_id, origin.lineage, name)
        logged, files = _log_model(mlflow, run_id, folder, example, origin, _packages(student))
        tags = {
            **origin.version_tags(),
            "dataset": origin.dataset,
            "weights": digest,
            FILES: files,
            LINEAGE: origin.lineage.digest(),
        }
        number = _new_version(mlflow, name, logged, tags, text)
    return Registered(name, number, created=True, weights=digest)


def _intact(store: str, name: str, numbers: Sequence[int]) -> Version | None:
    """Return the first of some versions that has the files that were registered."""
    for number in numbers:
        version = registry.find(store, f"{name}/{number}")
        with suppress(PdError):  # its files are not there
            if check_files(store, version).passed:
                return version
    return None


def _new_version(
    mlflow: MlflowClient, name: str, logged: LoggedModel, tags: Mapping[str, str], text: str
) -> int:
    with ignoring("RESOURCE_ALREADY_EXISTS"):
        mlflow.create_registered_model(name)
    version = mlflow.create_model_version(
        name,
        logged.artifact_location,
        run_id=logged.source_run_id,
        model_id=logged.model_id,
        tags=dict(tags),
        description=text,
    )
    # MLflow's page of the logged model links the version by this tag.
    link = json.dumps([{"name": name, "version": str(version.version)}])
    mlflow.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": link})
    return int(version.version)


def _new_run(mlflow: MlflowClient, store: str, origin: Origin) -> str:
    run = mlflow.create_run(
        tracking.experiment_id(mlflow, store, f"{origin.experiment}-{origin.profile}"),
        run_name=f"register@{origin.dataset}",
        tags={
            "dataset": origin.dataset,
            "stage": "register",
            **source_tags("promptkd registry register", origin.lineage.git_commit),
        },
    )
    mlflow.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def _packages(student: PortableStudent) -> list[str]:
    """Return the packages that a student needs."""
    export = student.info.get("export", {})
    return [*_NEEDED, *([_RUNTIME[export["format"]]] if export else [])]


def _log_model(
    mlflow: MlflowClient,
    run_id: str,
    student: Path,
    example: bytes,
    origin: Origin,
    packages: Sequence[str],
) -> tuple[LoggedModel, str]:
    """Log the bundle and the code as a model of a run; return it with the hash of its files.

    It is saved locally first, because MLflow writes the local path of code and weights into it,
    which changes from machine to machine.
    """
    with warnings.catch_warnings():  # MLflow's own, about its own type hints
        warnings.simplefilter("ignore")
        from mlflow import pyfunc
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        folder = student.with_name("model")
        pyfunc.save_model(
            str(folder),
            python_model=str(_SCRIPT),
            artifacts={_ARTIFACT: str(student)},
            signature=signature(),
            input_example={INPUT: [base64.b64encode(example).decode()]},
            # Pinned without the build that a wheel's version may name.
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in packages],
        )
    run = mlflow.get_run(run_id)
    logged = mlflow.create_logged_model(
        run.info.experiment_id,
        name=origin.dataset,
        source_run_id=run_id,
        tags={key: run.data.tags[key] for key in _MODEL_TAGS if key in run.data.tags},
        params=dict(origin.tags),
        model_type="distilled CLIP",
    )
    description = Model.load(str(folder))
    flavour = description.flavors["python_function"]
    flavour["model_code_path"] = _SCRIPT.name
    flavour["artifacts"][_ARTIFACT]["uri"] = _ARTIFACT
    description.run_id, description.model_id = run_id, logged.model_id
    description.save(str(folder / "MLmodel"))
    mlflow.log_model_artifacts(logged.model_id, str(folder))
    mlflow.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    _log_metrics(mlflow, run, logged.model_id, origin.metrics)
    return mlflow.finalize_logged_model(logged.model_id, "READY"), provenance.content_hash(folder)


def _log_metrics(mlflow: MlflowClient, run: Run, model_id: str, metrics: Metrics) -> None:
    """Log the accuracies of a model, under the run's names and on the run's data set."""
    from mlflow.entities import Metric

    inputs = run.inputs.dataset_inputs if run.inputs else []
    data = inputs[0].dataset.to_dictionary() if inputs else {}
    names = {"dataset_name": data.get("name"), "dataset_digest": data.get("digest")}
    now = milliseconds()
    values = [
        Metric(f"{classifier}/{key}", float(value), now, 0, model_id=model_id, **names)
        for classifier, scores in metrics.items()
        for key, value in scores.items()
    ]
    mlflow.log_batch(run.info.run_id, metrics=values)


def signature() -> ModelSignature:
    """Describe input, output and parameters; local code may give more types than base64 text."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    outputs = {"names": Array(DataType.string), "probabilities": Array(DataType.double)}
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, INPUT)]),
        outputs=Schema([ColSpec(kind, name) for name, kind in outputs.items()]),
        params=ParamSchema([ParamSpec("top", DataType.long, 5)]),
    )


def register_student(
    store: str,
    job: Job,
    *,
    profile: str,
    experiment: str,
    run_id: str | None = None,
    on_note: Callable[[str], None] = lambda _: None,
) -> Registered:
    """Register the student that a job's stages made, once; for the names see `Origin`.

    The stages have run, or their outputs were pulled; `on_note` is called if images are missing.

    Raises:
        MissingFile: an output is not there.
        BadArtifact: the outputs do not fit together.
    """
    metrics = _metrics(job)
    student_file = job.student / "student.safetensors"
    student = predictor.stand_alone(
        student_file,
        job.vectors / "class_vectors.safetensors",
        job.params.student.weights,
        device=job.device,
        remedy=f"run `dvc repro student@{job.student.name}`",
    )
    outputs = [job.prepared, job.teacher / "teacher.safetensors", job.vectors, student_file]
    origin = Origin(
        profile=profile,
        dataset=job.student.name,
        lineage=Lineage.of_commit(Path(), outs=provenance.hashes(outputs, Path())),
        metrics=metrics,
        classes=of_evaluation(job.evaluation, len(student.names)),
        counts=_counts(job.prepared),
        tags={
            "seed": str(job.seed),
            "protocol": job.params.prepare.protocol,
            "selection": job.params.student.selection,
            **({} if "student" in metrics else evaluate.UNKNOWN),
        },
        run_id=run_id,
        experiment=experiment,
    )
    reference = None
    try:
        example = example_image(job.prepared, data_root=job.data_root)
        reference = training_images(job.prepared, data_root=job.data_root)
    except MissingFile as error:  # as on a machine that only pulled results
        on_note(f"'{job.student.name}' is registered without a reference for drift: {error}")
        example = grey_image(student.image_size)
    return register(store, student, origin, example=example, reference=reference)


def _metrics(job: Job) -> dict[str, Any]:
    """Read the evaluation's accuracies; texts among the numbers are left out."""
    content = read_json(
        job.evaluation / "metrics.json",
        what="evaluation",
        remedy=f"run `dvc repro evaluate@{job.evaluation.name}`",
    )
    if "student" not in content and job.cross_validation.is_file():
        content |= read_json(job.cross_validation, what="cross-validation")
    return {key: scores for key, scores in content.items() if isinstance(scores, Mapping)}


def _counts(prepared: Path) -> dict[str, int]:
    """Count classes, those with labels, training images, and test images by kind of class."""
    split = read_prepared(prepared)
    base = sum(label < split.base_count for _, label in split.test)
    return {
        "classes": len(split.classes),
        "taught": len(split.taught),
        "labels": len(split.few_shot),
        "unlabelled": len(read_unlabelled(prepared)),
        "base": base,
        "novel": len(split.test) - base,
        "all": len(split.test),
    }
