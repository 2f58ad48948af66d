"""Locations and cache keys of a job's checkpoints and features."""

from __future__ import annotations

from collections.abc import Callable

from pd_core.pipeline import code_hash, provenance
from pd_core.pipeline.stages.layout import Job, inputs, output
from pd_core.training.loop.checkpoints import Checkpoints
from pd_core.training.loop.feature_cache import FeatureStore

OnNote = Callable[[str], None]

# Another version may compute other bits, so a training does not go on under it.
_VERSIONS = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")


def checkpoints(
    job: Job,
    stage: str,
    *,
    interrupted: Callable[[], bool] | None = None,
    on_note: OnNote | None = None,
) -> Checkpoints | None:
    """Return where a training keeps its state, known by code, data and parameters."""
    if job.checkpoints is None:
        return None
    run = job.params.run
    decisive = {
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
        key=provenance.params_hash(decisive),
        minutes=run.checkpoint_minutes,
        interrupted=interrupted,
        on_note=on_note,
    )


def features(job: Job, stage: str, *, on_note: OnNote | None = None) -> FeatureStore | None:
    """Return where what frozen towers say is kept, known by code, versions and pictures."""
    if job.features is None:
        return None
    run = job.params.run
    decisive = {
        "code": code_hash.of_stage(stage),
        "pictures": provenance.content_hash(job.fingerprint) if job.fingerprint else None,
        "run": [job.device, run.threads, run.processes, run.compile],
        "versions": [provenance.version(name) for name in _VERSIONS],
    }
    return FeatureStore(
        job.features,
        key=provenance.params_hash(decisive),
        limit=int(run.features_gb * 2**30),
        half=run.features_precision == "fp16",
        on_note=on_note,
    )
