"""From parameters to stages: with which values each stage runs.

A stage's block of `params.yaml` has the names that the stage's function has, so it is passed on as
it is; what else a function needs comes from the job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from pd_core.core.atomic import check_space
from pd_core.pipeline.stages.blocks import TeacherParams
from pd_core.pipeline.stages.layout import Job, output, tuning_of_student

Metrics = dict[str, dict[str, float]]  # who -> base, novel, hm, all in percent
OnEpoch = Callable[[int, dict[str, float]], None]
OnProgress = Callable[[int, int], None]
OnLoss = Callable[[int, float], None]
OnNote = Callable[[str], None]
IsInterrupted = Callable[[], bool]


class Observers(TypedDict, total=False):
    """What a training is told by, and tells; a stage does without those left out."""

    interrupted: IsInterrupted
    on_epoch: OnEpoch
    on_progress: OnProgress
    on_loss: OnLoss
    on_note: OnNote


SPACE = 32 * 2**20
"""Bytes that must be free before a stage starts: more than any output but a checkpoint takes."""


def prepare(job: Job, *, on_progress: OnProgress | None = None) -> None:
    """Run the stage `prepare`."""
    from pd_core.data.catalog import prepare as stage

    check_space(job.prepared, SPACE, "the stage prepare")
    stage.run(
        job.params.name,
        job.prepared,
        job.params.prepare,
        data_root=job.data_root,
        fingerprint=job.fingerprint,
        seed=job.seed,
        on_progress=on_progress,
    )


def teacher(
    job: Job,
    *,
    interrupted: IsInterrupted | None = None,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
    on_loss: OnLoss | None = None,
    on_note: OnNote | None = None,
) -> None:
    """Run the stage `teacher`; `interrupted` says when it is to save and end."""
    from pd_core.pipeline.stages import caches
    from pd_core.training.teacher import stage as teacher_stage

    _check(job, "teacher")
    teacher_stage.run(
        job.prepared,
        job.teacher,
        features=caches.features(job, "teacher", on_note=on_note),
        checkpoints=caches.checkpoints(job, "teacher", interrupted=interrupted, on_note=on_note),
        on_epoch=on_epoch,
        on_progress=on_progress,
        on_loss=on_loss,
        on_note=on_note,
        **_teacher_options(job, job.params.teacher),
    )


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


def student(
    job: Job,
    *,
    interrupted: IsInterrupted | None = None,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
    on_loss: OnLoss | None = None,
    on_note: OnNote | None = None,
) -> None:
    """Run the stage `student`; `interrupted` says when it is to save and end."""
    from pd_core.pipeline.stages import caches
    from pd_core.training.student import stage as student_stage

    _check(job, "student")
    student_stage.run(
        job.prepared,
        job.teacher,
        job.vectors,
        job.student,
        seed=job.seed,
        features=caches.features(job, "student", on_note=on_note),
        checkpoints=caches.checkpoints(job, "student", interrupted=interrupted, on_note=on_note),
        on_epoch=on_epoch,
        on_progress=on_progress,
        on_loss=on_loss,
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
    from pd_core.evaluation import cross_validate
    from pd_core.evaluation import evaluate as stage

    _check(job, "evaluate")
    folders: dict[str, Any] = {
        "prepared": job.prepared,
        "teacher": job.teacher,
        "vectors": job.vectors,
        "student": job.student,
        "out": job.evaluation,
    }
    block = job.params.evaluate
    if not cross_validate.is_measurable(job.prepared, block.split):
        return cross_validate.run(
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
    on_loss: OnLoss | None = None,
    on_note: OnNote | None = None,
) -> Metrics:
    """Run the stage `tuned_student`, the paper's main baseline."""
    from pd_core.evaluation import tuned_student as stage
    from pd_core.pipeline.stages import caches

    _check(job, "tuned_student")
    return stage.run(
        job.prepared,
        job.tuned_student,
        job.baseline,
        split=job.params.evaluate.split,
        evaluation_batch_size=job.params.evaluate.batch_size,
        features=caches.features(job, "tuned_student", on_note=on_note),
        checkpoints=caches.checkpoints(
            job, "tuned_student", interrupted=interrupted, on_note=on_note
        ),
        on_epoch=on_epoch,
        on_progress=on_progress,
        on_loss=on_loss,
        **_teacher_options(job, tuning_of_student(job)),
    )


def _check(job: Job, name: str) -> None:
    """Make sure, before a long stage starts, that there is room and that the pictures are there.

    They have to be those that were prepared.
    """
    from pd_core.data.catalog import prepare as stage

    check_space(output(job, name), SPACE, f"the stage {name}")
    own = job.params.prepare.own
    stage.check_pictures(job.prepared, job.params.name, own=own, data_root=job.data_root)


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
