"""Stage `teacher`: tune prompts of a large CLIP with few labels, or import a tuned teacher."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pd_core.core.artifacts import file_hash
from pd_core.core.errors import BadArtifact
from pd_core.core.hooks import OnNote
from pd_core.core.options import TeacherMethod
from pd_core.data.loading.prepared import read_prepared
from pd_core.models.class_texts import check_classes
from pd_core.models.clip import ClipTowers, load_clip
from pd_core.models.precision import set_threads
from pd_core.models.prompts import compile_blocks
from pd_core.models.published_checkpoint import import_teacher
from pd_core.models.teacher import Teacher
from pd_core.training.loop.checkpoints import History
from pd_core.training.loop.distributed import is_first
from pd_core.training.loop.fit import Run, store
from pd_core.training.loop.views import training_views
from pd_core.training.teacher.check import failure
from pd_core.training.teacher.config import OriginalParams, TeacherConfig
from pd_core.training.teacher.prompt_tuning import frozen_features, tune

FILE = "teacher.safetensors"


def run(prepared: Path, out: Path, config: TeacherConfig, run: Run) -> Teacher:
    """Make the teacher of a prepared data set, and store it.

    Only the few-shot images are read; in the protocol base-to-novel all are of base classes.

    Args:
        prepared: output folder of the stage `prepare`.
        out: folder that `teacher.safetensors` and `history.json` are written to.
        config: of the teacher.
        run: the surroundings; its checkpoints are outside `out`.

    Returns:
        The teacher that was stored.

    Raises:
        MissingFile: images, weights or an earlier stage's output are missing.
        BadData: an image is corrupt.
        BadParams: a number is out of range, or two classes have the same text.
        Diverged, Interrupted: as in `fit`.
    """
    compute = run.compute
    set_threads(compute.threads)
    compile_blocks(on=compute.compile)
    split = read_prepared(prepared, data_root=compute.data_root)
    towers = load_clip(config.model, config.weights, device=compute.device)
    history: History = []
    _check_classes(split.classes, towers, config, run.hooks.on_note)
    if config.original is not None:
        teacher = _imported(config.original, towers, config, run.hooks.on_note)
    elif config.method is TeacherMethod.CLIP:
        teacher = Teacher(towers, template=config.template).eval()
    else:
        paths = [path for path, _ in split.few_shot]
        labels = torch.tensor([label for _, label in split.few_shot])
        model = towers.preprocess
        views = training_views(prepared, split.images, paths, model, config, compute)
        frozen = None
        if config.method is TeacherMethod.PROMPTSRC:
            frozen = frozen_features(towers, views, split.taught, config, run)
        teacher, history = tune(
            towers, views.batches, labels, split.taught, config, run, frozen=frozen
        )
    store(teacher, history, out / FILE, run)
    if history and is_first() and (problem := failure(teacher, split, compute)):
        run.hooks.on_note(problem)
    return teacher


def _check_classes(
    names: Sequence[str], towers: ClipTowers, config: TeacherConfig, on_note: OnNote
) -> None:
    """Refuse classes that have the same text before any of them is tuned; note truncated texts."""
    length = 0 if config.method is TeacherMethod.CLIP else config.text_length
    for line in check_classes(
        names, config.model, towers.tokenize, template=config.template, prompt_length=length
    ):
        on_note(line)


def _imported(
    original: OriginalParams, towers: ClipTowers, config: TeacherConfig, on_note: OnNote
) -> Teacher:
    """Import a checkpoint of the published code, whose prompts have the configured sizes."""
    path = Path(original.path)
    sha256 = file_hash(path)
    if sha256 != original.sha256:
        raise BadArtifact(
            f"'{path}' has the hash {sha256}, not {original.sha256}; give the file that was"
            " meant, or this hash as teacher.original.sha256"
        )
    imported = import_teacher(
        path, towers, text_depth=config.text_depth, text_length=config.text_length,
        image_depth=config.image_depth, image_length=config.image_length, template=config.template,
    )  # fmt: skip
    for note in imported.notes:
        on_note(note)
    return imported.model
