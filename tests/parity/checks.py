"""Parity checks, one function for each part of the method; each restarts from recorded values.

Otherwise errors accumulate: with another number of threads the original drifts by 3e-2 in six
steps.
"""

from collections.abc import Callable
from functools import wraps

import torch
from differences import ARITHMETIC
from differences import CLASS_VECTORS as CLASS_VECTORS
from differences import EVALUATION as EVALUATION
from differences import LOGITS as LOGITS
from differences import Differences as Differences
from student_checks import distillation_steps, evaluation, initial_student
from teacher_checks import (
    averaging,
    frozen_text,
    initial_prompts,
    teacher_steps,
    tokens,
    vectors,
)
from torch import nn
from traces import Trace

from pd_core.training.loop import fit, schedule

Check = Callable[[Trace], Differences]

PEAKS = {"teacher": "t_lr", "kd": "k_lr"}


def learning_rates(trace: Trace) -> Differences:
    """Compare the learning rate of every step of both stages."""
    differences = Differences()
    for stage in PEAKS:
        for info in trace.info[f"{stage}_steps"]:
            ours = _rate(trace, stage, info["epoch"])
            differences.add(
                "learning rate", f"{stage} {info['step']}", ours, info["lr"], ARITHMETIC
            )
    return differences


def optimiser(trace: Trace) -> Differences:
    """Compare parameters and momentum after every step, from recorded gradients."""
    differences = Differences()
    for number in trace.teacher_steps:
        teacher = trace.teacher(trace.before("teacher", number, "param"))
        _check_update(differences, trace, teacher, "teacher", number)
    for number in trace.student_steps:
        _check_update(differences, trace, trace.student_before(number), "kd", number)
    return differences


def on_one_thread(check: Check) -> Check:
    """Run a check on one thread: their number changes the last bits of sums."""

    @wraps(check)
    def run(trace: Trace) -> Differences:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return check(trace)
        finally:
            torch.set_num_threads(threads)

    return run


ALL: dict[str, Check] = {
    check.__name__: on_one_thread(check)
    for check in (
        tokens,
        initial_prompts,
        frozen_text,
        teacher_steps,
        learning_rates,
        optimiser,
        averaging,
        vectors,
        initial_student,
        distillation_steps,
        evaluation,
    )
}


def applicable(trace: Trace) -> list[str]:
    """Return the names of the checks that a recording supports."""
    return [part for part in ALL if part != vectors.__name__ or not trace.untrained_prompts]


def _rate(trace: Trace, stage: str, epoch: int) -> float:
    optim = trace.info["optim"]
    return schedule.learning_rate(
        epoch,
        epochs=optim["max_epoch"],
        peak=trace.info["config"][PEAKS[stage]],
        warmup_epochs=max(optim["warmup_epoch"], 0),  # -1 is the original's word for none
        warmup_lr=optim["warmup_cons_lr"],
    )


def _check_update(
    differences: Differences, trace: Trace, module: nn.Module, stage: str, number: int
) -> None:
    """Take one step of our optimiser with the recorded gradients and momentum."""
    values = trace.teacher_values if stage == "teacher" else trace.student_values
    optim = trace.info["optim"]
    optimizer = fit.make_optimizer(
        module.parameters(),
        lr=trace.info["config"][PEAKS[stage]],
        momentum=optim["momentum"],
        weight_decay=optim["weight_decay"],
    )
    fit.set_rate(optimizer, _rate(trace, stage, trace.step(stage, number)["epoch"]))
    start = f"{stage}/step{number}/"
    momenta = values(f"{stage}/step{number - 1}/momentum/") if number > 1 else {}
    for name, value in values(start + "grad/").items():
        parameter = module.get_parameter(name)
        parameter.grad = value.clone()
        if name in momenta:
            optimizer.state[parameter]["momentum_buffer"] = momenta[name].clone()
    optimizer.step()
    for kind in ("param", "momentum"):
        for name, recorded in values(f"{start}{kind}/").items():
            parameter = module.get_parameter(name)
            ours = parameter if kind == "param" else optimizer.state[parameter]["momentum_buffer"]
            differences.add("optimiser", f"{start}{kind}/{name}", ours, recorded, ARITHMETIC)
