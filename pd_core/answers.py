"""The teachers' answers to all views that a student will be shown, from a store.

Once they are there, distillation does not touch the large towers (paper, section 3.3: the teacher
is frozen), and every student, temperature, weight and projector is trained on the same answers.

Shapes: B images, C classes, D the teacher's joint width.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from pd_core.checkpoints import Checkpoints
from pd_core.class_vectors import ClassVectors
from pd_core.feature_store import FeatureStore
from pd_core.fit import OnProgress
from pd_core.options import Form, Precision
from pd_core.supervision import Recorded, Supervisor, make_targets
from pd_core.views import Encode, RecordedViews, TrainingViews

Load = Callable[[], Sequence[Supervisor]]


def teachers_answers(
    store: FeatureStore,
    vectors: ClassVectors,
    views: TrainingViews,
    load: Load,
    *,
    teachers: Sequence[Sequence[str]],
    epochs: int,
    form: Form,
    precision: Precision,
    device: torch.device,
    checkpoints: Checkpoints | None = None,
    on_progress: OnProgress | None = None,
) -> list[Recorded]:
    """Make sure that the store has every teacher's answers to all views.

    Logits are stored where there are fewer classes than features have numbers, and if there are
    several teachers; features otherwise, and if they are what is imitated. In half precision
    logits are stored relative to the largest, which no softmax notices and which keeps those that
    matter precise.

    Args:
        store: where they are kept.
        vectors: the first teacher's, of the C classes.
        views: those of the training; the shape of their batches decides the last bits.
        load: loads the teachers; called only if answers are missing.
        teachers: the identity of each teacher and its class vectors.
        epochs: with views of their own.
        form: what the student imitates.
        precision: what the towers compute in.
        device: where to compute.
        checkpoints: say whether the run is to end; None: it is not.
        on_progress: called with batches done and batches in all.

    Returns:
        The answers of each teacher.

    Raises:
        BadParams: they take more than the store may.
        NoSpace: the disk has no room for them.
        Interrupted: the run was told to end.
    """
    classes, width = len(vectors.names), vectors.vectors.shape[1]
    features = form is not Form.LOGITS_KL or (len(teachers) == 1 and classes > width)
    what = "features" if features else "logits"
    loaded: list[Supervisor] = []

    def encoder(number: int) -> Encode:
        loaded.extend(load() if not loaded else ())
        return _answering(loaded[number], features=features, half=store.half, at=precision)

    answers = []
    for number, teacher in enumerate(teachers):
        decisive = {"teacher": teacher, "names": vectors.names, "precision": precision}
        record = RecordedViews.of(
            views, store, f"teacher-{what}", decisive,
            width=width if features else classes, device=device,
        )  # fmt: skip
        record.complete(
            epochs, views.batches, partial(encoder, number), what=f"the teacher's {what}",
            checkpoints=checkpoints, on_progress=on_progress,
        )  # fmt: skip
        answers.append(Recorded(record, vectors.to(device) if features else None))
    return answers


def _answering(one: Supervisor, *, features: bool, half: bool, at: Precision) -> Encode:
    form = Form.FEATURES_L1 if features else Form.LOGITS_KL

    def answer(images: Tensor) -> Tensor:
        numbers = make_targets([one], images, form=form, precision=at)
        if half and not features:
            return numbers - numbers.amax(dim=1, keepdim=True)
        return numbers

    return answer
