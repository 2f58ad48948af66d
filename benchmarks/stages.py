"""The trainings of an embedded data set: by the stages, and by the plain path.

Both see the same views, which the same code decodes, and both end with a file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tiny
import torch

from benchmarks import ROOT, reference
from pd_core.core.artifacts import read_json
from pd_core.data.loading.images import ImageBatches
from pd_core.data.loading.prepared import image_root, read_prepared, read_unlabelled
from pd_core.models.clip import ClipTowers, imagenet_templates, load_clip
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import load_params
from pd_core.training.loop.fit import make_optimizer, set_rate
from pd_core.training.loop.schedule import WeightedSum, gaussian_weights, learning_rate
from pd_core.training.loop.views import training_views
from pd_core.training.student.targets import TEACHER_FILE

DATASET = "embedded_greek"


@dataclass(frozen=True)
class Epoch:
    """A block of the parameters, and the number of an epoch."""

    block: Any
    number: int

    @property
    def rate(self) -> float:
        """The learning rate."""
        block = self.block
        return learning_rate(
            self.number, epochs=block.epochs, peak=block.lr, warmup_epochs=block.warmup_epochs,
            warmup_lr=block.warmup_lr,
        )  # fmt: skip


def make_job(
    folder: Path, *, features: Path | None = None, per_class: int | None = None, **changes: Any
) -> Job:
    """Describe the stages of the embedded data set, with its committed numbers.

    Args:
        folder: for the outputs of all stages.
        features: for what is computed beforehand.
        per_class: unlabelled pictures of each class; None for all.
        changes: numbers of the two trainings: `teacher_epochs`, `student_teacher_targets`...
    """
    params = load_params(ROOT / "params.yaml").for_dataset(DATASET)
    blocks = {"teacher": {"weights": None}, "student": {"weights": None}}  # those that ship
    for name, value in changes.items():
        stage, _, key = name.partition("_")
        blocks[stage][key] = value
    updated = {
        stage: getattr(params, stage).model_copy(update=keys) for stage, keys in blocks.items()
    }
    updated["prepare"] = params.prepare.model_copy(update={"unlabelled_per_class": per_class})
    return Job.at(
        folder, params.model_copy(update=updated), seed=1, device="cpu", data_root=folder,
        features=features,
    )  # fmt: skip


@contextmanager
def unchecked(*, on: bool) -> Iterator[None]:
    """Let students pass that have learnt nothing, if the training is that short."""
    if on:
        with tiny.quick_stages():
            yield
    else:
        yield


def teacher(job: Job) -> float:
    """Run the stage `teacher`; return the mean loss of the first epoch."""
    jobs.teacher(job)
    return _first_loss(job.teacher)


def student(job: Job) -> float:
    """Run the stages `class_vectors` and `student`; return the mean loss of the first epoch."""
    jobs.class_vectors(job)
    jobs.student(job)
    return _first_loss(job.student)


def plain_teacher(job: Job) -> float:
    """Do what the stage `teacher` does by the plain path."""
    torch.set_num_threads(job.params.run.threads)
    block, split = job.params.teacher, read_prepared(job.prepared)
    towers = load_clip(block.model, None)
    made = Teacher.untrained(
        towers, text_depth=block.text_depth, text_length=block.text_length,
        image_depth=block.image_depth, image_length=block.image_length, seed=job.seed,
    ).train()  # fmt: skip
    batches = _batches(job, block, split.images, [path for path, _ in split.few_shot], towers)
    labels = torch.tensor([label for _, label in split.few_shot])
    tokens = reference.tokenize(towers, made.texts(split.taught))
    frozen = reference.frozen_text(towers, split.taught, imagenet_templates(block.templates))
    weights = gaussian_weights(block.epochs, mean=block.gpa_mean, deviation=block.gpa_std)
    average = WeightedSum(made, weights)
    sgd = _optimizer(made, block)
    losses: list[float] = []
    for number in range(1, block.epochs + 1):
        set_rate(sgd, Epoch(block, number).rate)
        for batch in batches.epoch(number):
            loss = partial(
                reference.promptsrc_loss, made, batch.images, labels[batch.indices], tokens, frozen,
                text_weight=block.text_loss_weight, image_weight=block.image_loss_weight,
            )  # fmt: skip
            losses.append(reference.step(sgd, loss))
        average.add(number, made)
    average.copy_to(made)
    made.save(job.teacher.with_name("plain") / TEACHER_FILE)
    return _mean(losses[: batches.steps])


def plain_student(job: Job) -> float:
    """Do what the stages `class_vectors` and `student` do by the plain path."""
    torch.set_num_threads(job.params.run.threads)
    block = job.params.student
    towers = load_clip(block.model, None)
    large = load_clip(job.params.teacher.model, None)
    tuned = Teacher.load(job.teacher / TEACHER_FILE, large)
    made = Student.untrained(
        towers, feature_width=large.joint_width, depth=block.image_depth,
        length=block.image_length, layers=block.projector_layers, seed=job.seed,
    ).train()  # fmt: skip
    paths = read_unlabelled(job.prepared)
    batches = _batches(job, block, image_root(job.prepared), paths, towers)
    tokens = reference.tokenize(large, tuned.texts(read_prepared(job.prepared).classes))
    sgd = _optimizer(made, block)
    losses: list[float] = []
    for number in range(1, block.epochs + 1):
        set_rate(sgd, Epoch(block, number).rate)
        for batch in batches.epoch(number):
            loss = partial(
                reference.distillation_loss,
                tuned,
                made,
                batch.images,
                tokens,
                weight=block.kd_weight,
            )
            losses.append(reference.step(sgd, loss))
    made.save(job.student.with_name("plain") / "student.safetensors")
    return _mean(losses[: batches.steps])


def _batches(
    job: Job, block: Any, root: Path, paths: Sequence[str], towers: ClipTowers
) -> ImageBatches:
    return training_views(job.prepared, root, paths, towers.preprocess, block, job.compute).batches


def _optimizer(made: torch.nn.Module, block: Any) -> torch.optim.SGD:
    return make_optimizer(
        made.parameters(), lr=block.lr, momentum=block.momentum, weight_decay=block.weight_decay
    )


def _first_loss(output: Path) -> float:
    history = read_json(output / "history.json", what="history", remedy="run the stage")
    return float(history[0]["loss"])


def _mean(losses: list[float]) -> float:
    return sum(losses) / len(losses)
