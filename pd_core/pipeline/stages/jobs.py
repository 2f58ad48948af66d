"""From parameters to stages."""

from __future__ import annotations

from collections.abc import Sequence

from pd_core.core.atomic import check_space
from pd_core.core.hooks import NO_HOOKS, Hooks, OnProgress
from pd_core.pipeline.stages.layout import Job, output, tuning_of_student

Metrics = dict[str, dict[str, float]]  # who -> base, novel, hm, all in percent

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


def teacher(job: Job, hooks: Hooks = NO_HOOKS) -> None:
    """Run the stage `teacher`."""
    from pd_core.pipeline.stages.caches import run_of
    from pd_core.training.teacher import stage

    _check(job, "teacher")
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
    from pd_core.pipeline.stages.caches import run_of
    from pd_core.training.student import stage

    _check(job, "student")
    stage.run(job, job.params.student, job.params.teacher, run_of(job, "student", hooks))


def evaluate(job: Job, hooks: Hooks = NO_HOOKS, who: Sequence[str] | None = None) -> Metrics:
    """Run the stage `evaluate`; `who` are those who are measured, by default all."""
    from pd_core.evaluation import evaluate as stage

    _check(job, "evaluate")
    config = job.params.evaluate
    if not stage.is_measurable(job.prepared, config.split):
        from pd_core.evaluation import cross_validate

        recipe = cross_validate.Recipe(job.params.teacher, job.params.student, config, job.compute)
        return cross_validate.run(job, recipe, hooks)
    return stage.run(job, config, job.clips, job.compute, hooks, who or stage.WHO)


def tuned_student(job: Job, hooks: Hooks = NO_HOOKS) -> Metrics:
    """Run the stage `tuned_student`, the paper's main baseline."""
    from pd_core.evaluation import tuned_student as stage
    from pd_core.pipeline.stages.caches import run_of

    _check(job, "tuned_student")
    return stage.run(
        job.prepared, job.tuned_student, job.baseline, tuning_of_student(job),
        job.params.evaluate, run_of(job, "tuned_student", hooks),
    )  # fmt: skip


def _check(job: Job, name: str) -> None:
    """Make sure, before a long stage starts, that there is room and that the pictures are there.

    They have to be those that were prepared.
    """
    from pd_core.data.catalog import prepare as stage

    check_space(output(job, name), SPACE, f"the stage {name}")
    own = job.params.prepare.own
    stage.check_pictures(job.prepared, job.params.name, own=own, data_root=job.data_root)
