"""Check of a teacher on the labels that it was tuned on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pd_core.core.config import Compute
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, eval_transform
from pd_core.data.loading.prepared import Prepared
from pd_core.models.class_vectors import Classifier, logits_of, tuned, zero_shot
from pd_core.models.teacher import Teacher

SAMPLE = 256  # labelled images, evenly spread

_BATCH = 64  # memory only, not the result
_LEVEL = 0.05  # of the test against chance
_SLIGHT = 0.2  # kappa: agreement below it is at most slight (Landis and Koch, 1977)


@dataclass(frozen=True)
class Agreement:
    """Predictions and labels of N images.

    Attributes:
        images: N.
        correct: predictions that are right.
        chance: expected share of these, if predictions did not depend on the labels.
        predicted: number of different classes that are predicted.
    """

    images: int
    correct: int
    chance: float
    predicted: int

    @property
    def share(self) -> float:
        """Share of correct predictions, 0 to 1."""
        return self.correct / self.images

    @property
    def is_chance(self) -> bool:
        """True if the predictions are no better than chance.

        With few labels a test alone would call good predictions so. Therefore kappa, the accuracy
        on a scale from chance to 1, has to be small as well.
        """
        if self.chance == 1:  # all labels and predictions are of one class
            return False
        from scipy.stats import binomtest

        kappa = (self.share - self.chance) / (1 - self.chance)
        p = binomtest(self.correct, self.images, self.chance, alternative="greater").pvalue
        return bool(kappa < _SLIGHT and p > _LEVEL)


def agreement(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> Agreement:
    """Compare predictions with labels, (N,) each."""
    classes = int(max(labels.max(), predicted.max())) + 1
    given, chosen = (np.bincount(each, minlength=classes) for each in (labels, predicted))
    return Agreement(
        images=len(labels),
        correct=int((labels == predicted).sum()),
        chance=float(given @ chosen) / len(labels) ** 2,
        predicted=int((chosen > 0).sum()),
    )


def failure(teacher: Teacher, split: Prepared, compute: Compute) -> str | None:
    """Return why a teacher has learned nothing from its labels, and what helps; None if it has.

    Args:
        teacher: in evaluation mode.
        split: the prepared data set.
        compute: device, precision and the like.

    Raises:
        MissingFile: an image is missing.
        BadData: an image is corrupt.
    """
    measured = _on_labels(tuned(teacher, split.taught), split, compute)
    if not measured.is_chance:
        return None
    before = _on_labels(zero_shot(teacher.towers, split.taught), split, compute)
    what = (
        f"predicts one class for all {measured.images}"
        if measured.predicted == 1
        else f"is right on {100 * measured.share:.1f}% of {measured.images}"
    )
    return (
        f"caution: the teacher {what} labelled images that it was tuned on, where chance gives"
        f" {100 * measured.chance:.1f}%; a student cannot learn from it. {_cause(before)}"
    )


def _cause(before: Agreement) -> str:
    """Return cause and remedy, by the agreement of the same CLIP without tuning."""
    share = f"{100 * before.share:.1f}%"
    if before.is_chance:
        return (
            f"Its CLIP does not recognise these classes untuned either ({share}): choose another"
            " teacher.model with its weights, describe the images in teacher.template, and check"
            " class names and labels"
        )
    return (
        f"Untuned it is right on {share}, so that the tuning failed: lower teacher.lr, or change"
        " teacher.epochs"
    )


def _on_labels(classifier: Classifier, split: Prepared, compute: Compute) -> Agreement:
    """Classify a sample of the few labelled images among the taught classes."""
    count = len(split.few_shot)
    size = min(SAMPLE, count)
    items = [split.few_shot[number * count // size] for number in range(size)]
    batches = ImageBatches(
        ImageStore(split.images), [path for path, _ in items],
        eval_transform(classifier.preprocess), batch_size=_BATCH, workers=compute.workers,
        on_corrupt=compute.on_corrupt,
    )  # fmt: skip
    device = torch.device(compute.device)
    logits = logits_of({"teacher": classifier}, batches, device, compute.precision)["teacher"]
    labels = np.array([items[position][1] for position in batches.intact])
    return agreement(labels, logits.argmax(axis=1))
