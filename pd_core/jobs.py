"""From parameters to stages: where each stage reads and writes, and with which numbers it runs.

A stage's block of `params.yaml` has the names that the stage's function has, so it is passed on as
it is; what else a function needs comes from the job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd_core import lineage, provenance
from pd_core.atomic import check_space
from pd_core.blocks import FurtherTeacherParams, StudentParams, TeacherParams
from pd_core.errors import BadParams
from pd_core.params import PARAMS, DatasetParams

if TYPE_CHECKING:
    from pd_core.checkpoints import Checkpoints
    from pd_core.feature_store import FeatureStore

Metrics = dict[str, dict[str, float]]  # who -> base, novel, hm, all in percent
OnEpoch = Callable[[int, dict[str, float]], None]
OnProgress = Callable[[int, int], None]
OnNote = Callable[[str], None]
IsInterrupted = Callable[[], bool]

SPACE = 32 * 2**20
"""Bytes that must be free before a stage starts: more than any output but a checkpoint takes."""

# Another version may compute other bits, so a training does not go on under it.
_VERSIONS = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")


@dataclass(frozen=True)
class Job:
    """One data set's parameters and folders, for one seed and one source of the teacher."""

    params: DatasetParams
    seed: int
    device: str
    data_root: Path
    prepared: Path
    teacher: Path
    vectors: Path
    student: Path
    evaluation: Path
    fingerprint: Path | None = None  # of the pictures, if they have to be what they were
    checkpoints: Path | None = None  # None: a training that is stopped starts anew
    features: Path | None = None  # of frozen towers, kept between runs; None: not kept

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
        """Lay a job out as the pipeline does: one folder a stage, one in it for the data set.

        Args:
            folder: holds the stages' folders.
            params: of the data set.
            seed: of the draws and the training.
            device: where to compute.
            data_root: folder that holds the photo data sets.
            fingerprint: of the data set's pictures; None to compare them with none.
            checkpoints: folder for the checkpoints of all stages, outside their outputs; None for
                trainings that start anew when they were stopped.
            features: folder for what frozen towers say, outside all outputs; None to keep nothing.
            suffix: added to every name.
            source: the data set whose teacher is used, if it is another one.
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
    def tuned_student(self) -> Path:
        """Folder of the paper's main baseline."""
        return self.evaluation.parent.parent / "tuned_student" / self.prepared.name

    @property
    def baseline(self) -> Path:
        """File with that baseline's accuracy."""
        return self.evaluation.parent / "tuned_student" / f"{self.prepared.name}.json"


def output(job: Job, stage: str) -> Path:
    """Return the folder that a stage of a data set writes."""
    return {
        "prepare": job.prepared,
        "teacher": job.teacher,
        "class_vectors": job.vectors,
        "student": job.student,
        "tuned_student": job.tuned_student,
        "evaluate": job.evaluation,
    }[stage]


def inputs(job: Job, stage: str) -> list[Path]:
    """Return the files and folders that a stage of a data set reads, its code apart."""
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
                *(Path(one.folder) for one in further if one.folder),
            ]  # fmt: skip
        case "evaluate":
            folders = [job.prepared, job.teacher, job.vectors, job.student]
            return [*folders, *_weights(params.student, params.teacher)]
        case "tuned_student":
            return [job.prepared, *_weights(tuning_of_student(job))]
        case _:
            return []


def tuning_of_student(job: Job) -> TeacherParams:
    """Return the numbers of the stage `tuned_student`.

    Raises:
        BadParams: the data set does not have it.
    """
    name, tuning = job.params.name, job.params.tuned_student
    if tuning is None:
        raise BadParams(f"{PARAMS}: tuned_student has no '{name}'; add `{name}: {{}}` to it")
    return tuning


def prepare(job: Job) -> None:
    """Run the stage `prepare`."""
    from pd_core import prepare as stage

    check_space(job.prepared, SPACE, "the stage prepare")
    stage.run(
        job.params.name,
        job.prepared,
        data_root=job.data_root,
        fingerprint=job.fingerprint,
        seed=job.seed,
        **job.params.prepare.model_dump(),
    )


def teacher(
    job: Job,
    *,
    interrupted: IsInterrupted | None = None,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
) -> None:
    """Run the stage `teacher`; `interrupted` says when it is to save and end."""
    from pd_core import pretrain

    _check(job, "teacher")
    pretrain.run(
        job.prepared,
        job.teacher,
        features=features(job, "teacher", on_note=on_note),
        checkpoints=checkpoints(job, "teacher", interrupted=interrupted, on_note=on_note),
        on_epoch=on_epoch,
        on_progress=on_progress,
        on_note=on_note,
        **_teacher_options(job, job.params.teacher),
    )


def class_vectors(job: Job) -> None:
    """Run the stage `class_vectors`."""
    from pd_core import class_vectors as stage

    check_space(job.vectors, SPACE, "the stage class_vectors")
    stage.run(
        job.prepared,
        job.teacher,
        job.vectors,
        model=job.params.teacher.model,
        weights=job.params.teacher.weights,
        threads=job.params.run.threads,
        device=job.device,
    )


def student(
    job: Job,
    *,
    interrupted: IsInterrupted | None = None,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
) -> None:
    """Run the stage `student`; `interrupted` says when it is to save and end."""
    from pd_core import distill

    _check(job, "student")
    distill.run(
        job.prepared,
        job.teacher,
        job.vectors,
        job.student,
        seed=job.seed,
        features=features(job, "student", on_note=on_note),
        checkpoints=checkpoints(job, "student", interrupted=interrupted, on_note=on_note),
        on_epoch=on_epoch,
        on_progress=on_progress,
        compile=job.params.run.compile,
        **_teachers_clip(job),
        **_computing(job),
        **job.params.student.model_dump(),
    )


