"""What the frozen CLIP says beside a teacher that is tuned, from a store (PromptSRC, section 3.1).

Shapes: B images, C classes, D the joint width.
"""

from collections.abc import Sequence

from torch import Tensor

from pd_core.checkpoints import Checkpoints
from pd_core.feature_store import FeatureStore
from pd_core.fit import OnProgress
from pd_core.models.clip import ClipTowers
from pd_core.models.compute import autocast
from pd_core.models.teacher import Teacher
from pd_core.options import Precision
from pd_core.parallel import from_first
from pd_core.tuning import TEMPLATES, frozen_text_features
from pd_core.views import RecordedViews, TrainingViews


def frozen_texts(
    store: FeatureStore,
    towers: ClipTowers,
    names: Sequence[str],
    *,
    clip: Sequence[str],
    templates: int = TEMPLATES,
) -> Tensor:
    """Return what `frozen_text_features` does, computed once for a CLIP, names and templates.

    Args:
        store: where it is kept, in full precision.
        towers: the frozen CLIP.
        names: C names of the classes.
        clip: the identity of the CLIP.
        templates: how many of OpenAI's templates are averaged.

    Returns:
        (C, D), unit length, on the towers' device.
    """
    decisive = {"clip": clip, "names": list(names), "templates": templates}
    place = store.place("frozen-text", decisive)

    def find() -> Tensor:
        known = store.read(place, "all")
        if known is None:
            known = frozen_text_features(towers, names, templates=templates).cpu()
            what = "the frozen text features"
            store.make_room(place, known.nbytes, what=what, remedy="free some")
            store.write(place, "all", known)
        return known

    return from_first(find).to(towers.device)


def frozen_images(
    store: FeatureStore,
    towers: ClipTowers,
    views: TrainingViews,
    *,
    clip: Sequence[str],
    epochs: int,
    precision: Precision,
    checkpoints: Checkpoints | None = None,
    on_progress: OnProgress | None = None,
) -> RecordedViews:
    """Make sure that the store has the frozen image features of all views.

    Args:
        store: where they are kept.
        towers: the frozen CLIP.
        views: those of the training; the shape of their batches decides the last bits.
        clip: the identity of the CLIP.
        epochs: with views of their own.
        precision: what the tower computes in.
        checkpoints: say whether the run is to end; None: it is not.
        on_progress: called with batches done and batches in all.

    Raises:
        BadParams: they take more than the store may.
        NoSpace: the disk has no room for them.
        Interrupted: the run was told to end.
    """
    zero_shot = Teacher(towers).eval()

    def encode(images: Tensor) -> Tensor:
        with autocast(images.device, precision):
            return zero_shot.frozen_image_features(images)

    record = RecordedViews.of(
        views, store, "frozen-images", {"clip": clip, "precision": precision},
        width=towers.joint_width, device=towers.device,
    )  # fmt: skip
    record.complete(
        epochs, views.batches, lambda: encode, what="the frozen image features",
        checkpoints=checkpoints, on_progress=on_progress,
    )  # fmt: skip
    return record
