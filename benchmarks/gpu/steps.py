"""Steps of both trainings, online and cached, with and without compiled blocks.

Each measurement is of several steps in a row, of which only the end waits for the GPU.
"""

from collections.abc import Callable

import torch
import trainings
from torch import Tensor, nn

from benchmarks import promptsrc, reference
from benchmarks.gpu.setting import Size, compiled, half, plain, tokens, towers
from benchmarks.outcome import Row
from benchmarks.sizes import class_names, images, optimizer
from benchmarks.timing import Note, Turns, Work, check_agreement, take_turns
from pd_core.core.options import Precision
from pd_core.models import class_vectors
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.training.teacher.prompt_tuning import live_frozen_images

Targets = Callable[[], Tensor]

ONLINE, CACHED, COMPILED, REFERENCE = "online", "cached", "compiled", "reference"
_WITHIN = 0.03  # of the losses: fp16 rounds 77 tokens otherwise than the used ones


def rows(size: Size, note: Note) -> list[Row]:
    """Measure the steps of both trainings."""
    measured = {
        f"distillation, batch {size.batch}, {size.classes} classes": _student(size, note),
        **{
            f"PromptSRC, batch {size.few}, {count} classes": _teacher(size, count, note)
            for count in size.taught
        },
    }
    return [
        turns.row(f"{step}, {side}", side, REFERENCE, clock="wall")
        for step, turns in measured.items()
        for side in turns.seconds
        if side != REFERENCE
    ]


def _student(size: Size, note: Note) -> Turns:
    """Take turns with steps of distillation."""
    teacher = Teacher.untrained(towers(size.teacher, size)).to(size.device).eval()
    small = towers(size.student, size)
    views = images(small, size.batch).to(size.device)
    names = class_names(size.classes)
    vectors = class_vectors.build(teacher, names).to(views.device)
    live = trainings.live(teacher, vectors, precision=Precision.FP16)
    batch, width = trainings.batch(views), teacher.towers.joint_width
    known, texts = live.logits(batch), tokens(teacher, names)

    def student() -> Student:
        return Student.untrained(small, feature_width=width, seed=1).to(views.device).train()

    def ours(targets: Targets) -> Work:
        made = student()
        return _steps(
            size, made,
            lambda: trainings.distillation_step(
                made, views, targets(), vectors, precision=Precision.FP16
            ).loss,
        )  # fmt: skip

    other = student()

    def loss() -> Tensor:
        with half(views.device):
            return reference.distillation_loss(teacher, other, views, texts)

    sides = _sides(ours, online=lambda: live.logits(batch), cached=lambda: known)
    return _compared(sides, _steps(size, other, loss), size, note)


def _teacher(size: Size, count: int, note: Note) -> Turns:
    """Take turns with steps of PromptSRC."""
    small = towers(size.student, size)
    views = images(small, size.few).to(size.device)
    labels = torch.arange(len(views), device=views.device) % count
    names, frozen = class_names(count), promptsrc.frozen_text(small, count).to(views.device)
    zero_shot = live_frozen_images(small, Precision.FP16)
    batch = trainings.batch(views)
    known = zero_shot(batch)

    def teacher() -> Teacher:
        return Teacher.untrained(small, seed=1).to(views.device).train()

    def ours(frozen_image: Targets) -> Work:
        made = teacher()
        plan = made.text_plan(names, memory=promptsrc.MEMORY)
        return _steps(
            size, made,
            lambda: trainings.promptsrc_step(
                made, views, labels, tokens=plan, frozen_text=frozen,
                frozen_image=frozen_image(), precision=Precision.FP16,
            ).loss.total,
        )  # fmt: skip

    other = teacher()
    texts = tokens(other, names)

    def loss() -> Tensor:
        with half(views.device):
            return reference.promptsrc_loss(other, views, labels, texts, frozen)

    sides = _sides(ours, online=lambda: zero_shot(batch), cached=lambda: known)
    return _compared(sides, _steps(size, other, loss), size, note)


def _sides(ours: Callable[[Targets], Work], *, online: Targets, cached: Targets) -> dict[str, Work]:
    """Make our sides, each as it is and with compiled blocks."""
    targets = {ONLINE: online, CACHED: cached}
    return {name: ours(source) for name, source in targets.items()} | {
        f"{name}, {COMPILED}": compiled(ours(source)) for name, source in targets.items()
    }


def _compared(sides: dict[str, Work], reference_steps: Work, size: Size, note: Note) -> Turns:
    every = {**sides, REFERENCE: plain(reference_steps)}
    turns = take_turns(every, rounds=size.rounds, note=note)
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
