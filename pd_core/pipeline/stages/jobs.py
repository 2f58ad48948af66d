"""Jobs: folders, inputs, configurations, checkpoints and caches of the stages of one data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd_core.core.atomic import check_space
from pd_core.core.config import ClipConfig, Clips, Compute, ComputeConfig, StagePaths
from pd_core.core.errors import BadParams, missing
from pd_core.core.hooks import NO_HOOKS, Hooks, OnNote, OnProgress
from pd_core.data.catalog import fingerprint
from pd_core.data.catalog.catalogue import DatasetSpec
from pd_core.pipeline import code_hash, provenance
from pd_core.pipeline.stages.params import DATA, PARAMS, DatasetParams, Params
from pd_core.training.student.config import FurtherTeacher
from pd_core.training.teacher.config import TeacherConfig

if TYPE_CHECKING:
    from pd_core.training.loop.checkpoints import Checkpoints
    from pd_core.training.loop.feature_cache import FeatureCache
    from pd_core.training.loop.fit import Run

# Another version may compute other bits, so a training does not resume with it.
_VERSIONS = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class Job(StagePaths):
    """One data set's parameters and folders, for one seed and one source of the teacher."""

    params: DatasetParams
    seed: int
    device: str
    data_root: Path
    fingerprint: Path | None = None  # of the images; None: not compared
    checkpoints: Path | None = None  # None: an interrupted training starts anew
    features: Path | None = None  # cache of frozen-encoder features; None: no cache
    rehearsed: DatasetSpec | None = None
    """Row of a smaller copy of the data set. Checks of trained models, which random weights do not
    pass, are then noted instead of raised; None in all other runs."""

    @classmethod
    def at(
        cls,
        folder: Path,
        params: DatasetParams,
        *,
        seed: int,
        device: str,
        data_root: Path,
        fingerprint: Path | None = None,
        checkpoints: Path | None = None,
        features: Path | None = None,
        suffix: str = "",
        source: str | None = None,
    ) -> Job:
        """Return a job laid out as `<folder>/<stage>/<data set>`.

        Args:
            folder: directory with the stages' folders.
            params: of the data set.
            seed: of the few-shot draw and the training.
            device: device to compute on.
            data_root: directory with the photo data sets.
            fingerprint: of the data set's images; None not to compare them.
            checkpoints: directory for the checkpoints of all stages, outside their outputs; None
                not to resume interrupted trainings.
            features: directory for cached features, outside all outputs; None for no cache.
            suffix: appended to every name.
            source: data set whose teacher is used, if another one.
        """
        name = params.name
        cross = f"{name}-from-{source}" if source else name
        return cls(
            params=params,
            seed=seed,
            device=device,
            data_root=data_root,
            prepared=folder / "prepare" / f"{name}{suffix}",
            teacher=folder / "teacher" / f"{source or name}{suffix}",
            vectors=folder / "class_vectors" / f"{cross}{suffix}",
            student=folder / "student" / f"{cross}{suffix}",
            evaluation=folder / "evaluate" / f"{cross}{suffix}",
            fingerprint=fingerprint,
            checkpoints=checkpoints,
            features=features,
        )

    @property
    def compute(self) -> Compute:
        """Compute settings of its stages."""
        values = {key: getattr(self.params.run, key) for key in ComputeConfig.model_fields}
        own = {"seed": self.seed, "device": self.device, "data_root": self.data_root}
        return Compute(**{**values, **own})

    @property
    def clips(self) -> Clips:
        """CLIP configurations of student and teacher."""
        return Clips(self.params.student, self.params.teacher)

    @property
    def tuned_student(self) -> Path:
        """Output folder of `tuned_student`, the paper's main baseline."""
        return self.evaluation.parent.parent / "tuned_student" / self.prepared.name

    @property
    def baseline(self) -> Path:
        """File with the baseline's accuracy."""
        return self.evaluation.parent / "tuned_student" / f"{self.prepared.name}.json"

    @property
    def cross_validation(self) -> Path:
        """File with the cross-validated accuracy."""
        return self.evaluation.parent / "cross_validate" / f"{self.evaluation.name}.json"


def shared(
    params: Params, name: str, seed: int | None, device: str | None, data_root: Path | None
) -> dict[str, Any]:
    """Return the arguments of `Job.at` that all jobs of a data set share.

    Args:
        params: of the profile.
        name: of the data set.
        seed: instead of `run.seed`.
        device: instead of `run.device`.
        data_root: directory with the photo data sets, instead of the repository's `data/raw`.
    """
    root = Path(params.profile.root)
    return {
        "seed": params.run.seed if seed is None else seed,
        "device": resolved(device or params.run.device),
        "data_root": data_root or root / DATA / "raw",
        "fingerprint": fingerprint.path_of(name, root),
        "features": DATA / "features",
    }


