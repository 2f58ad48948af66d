"""Text gradients within a memory budget: what they take, what they cost, whether they are exact.

The peak of a whole PromptSRC step is measured in a process of its own: `python -m
benchmarks.text_gradients <bytes>`.
"""

import copy
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import torch
import trainings
from torch import Tensor

from benchmarks import ROOT, promptsrc, reference
from benchmarks.outcome import Outcome, Row
from benchmarks.sizes import LARGE, TINY_LARGE, build, class_names, images, optimizer
from benchmarks.timing import Note, Work, check_agreement, take_turns
from pd_core.models.prompts import encode_texts
from pd_core.models.teacher import Teacher
from pd_core.models.text_batching import LEAST_TOGETHER, TextBatch, TextPlan

UNBOUNDED, DEFAULT, NOTHING = "unbounded", "default budget", "no budget, all computed twice"


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmark.

    Attributes:
        trained: classes of the training whose memory is measured.
        timed: classes at which everything fits into memory.
        exact: classes of the comparison of gradients.
        steps: of the training.
    """

    model: str = LARGE
    batch: int = 4
    trained: int = 1000
    timed: int = 200
    exact: int = 40
    steps: int = 2
    rounds: int = 3


REAL = Size()
TINY = Size(TINY_LARGE, batch=2, trained=5, timed=4, exact=3, steps=1, rounds=1)


def measure(size: Size, note: Note) -> Outcome:
    """Measure memory, seconds and differences."""
    rows = []
    # First, as a process inherits the peak of the one that starts it.
    for memory, name in ((promptsrc.MEMORY, DEFAULT), (0, NOTHING)):
        peak, seconds = _in_a_process_of_its_own(size, memory)
        note(f"{name}: {peak:.3g} GB, {seconds:.3g} s a step")
        rows.append(
            Row(
                what=f"peak of a training, {size.trained} classes, batch {size.batch}, {name}",
                value=peak, unit="GB", most=8.0, note=f"{seconds:.3g} s of processor a step",
            )
        )  # fmt: skip
    teacher = Teacher.untrained(build(size.model), seed=1)
    rows += _timed(teacher, size.timed, (NOTHING, DEFAULT), size.rounds, note)
    rows.append(_difference(teacher, size.exact, 1e-5, "fp32"))
    rows.append(_difference(_double(teacher), size.exact, 1e-10, "fp64"))
    remark = (
        f"the default budget is {promptsrc.MEMORY / 2**30:g} GiB; without any,"
        f" {LEAST_TOGETHER} texts at a time are computed, all of them twice"
    )
    return Outcome(tuple(rows), remarks=(remark,))


def plans(teacher: Teacher, count: int) -> dict[str, TextPlan]:
    """Plan the texts of some classes with several budgets."""
    names = class_names(count)
    tokens = teacher.tokens(names)
    length = teacher.text_prompts.length if teacher.text_prompts is not None else 0
    return {
        UNBOUNDED: TextPlan((TextBatch.of(tokens, length),), torch.arange(count), 1),
        NOTHING: teacher.text_plan(names, memory=0),
        DEFAULT: teacher.text_plan(names, memory=promptsrc.MEMORY),
    }


def gradient(teacher: Teacher, plan: TextPlan) -> Tensor:
    """Compute the gradient of a number made of all text features: (depth, n, W)."""
    prompts = teacher.text_prompts
    if prompts is None:
        raise ValueError("a teacher without text prompts has no text gradients")
    features = encode_texts(teacher.towers.text, plan, prompts)  # (C, D)
    weights = torch.linspace(-1, 1, features.numel(), dtype=features.dtype)
    (measured,) = torch.autograd.grad(features.flatten() @ weights, prompts.tokens)
    return measured


def train(size: Size, memory: int) -> float:
    """Take steps of PromptSRC; return the processor's seconds of the last."""
    towers = build(size.model)
    teacher = Teacher.untrained(towers, seed=1).train()
    plan = teacher.text_plan(class_names(size.trained), memory=memory)
    frozen = promptsrc.frozen_text(towers, size.trained)
    views, labels = images(towers, size.batch), torch.arange(size.batch)
    sgd = optimizer(teacher)

    def loss() -> Tensor:
        step = trainings.promptsrc_step(teacher, views, labels, tokens=plan, frozen_text=frozen)
        return step.loss.total

    start = 0.0
    for _ in range(size.steps):
        start = time.process_time()
        reference.step(sgd, loss)
    return time.process_time() - start


def _in_a_process_of_its_own(size: Size, memory: int) -> tuple[float, float]:
    which = "tiny" if size.model == TINY.model else "real"
    command = [sys.executable, "-m", "benchmarks.text_gradients", which, str(memory)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured["peak"], measured["seconds"]


def _timed(
    teacher: Teacher, count: int, names: tuple[str, ...], rounds: int, note: Note
) -> list[Row]:
    planned = plans(teacher, count)

    def side(plan: TextPlan) -> Work:
        return lambda: float(gradient(teacher, plan).abs().max())

    sides = {name: side(planned[name]) for name in (UNBOUNDED, *names)}
    turns = take_turns(sides, rounds=rounds, note=note)
    check_agreement(turns.values)
    return [
        turns.row(
            f"text gradients, {count} classes, {name}, against all kept in one batch",
            name, UNBOUNDED, most=1.4,
        )
        for name in names
    ]  # fmt: skip


def _difference(teacher: Teacher, count: int, most: float, precision: str) -> Row:
    planned = plans(teacher, count)
    expected = gradient(teacher, planned.pop(UNBOUNDED))
    measured = [gradient(teacher, plan) for plan in planned.values()]
    largest = max(float((value - expected).abs().max()) for value in measured)
    return Row(
        what=f"largest difference of gradients, {count} classes, {precision}",
        value=largest / float(expected.abs().max()),
        most=most,
        note="of the largest element, all budgets",
    )


def _double(teacher: Teacher) -> Teacher:
    text = copy.deepcopy(teacher.towers.text).double()
    towers = replace(teacher.towers, text=text)
    return Teacher(towers, copy.deepcopy(teacher.text_prompts)).double()


def main(arguments: list[str]) -> None:
    """Train, and write what this process took at most, and the seconds of a step."""
    size, threads = (TINY, 1) if arguments[0] == "tiny" else (REAL, 2)
    torch.set_num_threads(threads)
    seconds = train(size, int(arguments[1]))
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    sys.stdout.write(json.dumps({"peak": peak, "seconds": seconds}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
