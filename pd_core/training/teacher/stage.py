"""Stage `teacher`: tune prompts of a large CLIP with few labels, or import a tuned teacher.

The frozen CLIP's features beside the tuned ones (PromptSRC, section 3.1) come from a cache.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from pd_core.core.artifacts import file_hash, write_json
from pd_core.core.atomic import write_folder
from pd_core.core.errors import BadArtifact
from pd_core.core.options import Computed, OnCorrupt, Precision, TeacherMethod
from pd_core.data.loading.prepared import read_prepared
from pd_core.models.clip import ClipTowers, load_clip
from pd_core.models.precision import autocast, set_threads
from pd_core.models.prompts import compile_blocks
from pd_core.models.published_checkpoint import import_teacher
from pd_core.models.teacher import TEMPLATE, Teacher
from pd_core.training.loop.checkpoints import Checkpoints, Metrics
from pd_core.training.loop.distributed import from_first, is_first
from pd_core.training.loop.feature_cache import FeatureStore, identity, required
from pd_core.training.loop.fit import OnEpoch, OnLoss, OnProgress
from pd_core.training.loop.views import (
    RecordedViews,
    TrainingViews,
    distinct_epochs,
    training_views,
)
from pd_core.training.teacher.prompt_tuning import (
    EPOCHS,
    TEMPLATES,
    TuneOptions,
    frozen_text_features,
    tune_teacher,
)


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


FILE = "teacher.safetensors"


class OriginalFile(TypedDict):
    """A checkpoint of the published code, and the hash that it has to have."""

    path: str
    sha256: str


def run(
    prepared: Path,
    out: Path,
    *,
    model: str,
    weights: Path | str | None = None,
    data_root: Path = Path(),
    method: TeacherMethod = TeacherMethod.PROMPTSRC,
    original: OriginalFile | None = None,
    batch_size: int = 4,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    flip: bool = True,
    seed: int = 1,
    threads: int = 1,
    workers: int = 0,
    on_corrupt: OnCorrupt = OnCorrupt.FAIL,
    device: torch.device | str = "cpu",
    precision: Precision = Precision.FP32,
    compile: bool = False,
    frozen_features: Computed = Computed.ONLINE,
    features: FeatureStore | None = None,
    checkpoints: Checkpoints | None = None,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
    on_loss: OnLoss | None = None,
    on_note: Callable[[str], None] | None = None,
    **options: Unpack[TuneOptions],
) -> Teacher:
    """Stage `teacher`: read a prepared data set, make its teacher, store it.

    Of the pictures only the few-shot ones are read; in the protocol
    base-to-novel they are all of base classes.

    Args:
        prepared: folder written by the stage `prepare`.
        out: folder to write `teacher.safetensors` and `history.json` into.
        model: name of the teacher's CLIP.
        weights: of that CLIP.
        data_root: folder that holds the photo data sets.
        method: how the teacher comes about.
        original: a teacher of the published code, taken instead of training one.
        batch_size: images per step.
        crop_scale: least and largest part of a picture that a view shows.
        flip: whether half of the views are mirrored.
        seed: of prompts, order and views.
        threads: CPU threads; they decide the last bits.
        workers: processes that decode pictures; they change nothing.
        on_corrupt: what to do about a damaged picture; a skipped one is counted.
        device: where to compute.
        precision: what the towers compute in.
        compile: whether torch compiles the towers' blocks.
        frozen_features: whether the frozen image tower looks at the views in training, or before.
        features: where what frozen towers say is kept; the texts' features are in either case.
        checkpoints: outside `out`; they make an interrupted run resumable.
        on_epoch: called after each epoch with its metrics.
        on_progress: called after each step with steps done and steps in all.
        on_loss: as in `fit`.
        on_note: called with what there is to say about an imported teacher.
        **options: further numbers of `tune_teacher`.

    Returns:
        The teacher that was stored.

    Raises:
        MissingFile: pictures, weights or an earlier stage are missing.
        BadData: a picture is damaged.
        BadParams: a number is out of range.
        Diverged, Interrupted: as in `fit`.
    """
    set_threads(threads)
    compile_blocks(on=compile)
    split = read_prepared(prepared, data_root=data_root)
    towers = load_clip(model, weights, device=device)
    history: list[Metrics] = []
    match method:
        case _ if original is not None:
            teacher = _import(original, towers, options, on_note)
        case TeacherMethod.CLIP:
            teacher = Teacher(towers, template=options.get("template", TEMPLATE)).eval()
        case _:
            views = training_views(
                prepared, split.images, [path for path, _ in split.few_shot],
                image_size=towers.image_size, batch_size=batch_size, crop_scale=crop_scale,
                flip=flip, seed=seed, workers=workers, on_corrupt=on_corrupt,
            )  # fmt: skip
            text, images = None, None
            if method is TeacherMethod.PROMPTSRC and features is not None:
                text = frozen_texts(
                    features, towers, split.taught,
                    clip=identity(model, weights), templates=options.get("templates", TEMPLATES),
                )  # fmt: skip
            if method is TeacherMethod.PROMPTSRC and frozen_features is Computed.CACHED:
                images = frozen_images(
                    required(features), towers, views,
                    clip=identity(model, weights), precision=precision,
                    epochs=distinct_epochs(
                        options.get("epochs", EPOCHS), options.get("view_epochs")
                    ),
                    checkpoints=checkpoints, on_progress=on_progress,
                )  # fmt: skip
            teacher, history = tune_teacher(
                towers,
                views.batches,
                torch.tensor([label for _, label in split.few_shot]),
                split.taught,
                method=method,
                frozen_text=text,
                frozen_images=images,
                seed=seed,
                precision=precision,
                checkpoints=checkpoints,
                on_epoch=on_epoch,
                on_progress=on_progress,
                on_loss=on_loss,
                **options,
            )
    if is_first():
        with write_folder(out) as folder:
            teacher.save(folder / FILE)
            write_json(folder / "history.json", history)
        if checkpoints is not None:
            checkpoints.remove()
    return teacher


def _import(
    original: OriginalFile,
    towers: ClipTowers,
    options: TuneOptions,
    on_note: Callable[[str], None] | None,
) -> Teacher:
    """Read a teacher of the published code, whose prompts are as large as the parameters say."""
    path = Path(original["path"])
    found = file_hash(path)
    if found != original["sha256"]:
        raise BadArtifact(
            f"'{path}' has the hash {found}, not {original['sha256']}; give the file that was"
            " meant, or this hash as teacher.original.sha256"
        )
    imported = import_teacher(
        path,
        towers,
        text_depth=options.get("text_depth"),
        text_length=options.get("text_length"),
        image_depth=options.get("image_depth"),
        image_length=options.get("image_length"),
        template=options.get("template", TEMPLATE),
    )
    for note in imported.notes:
        if on_note is not None:
            on_note(note)
    return imported.model
