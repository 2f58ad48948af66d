"""Trainings and their stages by keyword; values left out are the paper's."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tiny
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pd_core.core.config import ClipConfig, Clips, Compute, Config, StagePaths
from pd_core.core.hooks import NO_HOOKS, Hooks
from pd_core.core.options import Augmentation, OnCorrupt, Precision, TeacherMethod, TeacherWeighting
from pd_core.data.loading.images import Batch
from pd_core.data.loading.prepared import Prepared
from pd_core.evaluation import evaluate
from pd_core.evaluation.metrics import EvaluateConfig
from pd_core.models.class_vectors import Classifier, ClassVectors
from pd_core.models.clip import ClipTowers
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.pipeline.stages.params import load_params
from pd_core.training.loop import fit as loop
from pd_core.training.loop.checkpoints import History
from pd_core.training.loop.fit import Batches, Run
from pd_core.training.student import distillation
from pd_core.training.student import stage as student_stage
from pd_core.training.student.config import FurtherTeacher, StudentConfig
from pd_core.training.student.targets import Ensemble, LiveTeacher, TargetSource
from pd_core.training.teacher import class_vectors as vectors_stage
from pd_core.training.teacher import prompt_tuning
from pd_core.training.teacher import stage as teacher_stage
from pd_core.training.teacher.config import TeacherConfig

PAPER = load_params(Path(__file__).parents[2] / "paper" / "params.yaml")
COMPUTE = Compute(
    data_root=Path(), seed=1, threads=1, device="cpu", precision=Precision.FP32, workers=0,
    on_corrupt=OnCorrupt.FAIL, augmentation=Augmentation.CPU, compile=False,
)  # fmt: skip
_HOOKS = {field.name for field in dataclasses.fields(Hooks)}

_Config = TypeVar("_Config", bound=Config)


def changed(config: _Config, values: Mapping[str, Any]) -> _Config:
    """Replace some values, unchecked."""
    assert set(values) <= set(type(config).model_fields)
    return config.model_copy(update=values)


def compute(**values: Any) -> Compute:
    """Return the tests' settings with some values replaced."""
    return changed(COMPUTE, values)


def teacher_config(**values: Any) -> TeacherConfig:
    """Return the paper's teacher with some values replaced."""
    return changed(PAPER.teacher, values)


def student_config(**values: Any) -> StudentConfig:
    """Return the paper's student with some values replaced."""
    if "further_teachers" in values:
        given = values["further_teachers"]
        further = (each if isinstance(each, Config) else FurtherTeacher(**each) for each in given)
        values["further_teachers"] = tuple(further)
    return changed(PAPER.student, values)


def run_of(values: dict[str, Any]) -> Run:
    """Pop the values of a training's surroundings, and make a `Run` of them."""

    def pop(names: set[str]) -> dict[str, Any]:
        return {name: values.pop(name) for name in names & set(values)}

    settings = compute(**pop(set(Compute.model_fields)))
    return Run(settings, Hooks(**pop(_HOOKS)), **pop({"checkpoints", "features", "is_rehearsal"}))


def batch(images: Tensor, indices: Tensor | None = None, epoch: int = 1, number: int = 0) -> Batch:
    """Make a batch of images."""
    positions = torch.arange(len(images)) if indices is None else indices
    return Batch(positions, {Preprocess(images.shape[-1]): images}, epoch, number)


def fit(
    module: nn.Module,
    step: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
    batches: Batches,
    *,
    averaging: Sequence[float] | None = None,
    score: Callable[[], float] | None = None,
    least_batch: int = 1,
    **values: Any,
) -> History:
    """Train a module; the step gets positions and images."""
    run = run_of(values)
    config = student_config(**values)
    return loop.fit(
        module, lambda each: step(each.indices, each.images), batches, config, run,
        averaging=averaging, score=score, least_batch=least_batch,
    )  # fmt: skip


def live(teacher: Teacher, vectors: ClassVectors, **values: Any) -> LiveTeacher:
    """Make a teacher without cache."""
    return LiveTeacher(teacher, vectors, compute(**values).precision)


def ensemble(*teachers: TargetSource, **values: Any) -> Ensemble:
    """Average teachers as configured for a student."""
    config = student_config(**values)
    return Ensemble(teachers, config.temperature, config.teacher_weighting)


def plain(*teachers: TargetSource) -> Ensemble:
    """Average teachers as for the check of the agreement."""
    return Ensemble(teachers, 1.0, TeacherWeighting.EQUAL)


def distill(
    towers: ClipTowers,
    teacher: Teacher,
    vectors: ClassVectors,
    batches: Batches,
    *,
    further: Sequence[TargetSource] = (),
    scorer: Any = None,
    **values: Any,
) -> tuple[Student, History]:
    """Distil teachers into a new student."""
    run = run_of(values)
    config = student_config(**values)
    first = LiveTeacher(teacher, vectors.to(towers.device), run.compute.precision)
    student = distillation.untrained_student(towers, vectors, config, run.compute.seed)
    targets = Ensemble([first, *further], config.temperature, config.teacher_weighting)
    history = distillation.distill(student, targets, batches, config, run, scorer=scorer)
    return student, history