def resolved(device: str) -> str:
    """Return a device; `auto` is `cuda` if there is a GPU, else `cpu`."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def job_of(
    params: Params, name: str, *, suffix: str = "", source: str | None = None, **rest: Any
) -> Job:
    """Return the job of a data set of the profile; see `Job.at`.

    Raises:
        UnknownName: there is no such data set.
    """
    if source is not None:
        params.for_dataset(source)  # refuses an unknown one
    own, checkpoints = params.for_dataset(name), DATA / "checkpoints"
    return Job.at(DATA, own, checkpoints=checkpoints, suffix=suffix, source=source, **rest)


def output(job: Job, stage: str) -> Path:
    """Return the folder or file that a stage writes."""
    return {
        "prepare": job.prepared,
        "teacher": job.teacher,
        "class_vectors": job.vectors,
        "student": job.student,
        "tuned_student": job.tuned_student,
        "evaluate": job.evaluation,
        "cross_validate": job.cross_validation,
    }[stage]


def inputs(job: Job, stage: str) -> list[Path]:
    """Return the files and folders that a stage reads, without its code."""
    params = job.params
    match stage:
        case "teacher":
            return [job.prepared, *_weights(params.teacher)]
        case "class_vectors":
            return [job.prepared, job.teacher, *_weights(params.teacher)]
        case "student":
            further = params.student.further_teachers
            return [
                job.prepared, job.teacher, job.vectors,
                *_weights(params.student, params.teacher, *further),
                *(Path(teacher.folder) for teacher in further if teacher.folder),
            ]  # fmt: skip
        case "evaluate":
            folders = [job.prepared, job.teacher, job.vectors, job.student]
            return [*folders, *_weights(params.student, params.teacher)]
        case "cross_validate":
            return [job.prepared, *_weights(params.student, params.teacher)]
        case "tuned_student":
            return [job.prepared, *_weights(tuning_of_student(job))]
        case _:
            return []


def tuning_of_student(job: Job) -> TeacherConfig:
    """Return the configuration of the stage `tuned_student`.

    Raises:
        BadParams: the data set does not have it.
    """
    name, tuning = job.params.name, job.params.tuned_student
    if tuning is None:
        raise BadParams(f"{PARAMS}: tuned_student has no '{name}'; add `{name}: {{}}` to it")
    return tuning


def _weights(*models: ClipConfig | FurtherTeacher) -> list[Path]:
    """Return the weight files of models; tags of open_clip are no files."""
    given = (Path(model.weights) for model in models if model.weights)
    return sorted({path for path in given if path.is_file()})


Metrics = dict[str, dict[str, float]]  # model -> base, novel, hm, all in percent

SPACE = 32 * 2**20
"""Free bytes that a stage requires: more than any output but a checkpoint needs."""


def prepare(
    job: Job, *, on_progress: OnProgress | None = None, on_note: OnNote = NO_HOOKS.on_note
) -> None:
    """Run the stage `prepare`."""
    from pd_core.data.catalog import prepare as stage

    check_space(job.prepared, SPACE, "the stage prepare")
    if job.params.prepare.own is not None:  # whose first stage this is, of hours perhaps
        _check_weights(job)
        from pd_core.pipeline.stages.class_check import check_own_classes

        for line in check_own_classes(job.params, job.data_root):
            on_note(line)
    stage.run(
        job.params.name,
        job.prepared,
        job.params.prepare,
        data_root=job.data_root,
        fingerprint=job.fingerprint,
        seed=job.seed,
        rehearsed=job.rehearsed,
        on_progress=on_progress,
        on_note=on_note,
    )


def teacher(job: Job, hooks: Hooks = NO_HOOKS) -> None:
    """Run the stage `teacher`."""
    from pd_core.training.teacher import stage

    _check(job, "teacher", hooks)
    stage.run(job.prepared, job.teacher, job.params.teacher, run_of(job, "teacher", hooks))


def class_vectors(job: Job, *, on_progress: OnProgress | None = None) -> None:
    """Run the stage `class_vectors`."""
    from pd_core.training.teacher import class_vectors as stage

    check_space(job.vectors, SPACE, "the stage class_vectors")
    stage.run(
        job.prepared,
        job.teacher,
        job.vectors,
        model=job.params.teacher.model,
        weights=job.params.teacher.weights,
        threads=job.params.run.threads,
        device=job.device,
        on_progress=on_progress,
    )


def student(job: Job, hooks: Hooks = NO_HOOKS) -> None:
    """Run the stage `student`."""
    from pd_core.training.student import stage

    _check(job, "student", hooks)
    stage.run(job, job.params.student, job.params.teacher, run_of(job, "student", hooks))


def evaluate(job: Job, hooks: Hooks = NO_HOOKS, who: Sequence[str] | None = None) -> Metrics:
    """Run the stage `evaluate` for the models named in `who` (default: all)."""
    from pd_core.evaluation import evaluate as stage

    _check(job, "evaluate", hooks)
    config = job.params.evaluate
    if not stage.is_measurable(job.prepared, config.split):
        return stage.run_unlabelled(job, config, job.clips, job.compute, hooks)
    return stage.run(job, config, job.clips, job.compute, hooks, who or stage.MODELS)


def cross_validate(job: Job, hooks: Hooks = NO_HOOKS) -> Metrics:
    """Run the stage `cross_validate`."""
    from pd_core.evaluation import cross_validate as stage

    _check(job, "cross_validate", hooks)
    params = job.params
    recipe = stage.Recipe(params.teacher, params.student, params.evaluate, job.compute)
    return stage.run(job.prepared, job.cross_validation, recipe, hooks)


def tuned_student(job: Job, hooks: Hooks = NO_HOOKS) -> Metrics:
    """Run the stage `tuned_student`, the paper's main baseline."""
    from pd_core.evaluation import tuned_student as stage

    _check(job, "tuned_student", hooks)
    return stage.run(
        job.prepared, job.tuned_student, job.baseline, tuning_of_student(job),
        job.params.evaluate, run_of(job, "tuned_student", hooks),
    )  # fmt: skip


