"""Unlabelled images of a data set, and what its teacher and student predict for them.

Shapes: N candidates, M images, labelled ones among them; C classes, D the teacher's joint width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pd_core.core.artifacts import SUMS, file_hash
from pd_core.core.errors import BadData, BadParams
from pd_core.core.hooks import Hooks
from pd_core.data.catalog.own import read_own
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, eval_transform
from pd_core.data.loading.prepared import Prepared, read_prepared, read_unlabelled
from pd_core.evaluation.evaluate import load_classifiers
from pd_core.labelling.selection import Array, Candidates
from pd_core.models.class_vectors import FILE as VECTORS_FILE
from pd_core.models.class_vectors import Classifier
from pd_core.models.precision import autocast, set_threads, to_device
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job
from pd_core.training.loop.feature_cache import identity

MODELS = ("teacher", "student")


@dataclass(frozen=True)
class Pool:
    """The images that may be labelled.

    Attributes:
        paths: of the N images.
        classes: names of the C classes.
        confidences: by model, its probability of the predicted class, (N,).
        candidates: what the selection reads.
    """

    paths: tuple[str, ...]
    classes: tuple[str, ...]
    confidences: Mapping[str, Array]
    candidates: Candidates

    @property
    def predicted(self) -> list[str]:
        """Name of the class that the mean of both models predicts, for each image."""
        return [self.classes[label] for label in self.candidates.predicted]


def unlabelled_paths(job: Job, content: Prepared) -> tuple[str, ...]:
    """Return the images without a label that are in no list of a measurement, sorted.

    Raises:
        BadParams: the protocol gives the teacher no labels, or the unlabelled images are those of
            the test.
        BadData: all images have labels.
    """
    params = job.params
    if not content.taught:
        raise BadParams(f"the teacher of '{params.name}' takes no labels of this data set")
    if params.prepare.transductive:
        raise BadParams(
            f"the unlabelled images of '{params.name}' are its test images, which get no labels;"
            " set prepare.transductive: false"
        )
    lists = (content.few_shot, content.few_shot_val, content.val, content.test)
    taken = {path for rows in lists for path, _ in rows}
    if params.prepare.own is not None:  # its labelled images beyond `prepare.shots`
        taken |= {item.path for item in read_own(params.prepare.own, job.data_root).train}
    paths = tuple(sorted({*read_unlabelled(job.prepared)} - taken))
    if not paths:
        raise BadData(
            f"data set '{params.name}' has no unlabelled images: add some, see docs/datasets.md"
        )
    return paths


def read_pool(job: Job, hooks: Hooks) -> Pool:
    """Predict the classes of a data set's unlabelled images with its teacher and student.

    In the protocol base-to-novel, only images that are predicted as base classes are candidates,
    since the teacher takes no label of a novel class.

    Raises:
        MissingFile: images, weights or an earlier stage's output are missing.
        BadArtifact: the artifacts of earlier stages do not fit together.
        BadParams, BadData: as `unlabelled_paths`.
    """
    set_threads(job.params.run.threads)
    content = read_prepared(job.prepared, data_root=job.data_root)
    few_shot = dict(content.few_shot)
    paths = [*few_shot, *unlabelled_paths(job, content)]
    table = _outputs(job, content, paths, hooks)
    intact = np.isfinite(table).all(axis=1)
    count, taught = len(content.classes), len(content.taught)
    features = table[:, : -2 * count]
    probabilities = [_softmax(table[:, -2 * count : -count]), _softmax(table[:, -count:])]
    mean = np.mean(probabilities, axis=0)
    is_labelled = np.arange(len(paths)) < len(few_shot)
    rows = np.flatnonzero(~is_labelled & intact & (mean.argmax(axis=1) < taught))
    best = mean[rows].argmax(axis=1)
    return Pool(
        tuple(paths[row] for row in rows),
        content.classes,
        dict(zip(MODELS, (each[rows, best] for each in probabilities), strict=True)),
        Candidates(
            probabilities=mean[rows],
            features=features[rows],
            labelled=features[is_labelled & intact],
            counts=np.bincount([*few_shot.values()], minlength=count),
        ),
    )


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _outputs(job: Job, content: Prepared, paths: Sequence[str], hooks: Hooks) -> Array:
    """Return the teacher's features and the logits of both models, (M, D + 2C).

    They are read from the feature cache if they are there. Rows of corrupt images that are skipped
    are NaN.
    """
    cache = jobs.features(job, "evaluate", hooks)
    if cache is None:
        return _computed(job, content, paths, hooks)
    place = cache.place("unlabelled", _cache_key(job, paths))
    table = cache.read(place, "outputs")
    if table is None:
        outputs = _computed(job, content, paths, hooks)
        table = torch.from_numpy(outputs)
        remedy = "raise run.features_gb"
        cache.make_room(place, outputs.nbytes, what="outputs of unlabelled images", remedy=remedy)
        cache.write(place, "outputs", table)
    return np.asarray(table.numpy())


def _cache_key(job: Job, paths: Sequence[str]) -> dict[str, object]:
    artifacts = (
        job.prepared / SUMS,
        job.teacher / "teacher.safetensors",
        job.vectors / VECTORS_FILE,
        job.student / "student.safetensors",
    )
    return {
        "artifacts": [file_hash(file, remedy="run `dvc repro`") for file in artifacts],
        "clips": [identity(clip.model, clip.weights) for clip in job.clips],
        "paths": paths,
        "precision": job.params.run.precision,
    }


@torch.inference_mode()
def _computed(job: Job, content: Prepared, paths: Sequence[str], hooks: Hooks) -> Array:
    compute = job.compute
    classifiers, _ = load_classifiers(job, content.classes, job.clips, compute)
    models = [classifiers[name] for name in MODELS]
    batches = ImageBatches(
        ImageStore(content.images), paths, eval_transform(*(model.preprocess for model in models)),
        batch_size=job.params.evaluate.batch_size, workers=compute.workers,
        on_corrupt=compute.on_corrupt,
    )  # fmt: skip
    device = torch.device(compute.device)
    width = models[0].vectors.vectors.shape[1] + 2 * len(content.classes)
    table = torch.full((len(paths), width), torch.nan, dtype=torch.float64)
    for batch in batches.in_order():
        views = [to_device(batch.views[model.preprocess], device) for model in models]
        with autocast(device, compute.precision):
            features = [
                model.encode(view).float() for model, view in zip(models, views, strict=True)
            ]
        logits = [_logits(model, each) for model, each in zip(models, features, strict=True)]
        table[batch.indices] = torch.cat([features[0].float(), *logits], dim=1).double().cpu()
        hooks.on_progress(int(batch.indices[-1]) + 1, len(paths))
    return np.asarray(table.numpy())


def _logits(model: Classifier, features: Tensor) -> Tensor:
    return model.vectors.logits(features.float(), logit_scale=model.logit_scale)
