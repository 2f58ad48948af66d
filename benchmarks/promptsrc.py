"""A step of PromptSRC, from the images to the optimiser's step.

The reference's cost with 1,000 classes is extrapolated: it would take more memory than there is.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import trainings
from torch import Tensor

from benchmarks import reference
from benchmarks.outcome import Outcome, Row
from benchmarks.sizes import SMALL, TINY_SMALL, build, class_names, images, optimizer, record
from benchmarks.timing import Clock, Line, Note, Turns, Work, check_agreement, take_turns
from pd_core.models.clip import ClipTowers
from pd_core.models.teacher import Teacher
from pd_core.training.loop.views import CachedViews

MEMORY = 4 * 2**30  # bytes for the text gradients, the default of the stage


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmark.

    Attributes:
        compared: numbers of classes with a reference of their own, and the targets: online, cached.
        fitted: numbers of classes that the reference's line goes through.
        extrapolated: a number of classes that it is read at, and the targets.
    """

    model: str = SMALL
    batch: int = 4
    compared: tuple[tuple[int, float, float], ...] = ((37, 0.66, 0.52), (100, 0.47, 0.38))
    fitted: tuple[int, ...] = (50, 100, 200)
    extrapolated: tuple[int, float] = (1000, 0.25)
    rounds: int = 3


REAL = Size()
TINY = Size(TINY_SMALL, 2, ((3, 1.0, 1.0), (4, 1.0, 1.0)), (3, 4, 5), (8, 1.0), rounds=2)


def measure(size: Size, note: Note) -> Outcome:
    """Measure the step."""
    towers = build(size.model)
    views = images(towers, size.batch)
    counts = [count for count, _, _ in size.compared]
    with tempfile.TemporaryDirectory() as folder:
        zero_shot = Teacher(towers).eval()
        cached = record(
            Path(folder), views, lambda batch: zero_shot.frozen_image_features(batch.images),
            width=towers.joint_width,
        )  # fmt: skip
        sides: dict[str, Work] = {}
        for count in sorted({*counts, *size.fitted}):
            sides[_reference(count)] = plain(towers, views, count)
        for count in [*counts, size.extrapolated[0]]:
            sides[_ours(count)] = ours(towers, views, count)
            sides[_cached(count)] = ours(towers, views, count, cached)
        turns = take_turns(sides, rounds=size.rounds, note=note)
    for count in counts:
        same = (_ours(count), _cached(count), _reference(count))
        check_agreement({side: turns.values[side] for side in same})
    return Outcome((*_compared(size, turns), *_extrapolated(size, turns)))


def ours(towers: ClipTowers, views: Tensor, count: int, cached: CachedViews | None = None) -> Work:
    """Make our step; `cached` are the frozen image features of these views, if recorded."""
    teacher = Teacher.untrained(towers, seed=1).train()
    plan = teacher.text_plan(class_names(count), memory=MEMORY)
    frozen, labels = frozen_text(towers, count), _labels(views, count)
    sgd, batch = optimizer(teacher), trainings.batch(views)

    def loss() -> Tensor:
        result = trainings.promptsrc_step(
            teacher, views, labels, tokens=plan, frozen_text=frozen,
            frozen_image=None if cached is None else cached.at(batch),
        )  # fmt: skip
        return result.loss.total

    return lambda: reference.step(sgd, loss)


def plain(towers: ClipTowers, views: Tensor, count: int) -> Work:
    """Make the reference's step."""
    teacher = Teacher.untrained(towers, seed=1).train()
    tokens = reference.tokenize(towers, teacher.texts(class_names(count)))
    frozen, labels = frozen_text(towers, count), _labels(views, count)
    sgd = optimizer(teacher)

    def loss() -> Tensor:
        return reference.promptsrc_loss(teacher, views, labels, tokens, frozen)

    return lambda: reference.step(sgd, loss)


def frozen_text(towers: ClipTowers, count: int) -> Tensor:
    """Make random features in place of the frozen text features."""
    noise = torch.randn(count, towers.joint_width, generator=torch.Generator().manual_seed(2))
    return F.normalize(noise, dim=-1)


def _labels(views: Tensor, count: int) -> Tensor:
    return torch.arange(len(views)) % count


def _reference(count: int) -> str:
    return f"reference, {count} classes"


def _ours(count: int) -> str:
    return f"ours, {count} classes"


def _cached(count: int) -> str:
    return f"ours, cached, {count} classes"


def _compared(size: Size, turns: Turns) -> list[Row]:
    rows = []
    for count, online, cached in size.compared:
        step, plain = f"step, batch {size.batch}, {count} classes", _reference(count)
        rows.append(turns.row(step, _ours(count), plain, most=online))
        rows.append(turns.row(f"{step}, frozen images cached", _cached(count), plain, most=cached))
    return rows


def _extrapolated(size: Size, turns: Turns) -> list[Row]:
    """Read the reference's line, which goes through its medians, or those of a round."""
    count, most = size.extrapolated

    def line(clock: Clock, number: int | None = None) -> Line:
        costs = [
            turns.median(_reference(fitted), clock)
            if number is None
            else turns.all(_reference(fitted), clock)[number]
            for fitted in size.fitted
        ]
        return Line.through(size.fitted, costs)

    rows = []
    for side, name, target in ((_ours(count), "", most), (_cached(count), ", cached", None)):
        each = [cost / line("cpu", n).at(count) for n, cost in enumerate(turns.all(side))]
        rows.append(
            Row(
                what=f"step, batch {size.batch}, {count} classes{name}",
                value=turns.median(side) / line("cpu").at(count),
                low=min(each),
                high=max(each),
                clock="cpu",
                other=turns.median(side, "wall") / line("wall").at(count),
                most=target,
                note=f"{turns.median(side):.3g} s against {line('cpu').at(count):.3g} s,"
                f" extrapolated from {', '.join(map(str, size.fitted))}:"
                f" {line('cpu').describe('class')}",
            )
        )
    return rows
