"""Locations and cache keys of a job's checkpoints and features."""

from __future__ import annotations

from pd_core.core.hooks import Hooks
from pd_core.pipeline import code_hash, provenance
from pd_core.pipeline.stages.jobs import Job, inputs, output
from pd_core.training.loop.checkpoints import Checkpoints
from pd_core.training.loop.feature_cache import FeatureCache
from pd_core.training.loop.fit import Run

# Another version may compute other bits, so a training does not resume with it.
_VERSIONS = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")


def run_of(job: Job, stage: str, hooks: Hooks) -> Run:
    """Return the surroundings of a training stage."""
    return Run(job.compute, hooks, checkpoints(job, stage, hooks), features(job, stage, hooks))


def checkpoints(job: Job, stage: str, hooks: Hooks) -> Checkpoints | None:
    """Return the checkpoints of a training, keyed by code, data and parameters."""
    if job.checkpoints is None:
        return None
    run = job.params.run
    key = {
        "code": code_hash.of_stage(stage),
        "data": {str(path): provenance.content_hash(path) for path in inputs(job, stage)},
        "params": getattr(job.params, stage).model_dump(mode="json"),
        "run": [
            job.seed, job.device, run.threads, run.processes, run.precision, run.on_corrupt,
            run.compile, run.features_precision,
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
