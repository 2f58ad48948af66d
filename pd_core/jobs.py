"""From parameters to stages: where each stage reads and writes, and with which numbers it runs.

A stage's block of `params.yaml` has the names that the stage's function has, so it is passed on as
it is; what else a function needs comes from the job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pd_core.blocks import TeacherParams
from pd_core.params import DatasetParams

Metrics = dict[str, dict[str, float]]  # who -> base, novel, hm, all in percent
OnEpoch = Callable[[int, dict[str, float]], None]
OnProgress = Callable[[int, int], None]
OnNote = Callable[[str], None]


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
        )

    @property
    def tuned_student(self) -> Path:
        """Folder of the paper's main baseline."""
        return self.evaluation.parent.parent / "tuned_student" / self.prepared.name

    @property
    def baseline(self) -> Path:
        """File with that baseline's accuracy."""
        return self.evaluation.parent / "tuned_student" / f"{self.prepared.name}.json"


def prepare(job: Job) -> None:
    """Run the stage `prepare`."""
    from pd_core import prepare as stage

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
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
) -> None:
    """Run the stage `teacher`."""
    from pd_core import pretrain

    _check_pictures(job)
    pretrain.run(
        job.prepared,
        job.teacher,
        on_epoch=on_epoch,
        on_progress=on_progress,
        on_note=on_note,
        **_teacher_options(job, job.params.teacher),
    )


def class_vectors(job: Job) -> None:
    """Run the stage `class_vectors`."""
    from pd_core import class_vectors as stage

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
    job: Job, *, on_epoch: OnEpoch | None = None, on_progress: OnProgress | None = None
) -> None:
    """Run the stage `student`."""
    from pd_core import distill

    _check_pictures(job)
    distill.run(
        job.prepared,
        job.teacher,
        job.vectors,
        job.student,
        seed=job.seed,
        on_epoch=on_epoch,
        on_progress=on_progress,
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

    _check_pictures(job)
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
    tuning: TeacherParams,
    *,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
) -> Metrics:
    """Run the stage `tuned_student`, the paper's main baseline."""
    from pd_core import tuned_student as stage

    _check_pictures(job)
    return stage.run(
        job.prepared,
        job.tuned_student,
        job.baseline,
        split=job.params.evaluate.split,
        evaluation_batch_size=job.params.evaluate.batch_size,
        on_epoch=on_epoch,
        on_progress=on_progress,
        **_teacher_options(job, tuning),
    )


def _check_pictures(job: Job) -> None:
    """Make sure that the pictures are those that were prepared, before a long stage uses them."""
    from pd_core import prepare as stage

    own = job.params.prepare.model_dump()["own"]
    stage.check_pictures(job.prepared, job.params.name, own=own, data_root=job.data_root)


def _teacher_options(job: Job, block: TeacherParams) -> dict[str, Any]:
    return {"seed": job.seed, **_computing(job), **block.model_dump()}


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
