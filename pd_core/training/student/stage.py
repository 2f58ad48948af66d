"""Stage `student`: distil the teacher into the student on unlabelled images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch

from pd_core.core.artifacts import file_hash, write_json
from pd_core.core.atomic import write_folder
from pd_core.core.errors import BadParams
from pd_core.core.options import Computed, Form, OnCorrupt, Precision, Selection
from pd_core.data.loading.prepared import image_root, read_unlabelled
from pd_core.models.class_vectors import FILE as VECTORS_FILE
from pd_core.models.class_vectors import ClassVectors, distilled
from pd_core.models.clip import load_clip
from pd_core.models.precision import set_threads
from pd_core.models.prompts import compile_blocks
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.training.loop.checkpoints import Checkpoints
from pd_core.training.loop.distributed import is_first
from pd_core.training.loop.feature_cache import FeatureStore, identity, required
from pd_core.training.loop.fit import OnEpoch, OnLoss, OnProgress
from pd_core.training.loop.views import distinct_epochs, training_views
from pd_core.training.student.distillation import (
    EPOCHS,
    LEAST_BATCH,
    DistillOptions,
    distill_student,
)
from pd_core.training.student.scoring import check_agreement, make_scorer
from pd_core.training.student.targets import (
    TEACHER_FILE,
    FurtherTeacher,
    Recorded,
    Supervisor,
    check_views,
    load_further,
    teachers_answers,
)

FILE = "student.safetensors"


def run(
    prepared: Path,
    teacher: Path,
    vectors: Path,
    out: Path,
    *,
    model: str,
    weights: Path | str | None = None,
    teacher_model: str,
    teacher_weights: Path | str | None = None,
    further_teachers: Sequence[FurtherTeacher] = (),
    data_root: Path = Path(),
    batch_size: int = 8,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    flip: bool = True,
    seed: int = 1,
    threads: int = 1,
    workers: int = 0,
    on_corrupt: OnCorrupt = OnCorrupt.FAIL,
    device: torch.device | str = "cpu",
    precision: Precision = Precision.FP32,
    compile: bool = False,
    teacher_targets: Computed = Computed.ONLINE,
    features: FeatureStore | None = None,
    checkpoints: Checkpoints | None = None,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
    on_loss: OnLoss | None = None,
    **options: Unpack[DistillOptions],
) -> Student:
    """Stage `student`: distil the teacher on a data set's unlabelled pictures.

    Of the prepared data set only the list of unlabelled pictures and their
    place are read: no label can get in, unless labels are to choose the epoch.

    Args:
        prepared: folder written by the stage `prepare`.
        teacher: folder written by the stage `teacher`.
        vectors: folder written by the stage `class_vectors`.
        out: folder to write `student.safetensors` and `history.json` into.
        model: name of the student's CLIP.
        weights: of that CLIP.
        teacher_model: name of the teacher's CLIP.
        teacher_weights: of that CLIP.
        further_teachers: more teachers beside it.
        data_root: folder that holds the photo data sets.
        batch_size: images per step, at least 2 (batch norm).
        crop_scale: least and largest part of a picture that a view shows.
        flip: whether half of the views are mirrored.
        seed: of prompts, projector, order and views.
        threads: CPU threads; they decide the last bits.
        workers: processes that decode pictures; they change nothing.
        on_corrupt: what to do about a damaged picture; a skipped one is counted.
        device: where to compute.
        precision: what the towers compute in.
        compile: whether torch compiles the towers' blocks.
        teacher_targets: whether the teachers look at the views in training, or before it.
        features: where their answers are kept in the latter case.
        checkpoints: outside `out`; they make an interrupted run resumable.
        on_epoch: called after each epoch with its metrics.
        on_progress: called after each step with steps done and steps in all.
        on_loss: as in `fit`.
        **options: further numbers of `distill_student`.

    Returns:
        The student that was stored.

    Raises:
        MissingFile: pictures, weights or an earlier stage are missing.
        BadData: a picture is damaged.
        BadArtifact: the artifacts of earlier stages do not fit together.
        BadParams: a number is out of range.
        Diverged, Interrupted: as in `fit`.
        FailedRun: the student agrees with its teacher no better than chance.
    """
    if batch_size < LEAST_BATCH:
        raise BadParams(f"batch_size = {batch_size}; batch norm needs at least 2 images")
    set_threads(threads)
    compile_blocks(on=compile)
    towers = load_clip(model, weights, device=device)
    known = ClassVectors.load(
        vectors / VECTORS_FILE, remedy=f"run `dvc repro class_vectors@{vectors.name}`"
    )
    views = training_views(
        prepared, image_root(prepared, data_root=data_root), read_unlabelled(prepared),
        image_size=towers.image_size, batch_size=batch_size, crop_scale=crop_scale,
        flip=flip, seed=seed, workers=workers, on_corrupt=on_corrupt,
    )  # fmt: skip

    def load() -> list[Supervisor]:
        large = load_clip(teacher_model, teacher_weights, device=device)
        tuned = Teacher.load(
            teacher / TEACHER_FILE, large, remedy=f"run `dvc repro teacher@{teacher.name}`"
        )
        further = load_further(further_teachers, known.names, first=large, device=device)
        supervisors = [Supervisor(tuned, known.to(device)), *further]
        check_views(supervisors, towers.image_size)
        return supervisors

    supervisors: Sequence[Supervisor | Recorded]
    match teacher_targets:
        case Computed.ONLINE:
            supervisors = load()
        case Computed.CACHED:
            first = [*identity(teacher_model, teacher_weights), file_hash(teacher / TEACHER_FILE)]
            supervisors = teachers_answers(
                required(features), known, views, load,
                teachers=[
                    [*first, file_hash(vectors / VECTORS_FILE)],
                    *(_identity(one, first[:2]) for one in further_teachers),
                ],
                epochs=distinct_epochs(options.get("epochs", EPOCHS), options.get("view_epochs")),
                form=options.get("form", Form.LOGITS_KL), precision=precision,
                device=towers.device, checkpoints=checkpoints, on_progress=on_progress,
            )  # fmt: skip
    selection = options.get("selection", Selection.LAST)
    scorer = make_scorer(
        prepared, selection, image_size=towers.image_size, data_root=data_root,
        workers=workers, on_corrupt=on_corrupt, precision=precision,
    )  # fmt: skip
    online = [one for one in supervisors if isinstance(one, Supervisor)]
    student, history = distill_student(
        towers,
        online[0].teacher if online else None,
        known,
        views.batches,
        further=online[1:],
        recorded=[one for one in supervisors if isinstance(one, Recorded)],
        scorer=scorer,
        seed=seed,
        precision=precision,
        checkpoints=checkpoints,
        on_epoch=on_epoch,
        on_progress=on_progress,
        on_loss=on_loss,
        **options,
    )
    judge = distilled(student, known)
    check_agreement(judge, supervisors, views.batches, device=towers.device, precision=precision)
    if is_first():
        with write_folder(out) as folder:
            student.save(folder / FILE)
            write_json(folder / "history.json", history)
        if checkpoints is not None:
            checkpoints.remove()
    return student


def _identity(one: FurtherTeacher, first: Sequence[str]) -> list[str]:
    """Say what decides a further teacher's answers, beside the classes' names."""
    clip = identity(one["model"], one["weights"]) if one["model"] else list(first)
    return clip if one["folder"] is None else [*clip, file_hash(Path(one["folder"]) / TEACHER_FILE)]
