"""Stage `student`: distil the teacher into the student on unlabelled images."""

from collections.abc import Sequence
from functools import partial

from pd_core.core.config import ClipConfig, StagePaths
from pd_core.core.errors import FailedRun
from pd_core.core.options import Computed, TeacherWeighting
from pd_core.data.loading.prepared import image_root, read_unlabelled
from pd_core.models.class_texts import check_classes
from pd_core.models.class_vectors import FILE as VECTORS_FILE
from pd_core.models.class_vectors import ClassVectors, distilled
from pd_core.models.clip import load_clip
from pd_core.models.precision import set_threads
from pd_core.models.prompts import compile_blocks
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.training.loop.fit import Run, store
from pd_core.training.loop.views import training_views
from pd_core.training.student.config import StudentConfig
from pd_core.training.student.distillation import (
    check_agreement,
    distill,
    make_scorer,
    untrained_student,
)
from pd_core.training.student.targets import (
    TEACHER_FILE,
    Ensemble,
    LiveTeacher,
    TargetSource,
    cached_teachers,
    check_form,
    identities,
    load_further,
)

FILE = "student.safetensors"


def run(paths: StagePaths, config: StudentConfig, teacher: ClipConfig, run: Run) -> Student:
    """Distil the teacher on a data set's unlabelled images, and store the student.

    No label is read, unless labels are to select the epoch.

    Args:
        paths: folders of the stages; `student.safetensors` and `history.json` are written.
        config: of the student.
        teacher: the teacher's CLIP.
        run: the surroundings; its checkpoints are outside the outputs.

    Returns:
        The student that was stored.

    Raises:
        MissingFile: images, weights or an earlier stage's output are missing.
        BadData: an image is corrupt.
        BadArtifact: the artifacts of earlier stages do not fit together.
        BadParams: a number is out of range, two options exclude each other, or the student's CLIP
            has the same text for two classes.
        Diverged, Interrupted: as in `fit`.
        FailedRun: the student agrees with its teacher no better than chance, and this is no
            rehearsal.
    """
    compute = run.compute
    set_threads(compute.threads)
    compile_blocks(on=compute.compile)
    check_form(config)
    towers = load_clip(config.model, config.weights, device=compute.device)
    vectors = ClassVectors.load(
        paths.vectors / VECTORS_FILE, remedy=f"run `dvc repro class_vectors@{paths.vectors.name}`"
    )
    for line in check_classes(vectors.names, config.model, towers.tokenize):
        run.hooks.on_note(line)
    views = training_views(
        paths.prepared, image_root(paths.prepared, data_root=compute.data_root),
        read_unlabelled(paths.prepared), towers.preprocess, config, compute,
    )  # fmt: skip
    load = partial(_load_teachers, paths, config, teacher, vectors, run)
    teachers: Sequence[TargetSource]
    batches = views.batches
    match config.teacher_targets:
        case Computed.ONLINE:
            teachers = live = load()
            batches = views.shown_to([each.teacher.towers.preprocess for each in live])
        case Computed.CACHED:
            keys = identities(
                teacher, paths.teacher / TEACHER_FILE, paths.vectors / VECTORS_FILE,
                config.further_teachers,
            )  # fmt: skip
            teachers = cached_teachers(load, keys, vectors, views, config, run)
    student = untrained_student(towers, vectors, config, compute.seed)
    history = distill(
        student,
        Ensemble(teachers, config.temperature, config.teacher_weighting),
        batches,
        config,
        run,
        scorer=make_scorer(paths.prepared, config.selection, towers.preprocess, compute),
    )
    unweighted = Ensemble(teachers, 1.0, TeacherWeighting.EQUAL)
    try:
        check_agreement(distilled(student, vectors), unweighted, batches, compute)
    except FailedRun as error:
        if not run.is_rehearsal:
            raise
        run.hooks.on_note(f"passed over in a rehearsal: {error}")
    store(student, history, paths.student / FILE, run)
    return student


def _load_teachers(
    paths: StagePaths,
    config: StudentConfig,
    clip: ClipConfig,
    vectors: ClassVectors,
    run: Run,
) -> list[LiveTeacher]:
    """Load all teachers."""
    compute = run.compute
    large = load_clip(clip.model, clip.weights, device=compute.device)
    remedy = f"run `dvc repro teacher@{paths.teacher.name}`"
    first = Teacher.load(paths.teacher / TEACHER_FILE, large, remedy=remedy)
    return [
        LiveTeacher(first, vectors.to(compute.device), compute.precision),
        *load_further(config.further_teachers, vectors.names, large, compute),
    ]
