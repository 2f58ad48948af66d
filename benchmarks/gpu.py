"""Steps on a GPU at fp16: ours against the plain path.

Each measurement is of several steps in a row, of which only the end waits for the GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import trainings
from torch import Tensor, nn

from benchmarks import promptsrc, reference, sizes
from benchmarks.outcome import Outcome, Row
from benchmarks.sizes import build, class_names, images, optimizer
from benchmarks.timing import Note, Turns, Work, check_agreement, take_turns
from pd_core.core.options import Precision
from pd_core.models import class_vectors
from pd_core.models.clip import ClipTowers
from pd_core.models.precision import autocast
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.training.teacher.prompt_tuning import live_frozen_images

OURS, CACHED, REFERENCE = "ours", "ours, cached", "reference"
_WITHIN = 0.03  # of the losses: fp16 rounds 77 tokens otherwise than the used ones


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmark.

    Attributes:
        batch: images of a step of distillation.
        few: images of a step of PromptSRC.
        classes: of the distillation.
        taught: numbers of classes of PromptSRC.
        steps: of a measurement.
    """

    device: str = "cuda"
    teacher: str = sizes.LARGE
    student: str = sizes.SMALL
    batch: int = 8
    few: int = 4
    classes: int = 100
    taught: tuple[int, ...] = (37, 100, 1000)
    steps: int = 20
    rounds: int = 5


REAL = Size()
TINY = Size("cpu", sizes.TINY_LARGE, sizes.TINY_SMALL, 4, 2, 5, (3, 4), steps=2, rounds=1)


def measure(size: Size, note: Note) -> Outcome:
    """Measure the steps of both trainings."""
    rows = _rows(f"distillation, batch {size.batch}, {size.classes} classes", _student(size, note))
    for count in size.taught:
        rows += _rows(f"PromptSRC, batch {size.few}, {count} classes", _teacher(size, count, note))
    return Outcome(tuple(rows), remarks=(f"gpu: {_name(size)}, fp16, {size.steps} steps a turn",))


def _student(size: Size, note: Note) -> Turns:
    """Take turns with steps of distillation: online, cached and by the plain path."""
    teacher = Teacher.untrained(_towers(size.teacher, size)).to(size.device).eval()
    towers = _towers(size.student, size)
    views = images(towers, size.batch).to(size.device)
    vectors = class_vectors.build(teacher, class_names(size.classes)).to(views.device)
    live = trainings.live(teacher, vectors, precision=Precision.FP16)
    tokens = _tokens(teacher, size.classes)
    batch, width = trainings.batch(views), teacher.towers.joint_width
    known = live.logits(batch)

    def student() -> Student:
        return Student.untrained(towers, feature_width=width, seed=1).to(views.device).train()

    def ours(student: Student, targets: Callable[[], Tensor]) -> Work:
        return _steps(
            size, student,
            lambda: trainings.distillation_step(
                student, views, targets(), vectors, precision=Precision.FP16
            ).loss,
        )  # fmt: skip

    plain = student()
    sides = {
        OURS: ours(student(), lambda: live.logits(batch)),
        CACHED: ours(student(), lambda: known),
        REFERENCE: _steps(
            size, plain,
            _half(views, lambda: reference.distillation_loss(teacher, plain, views, tokens)),
        ),
    }  # fmt: skip
    turns = take_turns(sides, rounds=size.rounds, note=note)
    check_agreement(turns.values, within=_WITHIN)
    return turns


def _teacher(size: Size, count: int, note: Note) -> Turns:
    """Take turns with steps of PromptSRC: online, cached and by the plain path."""
    towers = _towers(size.student, size)
    views = images(towers, size.few).to(size.device)
    labels = torch.arange(len(views), device=views.device) % count
    frozen = promptsrc.frozen_text(towers, count).to(views.device)
    zero_shot = live_frozen_images(towers, Precision.FP16)
    batch = trainings.batch(views)
    known = zero_shot(batch)

    def teacher() -> Teacher:
        return Teacher.untrained(towers, seed=1).to(views.device).train()

    def ours(teacher: Teacher, frozen_image: Callable[[], Tensor]) -> Work:
        plan = teacher.text_plan(class_names(count), memory=promptsrc.MEMORY)
        return _steps(
            size, teacher,
            lambda: trainings.promptsrc_step(
                teacher, views, labels, tokens=plan, frozen_text=frozen,
                frozen_image=frozen_image(), precision=Precision.FP16,
            ).loss.total,
        )  # fmt: skip

    plain = teacher()
    tokens = _tokens(plain, count)
    sides = {
        OURS: ours(teacher(), lambda: zero_shot(batch)),
        CACHED: ours(teacher(), lambda: known),
        REFERENCE: _steps(
            size, plain,
            _half(views, lambda: reference.promptsrc_loss(plain, views, labels, tokens, frozen)),
        ),
    }  # fmt: skip
    turns = take_turns(sides, rounds=size.rounds, note=note)
    check_agreement(turns.values, within=_WITHIN)
    return turns


def _steps(size: Size, module: nn.Module, loss: Callable[[], Tensor]) -> Work:
    """Make the work of several steps; it returns the loss before the first one."""
    sgd = optimizer(module)

    def work() -> float:
        losses = []
        for _ in range(size.steps):
            sgd.zero_grad(set_to_none=True)
            losses.append(loss())
            torch.autograd.backward(losses[-1])
            sgd.step()
        return float(losses[0].detach())  # waits for all steps

    return work


def _half(views: Tensor, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Compute a loss in fp16, as the original does."""

    def computed() -> Tensor:
        with autocast(views.device, Precision.FP16):
            return loss()

    return computed


def _towers(name: str, size: Size) -> ClipTowers:
    towers = build(name)
    for tower in (towers.visual, towers.text):
        tower.to(size.device)
    return towers


def _tokens(teacher: Teacher, count: int) -> Tensor:
    texts = teacher.texts(class_names(count))
    return reference.tokenize(teacher.towers, texts).to(teacher.towers.device)


def _name(size: Size) -> str:
    return torch.cuda.get_device_name() if size.device == "cuda" else size.device


def _rows(what: str, turns: Turns) -> list[Row]:
    return [
        turns.row(f"{what}, online", OURS, REFERENCE, clock="wall"),
        turns.row(f"{what}, cached", CACHED, REFERENCE, clock="wall"),
    ]
