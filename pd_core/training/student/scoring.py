"""Scores of a student during distillation: agreement with its teacher, and epoch selection."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pd_core.core.config import Compute
from pd_core.core.errors import BadData, FailedRun
from pd_core.core.options import Selection
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, eval_transform
from pd_core.data.loading.prepared import Labelled, Prepared, read_prepared
from pd_core.models.class_vectors import Classifier, ClassVectors, logits_of
from pd_core.models.precision import autocast
from pd_core.models.student import Student
from pd_core.training.loop.distributed import gathered
from pd_core.training.loop.fit import Batches
from pd_core.training.student.targets import TargetSource

SAMPLE = 256  # pictures; the teacher has to look at them once more

_DEVIATIONS = 2.0  # above chance; a student that guesses is 2 above it in one of 44 runs


@torch.no_grad()
def check_agreement(
    student: Classifier,
    targets: TargetSource,
    batches: Batches,
    compute: Compute,
) -> None:
    """Refuse a student that agrees with its teacher no better than chance.

    Chance is how often two judges agree who give each class as often as these do, but without
    looking at the pictures (as in Cohen's kappa): a student that names one class whatever it sees
    is no better.

    Args:
        student: in evaluation mode, as it will be used.
        targets: its teacher, or several.
        batches: views of unlabelled pictures; the first of an epoch are looked at.
        compute: device and precision of the towers.

    Raises:
        FailedRun: it does not.
    """
    device = torch.device(compute.device)
    mine, theirs, seen = [], [], 0
    for batch in batches.epoch(1):
        shown = len(gathered(batch.indices))
        if shown == 0:
            continue
        on_device = batch.to(device)
        with autocast(device, compute.precision):
            logits = student.logits(on_device.images)  # (B, C)
        mine.append(gathered(logits.argmax(dim=1)).cpu())
        theirs.append(gathered(targets.logits(on_device).argmax(dim=1)).cpu())
        seen += shown
        if seen >= SAMPLE:
            break
    agreement, chance = _agreement(torch.cat(mine), torch.cat(theirs))
    least = chance + _DEVIATIONS * math.sqrt(chance * (1 - chance) / seen)
    if agreement < 1 and agreement <= least:
        raise FailedRun(
            f"the student agrees with its teacher on {100 * agreement:.1f}% of {seen} pictures,"
            f" and by chance it would on {100 * chance:.1f}%: this is not a model; lower"
            " student.lr, give it more epochs, or look at its teacher"
        )


def _agreement(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return how often two judges chose the same (N,), and how often they would by chance."""
    same = float((first == second).double().mean())
    classes = int(torch.maximum(first, second).max()) + 1
    shares = [torch.bincount(one, minlength=classes).double() / len(one) for one in (first, second)]
    return same, float((shares[0] * shares[1]).sum())


Scorer = Callable[[Student, ClassVectors], float]

_BATCH = 256  # memory only, not the result


def make_scorer(
    prepared: Path, selection: Selection, image_size: int, compute: Compute
) -> Scorer | None:
    """Make what scores a student after each epoch, by accuracy on labelled images.

    Only the classes that the teacher was taught are told apart, as in the
    published code, which looks at the base classes' test images.

    Args:
        prepared: folder written by the stage `prepare`; not read for `last`.
        selection: which images are looked at.
        image_size: of the student's tower, in pixels.
        compute: precision of the tower, and how images are read; a skipped one is not looked at.

    Returns:
        A function of the student and the vectors that it is compared with, to
        percent; None if the last epoch is kept.

    Raises:
        BadData: there are no such images.
    """
    if selection is Selection.LAST:
        return None
    content = read_prepared(prepared, data_root=compute.data_root)
    items = _held_out(content, selection)
    labels = np.array([label for _, label in items])
    taught = range(len(content.taught))
    batches = ImageBatches(
        ImageStore(content.images),
        [path for path, _ in items],
        eval_transform(image_size),
        batch_size=_BATCH,
        workers=compute.workers,
        on_corrupt=compute.on_corrupt,
    )

    def score(student: Student, vectors: ClassVectors) -> float:
        classifier = Classifier(student, vectors.select(taught), student.logit_scale)
        device = student.towers.device
        logits = logits_of({"student": classifier}, batches, device, compute.precision)["student"]
        return 100 * float((logits.argmax(axis=1) == labels[batches.intact]).mean())

    return score


def _held_out(prepared: Prepared, selection: Selection) -> Labelled:
    what = "validation" if selection is Selection.BEST_ON_VAL else "test"
    found = prepared.few_shot_val if selection is Selection.BEST_ON_VAL else prepared.test
    items = tuple((path, label) for path, label in found if label < len(prepared.taught))
    if not items:
        raise BadData(
            f"data set '{prepared.dataset}' has no labelled {what} images to choose an epoch by;"
            " add some, or set student.selection: last"
        )
    return items
