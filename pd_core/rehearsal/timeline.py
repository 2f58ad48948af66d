"""Progress of a stage over time, and the costs of its units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from pd_core.core.config import Config
from pd_core.rehearsal.estimate import Cost, Needs, Rate


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
    """Return the rates of a training whose views come again after half of its epochs.

    The first half of the steps is live and the second half recalled. A step after the end of an
    epoch contains that end; it counts as a step only if epochs have no other.

    Args:
        timeline: of the stage; a second part is the classification of images.
        epochs: of the training, an even number.
    """
    steps, *further = timeline.parts()
    each = len(steps) // epochs
    durations = [second.cost - first.cost for first, second in pairwise(steps)]
    ends = {number * each - 1 for number in range(1, epochs)} if each > 1 else set()
    half = len(steps) // 2 - 1
    live = Rate.of([d for n, d in enumerate(durations[:half]) if n not in ends])
    recalled = [d for n, d in enumerate(durations) if n > half - (each == 1) and n not in ends]
    after = Rate.of(recalled)
    boundary = [durations[n] - after.each for n in ends]
    image, last = Rate(), steps[-1]
    if further:
        image, last = _image_rate((last.restarted(), *further[0])), further[0][-1]
    return Rates(
        start=Rate(steps[0].cost - live.each),
        live=live,
        recalled=after,
        epoch=Rate(Rate.of(boundary).each, 0.0),
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