def evaluate(
    job: Job,
    *,
    who: Sequence[str] | None = None,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
) -> Metrics:
    """Run the stage `evaluate`; `who` are those who are measured, by default all."""
    from pd_core import estimate
    from pd_core import evaluate as stage

    _check(job, "evaluate")
    folders: dict[str, Any] = {
        "prepared": job.prepared,
        "teacher": job.teacher,
        "vectors": job.vectors,
        "student": job.student,
        "out": job.evaluation,
    }
    block = job.params.evaluate
    if not estimate.is_measurable(job.prepared, block.split):
        return estimate.run(
            **folders,
            tuning=job.params.teacher.model_dump(),
            distillation=job.params.student.model_dump(),
            folds=block.folds,
            seed=job.seed,
            batch_size=block.batch_size,
            on_progress=on_progress,
            on_note=on_note,
            **_computing(job),
        )
    only: dict[str, Any] = {} if who is None else {"who": who}
    return stage.run(
        **folders,
        model=job.params.student.model,
        weights=job.params.student.weights,
        split=block.split,
        batch_size=block.batch_size,
        on_progress=on_progress,
        **only,
        **_teachers_clip(job),
        **_computing(job),
    )


def tuned_student(
    job: Job,
    *,
    interrupted: IsInterrupted | None = None,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
) -> Metrics:
    """Run the stage `tuned_student`, the paper's main baseline."""
    from pd_core import tuned_student as stage

    _check(job, "tuned_student")
    return stage.run(
        job.prepared,
        job.tuned_student,
        job.baseline,
        split=job.params.evaluate.split,
        evaluation_batch_size=job.params.evaluate.batch_size,
        features=features(job, "tuned_student", on_note=on_note),
        checkpoints=checkpoints(job, "tuned_student", interrupted=interrupted, on_note=on_note),
        on_epoch=on_epoch,
        on_progress=on_progress,
        **_teacher_options(job, tuning_of_student(job)),
    )


def _check(job: Job, name: str) -> None:
    """Make sure, before a long stage starts, that there is room and that the pictures are there.

    They have to be those that were prepared.
    """
    from pd_core import prepare as stage

    check_space(output(job, name), SPACE, f"the stage {name}")
    own = job.params.prepare.model_dump()["own"]
    stage.check_pictures(job.prepared, job.params.name, own=own, data_root=job.data_root)


def checkpoints(
    job: Job,
    stage: str,
    *,
    interrupted: IsInterrupted | None = None,
    on_note: OnNote | None = None,
) -> Checkpoints | None:
    """Return where a training keeps its state, known by code, data and parameters."""
    if job.checkpoints is None:
        return None
    from pd_core.checkpoints import Checkpoints

    run = job.params.run
    decisive = {
        "code": [provenance.content_hash(path) for path in lineage.stage_code(stage)],
        "data": {str(path): provenance.content_hash(path) for path in inputs(job, stage)},
        "params": getattr(job.params, stage).model_dump(mode="json"),
        "run": [
            job.seed, job.device, run.threads, run.precision, run.on_corrupt, run.compile,
            run.features_precision,
        ],
        "versions": [provenance.version(name) for name in _VERSIONS],
    }  # fmt: skip
    return Checkpoints(
        job.checkpoints / stage / output(job, stage).name,
        key=provenance.params_hash(decisive),
        minutes=run.checkpoint_minutes,
        interrupted=interrupted,
        on_note=on_note,
    )


def features(job: Job, stage: str, *, on_note: OnNote | None = None) -> FeatureStore | None:
    """Return where what frozen towers say is kept, known by code, versions and pictures."""
    if job.features is None:
        return None
    from pd_core.feature_store import FeatureStore

    run = job.params.run
    code = lineage.code_of("pd_core.answers" if stage == "student" else "pd_core.frozen")
    decisive = {
        "code": [provenance.content_hash(path) for path in code],
        "pictures": provenance.content_hash(job.fingerprint) if job.fingerprint else None,
        "run": [job.device, run.threads, run.compile],
        "versions": [provenance.version(name) for name in _VERSIONS],
    }
    return FeatureStore(
        job.features,
        key=provenance.params_hash(decisive),
        limit=int(run.features_gb * 2**30),
        half=run.features_precision == "fp16",
        on_note=on_note,
    )


def _weights(*models: TeacherParams | StudentParams | FurtherTeacherParams) -> list[Path]:
    """Return the files that models are made of, where they are files and not tags."""
    given = (Path(model.weights) for model in models if model.weights)
    return sorted({path for path in given if path.is_file()})


def _teacher_options(job: Job, block: TeacherParams) -> dict[str, Any]:
    compiled = job.params.run.compile
    return {"seed": job.seed, "compile": compiled, **_computing(job), **block.model_dump()}


def _teachers_clip(job: Job) -> dict[str, Any]:
    block = job.params.teacher
    return {"teacher_model": block.model, "teacher_weights": block.weights}


def _computing(job: Job) -> dict[str, Any]:
    run = job.params.run
    return {
        "data_root": job.data_root,
        "threads": run.threads,
        "workers": run.workers,
        "device": job.device,
        "precision": run.precision,
        "on_corrupt": run.on_corrupt,
    }
