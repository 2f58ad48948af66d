"""Register the student that a job's stages made, from their outputs alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from pd_core import estimate, predictor, provenance, samples
from pd_core.artifacts import read_json
from pd_core.errors import MissingFile
from pd_core.layout import Job
from pd_core.registry.register import Origin, Registered, register

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
        counts=samples.counts(job.prepared),
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
        **({} if "student" in metrics else estimate.UNKNOWN),
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
        example = samples.example_picture(job.prepared, data_root=job.data_root)
        return example, samples.training_pictures(job.prepared, data_root=job.data_root)
    except MissingFile as error:
        if on_note is not None:
            on_note(f"'{job.student.name}' is registered without a reference for drift: {error}")
        file = io.BytesIO()
        Image.new("RGB", (size, size), "grey").save(file, format="PNG")
        return file.getvalue(), None
