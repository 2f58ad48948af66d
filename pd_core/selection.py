"""Which epoch's student is kept, when it is not simply the last."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pd_core.class_vectors import ClassVectors
from pd_core.classifier import Classifier, logits_of
from pd_core.data.images import ImageBatches, ImageStore
from pd_core.data.prepared import Labelled, Prepared, read_prepared
from pd_core.data.transforms import eval_transform
from pd_core.errors import BadData
from pd_core.models.student import Student
from pd_core.options import OnCorrupt, Precision, Selection

Scorer = Callable[[Student, ClassVectors], float]

_BATCH = 256  # memory only, not the result


def make_scorer(
    prepared: Path,
    selection: Selection,
    *,
    image_size: int,
    data_root: Path = Path(),
    workers: int = 0,
    on_corrupt: OnCorrupt = OnCorrupt.FAIL,
    precision: Precision = Precision.FP32,
) -> Scorer | None:
    """Make what scores a student after each epoch, by accuracy on labelled images.

    Only the classes that the teacher was taught are told apart, as in the
    published code, which looks at the base classes' test images.

    Args:
        prepared: folder written by the stage `prepare`; not read for `last`.
        selection: which images are looked at.
        image_size: of the student's tower, in pixels.
        data_root: folder that holds the photo data sets.
        workers: processes that decode pictures; they change nothing.
        on_corrupt: what to do about a damaged picture; a skipped one is not looked at.
        precision: what the tower computes in.

    Returns:
        A function of the student and the vectors that it is compared with, to
        percent; None if the last epoch is kept.

    Raises:
        BadData: there are no such images.
    """
    if selection is Selection.LAST:
        return None
    content = read_prepared(prepared, data_root=data_root)
    items = _held_out(content, selection)
    labels = np.array([label for _, label in items])
    taught = range(len(content.taught))
    batches = ImageBatches(
        ImageStore(content.images),
        [path for path, _ in items],
        eval_transform(image_size),
        batch_size=_BATCH,
        workers=workers,
        on_corrupt=on_corrupt,
    )

    def score(student: Student, vectors: ClassVectors) -> float:
        classifier = Classifier(student, vectors.select(taught), student.logit_scale)
        device = student.towers.device
        logits = logits_of({"student": classifier}, batches, device, precision)["student"]
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
