"""The paper's ablations on the embedded benchmark: every variant, for every data set and seed.

A variant is a few parameters that differ from the profile's. What it does not change, the few-shot
lists and the tuned teacher as a rule, it shares with all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pd_core import jobs
from pd_core.artifacts import read_json, write_json
from pd_core.atomic import write_folder
from pd_core.errors import missing
from pd_core.layout import Job
from pd_core.params import DatasetParams

OnRun = Callable[[str, int], None]


def make_base(
    out: Path,
    params: DatasetParams,
    *,
    seeds: Sequence[int],
    device: str,
    data_root: Path,
    features: Path | None = None,
) -> None:
    """Prepare a data set, tune its teacher and compute its class vectors, for every seed.

    Args:
        out: folder to write into.
        params: of the data set, without a variant's changes.
        seeds: of the draws and the training.
        device: where to compute.
        data_root: folder that holds the photo data sets.
        features: folder for what frozen towers say, for all variants; None to keep nothing.
    """
    with write_folder(out) as folder:
        for seed in seeds:
            job = _job(folder, params, seed, device, data_root, features)
            jobs.prepare(job)
            jobs.teacher(job)
            jobs.class_vectors(job)


def run_variant(
    bases: Path,
    out: Path,
    params: Sequence[DatasetParams],
    *,
    changed: set[str],
    seeds: Sequence[int],
    device: str,
    data_root: Path,
    features: Path | None = None,
    on_run: OnRun | None = None,
) -> None:
    """Run one variant on every data set with every seed; write `<data set>/metrics.json`.

    Args:
        bases: holds what `make_base` wrote, by data set.
        out: folder to write into.
        params: of every data set, with the variant's changes. One that has a `tuned_student` runs
            that baseline instead of a distillation.
        changed: the stages that the variant changes; the others' outputs are taken from the base.
            The few-shot lists are the base's too: of `prepare`, change the unlabelled list only.
        seeds: of the draws and the training.
        device: where to compute.
        data_root: folder that holds the photo data sets.
        features: folder for what frozen towers say, for all variants; None to keep nothing.
        on_run: called before each run with the data set's name and the seed.

    Raises:
        MissingFile: a data set has no base.
    """
    with write_folder(out) as folder:
        for mine in params:
            base = bases / mine.name
            if not base.is_dir():
                raise missing("base", base, f"run `dvc repro base@{mine.name}`")
            results = {}
            for seed in seeds:
                if on_run is not None:
                    on_run(mine.name, seed)
                job = _job(base, mine, seed, device, data_root, features)
                results[str(seed)] = _run(job, changed)
            write_json(folder / mine.name / "metrics.json", results)


def _run(base: Job, changed: set[str]) -> dict[str, Any]:
    """Run one variant once; return the evaluation's content."""
    with TemporaryDirectory() as scratch:
        where = base.device, base.data_root, base.features
        own = _job(Path(scratch), base.params, base.seed, *where)
        job = replace(base, student=own.student, evaluation=own.evaluation)
        if "prepare" in changed:
            job = replace(job, prepared=own.prepared)
            jobs.prepare(job)
        if base.params.tuned_student is not None:
            return dict(jobs.tuned_student(replace(own, prepared=job.prepared)))
        if "teacher" in changed:
            job = replace(job, teacher=own.teacher, vectors=own.vectors)
            jobs.teacher(job)
            jobs.class_vectors(job)
        jobs.student(job)
        jobs.evaluate(job, who=_measured(changed))
        content: dict[str, Any] = read_json(job.evaluation / "metrics.json")
        return content


def _measured(changed: set[str]) -> list[str] | None:
    """Name who is measured: everybody without a change, else those who may be others by it."""
    if not changed:
        return None
    return ["teacher", "student"] if "teacher" in changed else ["student"]


def _job(
    folder: Path,
    params: DatasetParams,
    seed: int,
    device: str,
    data_root: Path,
    features: Path | None,
) -> Job:
    return Job.at(
        folder, params,
        seed=seed, device=device, data_root=data_root, features=features, suffix=f"-{seed}",
    )  # fmt: skip