def distillation_step(
    student: Student,
    images: Tensor,
    targets: Tensor,
    vectors: ClassVectors,
    *,
    precision: Precision = Precision.FP32,
    **values: Any,
) -> distillation.DistillationStep:
    """Compute the distillation loss for one batch."""
    config = student_config(**values)
    return distillation.distillation_step(
        student, images, targets, vectors, config=config, precision=precision
    )


def tune(
    towers: ClipTowers, batches: Batches, labels: Tensor, names: Sequence[str], **values: Any
) -> tuple[Teacher, History]:
    """Tune a new teacher."""
    run = run_of(values)
    config, frozen = teacher_config(**values), None
    if config.method is TeacherMethod.PROMPTSRC:
        frozen = prompt_tuning.Frozen(
            prompt_tuning.frozen_text_features(towers, names, config.templates),
            prompt_tuning.live_frozen_images(towers, run.compute.precision),
        )
    return prompt_tuning.tune(towers, batches, labels, names, config, run, frozen=frozen)


def promptsrc_step(
    teacher: Teacher,
    images: Tensor,
    labels: Tensor,
    *,
    frozen_image: Tensor | None = None,
    precision: Precision = Precision.FP32,
    tokens: Any,
    frozen_text: Tensor,
    **values: Any,
) -> prompt_tuning.PromptSRCStep:
    """Compute PromptSRC's loss for one batch."""
    if frozen_image is None:
        frozen_image = teacher.frozen_image_features(images)
    return prompt_tuning.promptsrc_step(
        teacher, images, labels, tokens=tokens, frozen_text=frozen_text, frozen_image=frozen_image,
        config=teacher_config(**values), precision=precision,
    )  # fmt: skip


def run_teacher(prepared: Path, out: Path, **values: Any) -> Teacher:
    """Run the stage `teacher`."""
    run = run_of(values)
    return teacher_stage.run(prepared, out, teacher_config(**values), run)


def run_student(
    prepared: Path,
    teacher: Path,
    vectors: Path,
    out: Path,
    *,
    teacher_model: str,
    teacher_weights: Path | str | None = None,
    **values: Any,
) -> Student:
    """Run the stage `student`."""
    run, clip = run_of(values), _clip(teacher_model, teacher_weights)
    paths = StagePaths(prepared, teacher, vectors, out, out)
    return student_stage.run(paths, student_config(**values), clip, run)


def run_evaluate(
    prepared: Path,
    teacher: Path,
    vectors: Path,
    student: Path,
    out: Path,
    *,
    model: str,
    weights: Path | str | None,
    teacher_model: str,
    teacher_weights: Path | str | None,
    models: Sequence[str] = evaluate.MODELS,
    **values: Any,
) -> dict[str, dict[str, float]]:
    """Run the stage `evaluate`."""
    run = run_of(values)
    paths = StagePaths(prepared, teacher, vectors, student, out)
    clips = Clips(_clip(model, weights), _clip(teacher_model, teacher_weights))
    config = evaluate_config(**values)
    return evaluate.run(paths, config, clips, run.compute, run.hooks, models)


def predict(classifiers: Mapping[str, Classifier], prepared: Prepared) -> evaluate.Predictions:
    """Classify the test images."""
    return evaluate.predict(classifiers, prepared, evaluate_config(split="test"), COMPUTE, NO_HOOKS)


def logits(classifier: Classifier, prepared: Prepared) -> NDArray[np.float32]:
    """Return the logits of the test images, (N, C)."""
    config = evaluate_config(split="test")
    found = evaluate.outputs(
        {"it": classifier}, prepared, lambda logits, _: logits, config, COMPUTE, NO_HOOKS
    )
    return found.rows["it"]


def run_until_student(
    folder: Path, prepared: Path, *, tuning: Mapping[str, Any], distillation: Mapping[str, Any]
) -> dict[str, Any]:
    """Run the stages `teacher` to `student` with tiny models.

    Returns:
        The arguments of `run_evaluate` but `out`.
    """
    weights = [tiny.weights(folder, seed=seed) for seed in (0, 1)]
    teacher, vectors, student = (
        folder / name / prepared.name for name in ("teacher", "class_vectors", "student")
    )
    run_teacher(prepared, teacher, model="tiny", weights=weights[0], **tuning)
    vectors_stage.run(prepared, teacher, vectors, model="tiny", weights=weights[0])
    models: dict[str, Any] = {
        "model": "tiny", "weights": weights[1],
        "teacher_model": "tiny", "teacher_weights": weights[0],
    }  # fmt: skip
    run_student(prepared, teacher, vectors, student, **models, **distillation)
    folders = {"prepared": prepared, "teacher": teacher, "vectors": vectors, "student": student}
    return folders | models


def evaluate_config(**values: Any) -> EvaluateConfig:
    """Return the paper's evaluation with some values replaced."""
    return changed(PAPER.evaluate, values)


def _clip(model: str, weights: Path | str | None) -> ClipConfig:
    return ClipConfig(model=model, weights=None if weights is None else str(weights))
