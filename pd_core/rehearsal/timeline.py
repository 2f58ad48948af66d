"""Progress of a stage over time, and the costs of its units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from pd_core.core.config import Config
from pd_core.rehearsal.estimate import NOTHING, Cost, Needs, Rate


class Mark(Config):
    """State of a stage when some of its units were done; seconds since the process was started."""

    wall: float
    cpu: float
    done: int
    total: int

    @property
    def cost(self) -> Cost:
        """Seconds so far."""
        return Cost(self.wall, self.cpu)

    def restarted(self) -> Self:
        """Return the mark as the beginning of another part of the work."""
        return self.model_copy(update={"done": 0})


class Timeline(Config):
    """Record of one stage, from the start of its process to the end.

    Attributes:
        marks: one after each call of `on_progress`.
        end: when all was done.
        memory: peak of the main memory, bytes.
        gpu: peak of the GPU memory, bytes.
    """

    marks: tuple[Mark, ...]
    end: Mark
    memory: int
    gpu: int

    def parts(self) -> Iterator[tuple[Mark, ...]]:
        """Yield the marks of each part of the work, which is counted from the beginning."""
        part: list[Mark] = []
        for mark in self.marks:
            if part and (mark.done <= part[-1].done or mark.total != part[-1].total):
                yield tuple(part)
                part = []
            part.append(mark)
        if part:
            yield tuple(part)


@dataclass(frozen=True)
class Rates:
    """Costs of a stage's units, as in `Load`.

    Attributes:
        start: all before the first unit.
        live: a step with the frozen tower.
        recalled: a step without it.
        epoch: what an epoch takes beside its steps.
        image: an image that is read or classified.
        end: all after the last unit.
    """

    start: Rate = Rate()
    live: Rate = Rate()
    recalled: Rate = Rate()
    epoch: Rate = Rate()
    image: Rate = Rate()
    end: Rate = Rate()
    needs: Needs = Needs()


def training_rates(timeline: Timeline, epochs: int) -> Rates:
    """Return the rates of a training whose views come again in the second half of its epochs.

    Between the halves an epoch ends: this is told apart from the step after it, unless all steps
    end an epoch.

    Args:
        timeline: of the stage; a second part is the classification of images.
        epochs: of the training: two, or four of one step each.
    """
    steps, *further = timeline.parts()
    durations = [second.cost - first.cost for first, second in pairwise(steps)]
    middle = len(steps) // 2 - 1
    is_apart = len(steps) > epochs
    live = Rate.of(durations[:middle])
    recalled = Rate.of(durations[middle + is_apart :])
    epoch = durations[middle] - recalled.each if is_apart else NOTHING
    image, last = Rate(), steps[-1]
    if further:
        image, last = _image_rate((last.restarted(), *further[0])), further[0][-1]
    return Rates(
        start=Rate(steps[0].cost - live.each),
        live=live,
        recalled=recalled,
        epoch=Rate(epoch),
        image=image,
        end=Rate(timeline.end.cost - last.cost),
        needs=Needs(timeline.memory, timeline.gpu),
    )


def image_rates(timeline: Timeline) -> Rates:
    """Return the rates of a stage that goes through images in batches, or has no units."""
    needs = Needs(timeline.memory, timeline.gpu)
    marks = next(timeline.parts(), ())
    if len(marks) < 2:
        return Rates(start=Rate(timeline.end.cost), needs=needs)
    image = _image_rate(marks)
    start = marks[0].cost - image.each * marks[0].done
    end = timeline.end.cost - marks[-1].cost
    return Rates(start=Rate(start), image=image, end=Rate(end), needs=needs)


def _image_rate(marks: Sequence[Mark]) -> Rate:
    """Return the cost of an image from the marks around batches of them."""
    costs = [
        (second.cost - first.cost) * (1 / (second.done - first.done))
        for first, second in pairwise(marks)
    ]
    mean = (marks[-1].cost - marks[0].cost) * (1 / (marks[-1].done - marks[0].done))
    return Rate(mean, Rate.of(costs).error)
