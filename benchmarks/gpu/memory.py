"""Peak memory of a PromptSRC step with many classes on the large CLIP."""

import torch
import trainings

from benchmarks import promptsrc
from benchmarks.gpu.setting import Size, towers
from benchmarks.outcome import Row
from benchmarks.sizes import class_names, images, optimizer
from benchmarks.timing import Note
from pd_core.core.options import Precision
from pd_core.models.teacher import Teacher
from pd_core.training.teacher.prompt_tuning import live_frozen_images

_MOST = 12.0  # GB
_STEPS = 2  # the second has the optimiser's momentum


def rows(size: Size, note: Note) -> list[Row]:
    """Measure the peak, to which all that is on the GPU before counts; none without a GPU."""
    what = f"PromptSRC on {size.teacher}, batch {size.wide}, {size.many} classes: peak memory"
    note(what)
    _train(size)
    if size.device != "cuda":
        return []
    return [Row(what, torch.cuda.max_memory_allocated() / 1e9, unit="GB", most=_MOST)]


def _train(size: Size) -> None:
    large = towers(size.teacher, size)
    teacher = Teacher.untrained(large, seed=1).to(size.device).train()
    plan = teacher.text_plan(class_names(size.many), memory=promptsrc.MEMORY)
    frozen = promptsrc.frozen_text(large, size.many).to(size.device)
    views = images(large, size.wide).to(size.device)
    labels = torch.arange(size.wide, device=views.device) % size.many
    zero_shot = live_frozen_images(large, Precision.FP16)
    sgd = optimizer(teacher)
    for _ in range(_STEPS):
        sgd.zero_grad(set_to_none=True)
        step = trainings.promptsrc_step(
            teacher, views, labels, tokens=plan, frozen_text=frozen,
            frozen_image=zero_shot(trainings.batch(views)), precision=Precision.FP16,
        )  # fmt: skip
        torch.autograd.backward(step.loss.total)
        sgd.step()