def _check_weights(job: Job) -> None:
    """Check that the weight files of both models are there, before anything is computed.

    Raises:
        MissingFile: one is not.
    """
    for clip in job.clips:
        path = Path(clip.weights or "")
        if path.suffix and not path.is_file():
            remedy = (
                "run `promptkd weights fetch` where there is a network, or `promptkd weights "
                "mirror pull` with PD_MIRROR, or put a file there"
            )
            raise missing(f"weights of '{clip.model}'", path, remedy)


def _check(job: Job, name: str, hooks: Hooks) -> None:
    """Check free space, precision, and that the images are those that were prepared.

    Raises:
        NoSpace: the disk has too little space.
        BadData: the images have changed.
    """
    check_space(output(job, name), SPACE, f"the stage {name}")
    _check_precision(job, hooks.on_note)
    if not (job.prepared / fingerprint.FILE).is_file():
        return
    from pd_core.data.catalog import prepare as stage

    own = job.params.prepare.own
    stage.check_pictures(job.prepared, job.params.name, own=own, data_root=job.data_root)


def _check_precision(job: Job, on_note: OnNote) -> None:
    """Warn of a precision that makes the stage slower than fp32."""
    import torch

    from pd_core.models.precision import is_emulated

    precision = job.params.run.precision
    if is_emulated(torch.device(job.device), precision):
        on_note(
            f"warning: this processor has no instructions for {precision}, which is slower than"
            " fp32: set run.precision: fp32"
        )


def run_of(job: Job, stage: str, hooks: Hooks) -> Run:
    """Return the surroundings of a training stage."""
    from pd_core.training.loop.fit import Run

    kept, cache = checkpoints(job, stage, hooks), features(job, stage, hooks)
    return Run(job.compute, hooks, kept, cache, is_rehearsal=job.rehearsed is not None)


def checkpoints(job: Job, stage: str, hooks: Hooks) -> Checkpoints | None:
    """Return the checkpoints of a training, keyed by code, data and parameters."""
    if job.checkpoints is None:
        return None
    from pd_core.training.loop.checkpoints import Checkpoints

    run = job.params.run
    key = {
        "code": code_hash.of_stage(stage),
        "data": {str(path): provenance.content_hash(path) for path in inputs(job, stage)},
        "params": getattr(job.params, stage).model_dump(mode="json"),
        "run": [
            job.seed, job.device, run.threads, run.processes, run.precision, run.on_corrupt,
            run.augmentation, run.compile, run.features_precision,
        ],
        "versions": [provenance.version(name) for name in _VERSIONS],
    }  # fmt: skip
    return Checkpoints(
        job.checkpoints / stage / output(job, stage).name,
        key=provenance.params_hash(key),
        minutes=run.checkpoint_minutes,
        interrupted=hooks.interrupted,
        on_note=hooks.on_note,
    )


def features(job: Job, stage: str, hooks: Hooks) -> FeatureCache | None:
    """Return the cache of frozen-encoder features, keyed by code, versions and images."""
    if job.features is None:
        return None
    from pd_core.training.loop.feature_cache import FeatureCache

    run = job.params.run
    key = {
        "code": code_hash.of_stage(stage),
        "pictures": provenance.content_hash(job.fingerprint) if job.fingerprint else None,
        "run": [job.device, run.threads, run.processes, run.compile],
        "versions": [provenance.version(name) for name in _VERSIONS],
    }
    return FeatureCache(
        job.features,
        key=provenance.params_hash(key),
        limit=int(run.features_gb * 2**30),
        half=run.features_precision == "fp16",
        on_note=hooks.on_note,
    )
