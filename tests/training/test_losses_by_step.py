"""Reports of the loss between the ends of two epochs."""

from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean

import pytest
from point import Point, downhill, poisoned, train
from tiny import Batches
from torch import Tensor

from pd_core.core.options import OnNonFinite


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_mean_loss_is_reported_every_fifty_steps_and_at_an_epochs_end(accumulate: int) -> None:
    point, seen, losses = Point(), list[tuple[int, float]](), list[float]()

    def step(indices: Tensor, images: Tensor) -> Mapping[str, Tensor]:
        values = downhill(point)(indices, images)
        losses.append(float(values["loss"].detach()))
        return values

    train(
        point, step, batches=Batches(120, size=1), accumulate=accumulate,
        on_loss=lambda *loss: seen.append(loss),
    )  # fmt: skip

    ends = [0, 50, 100, 120, 170, 220, 240]
    assert [number for number, _ in seen] == ends[1:]
    assert [mean for _, mean in seen] == pytest.approx(
        [fmean(losses[start:end]) for start, end in pairwise(ends)]
    )


def test_the_mean_loss_is_of_those_steps_that_were_trained_on() -> None:
    point, seen = Point(), list[tuple[int, float]]()

    train(
        point, poisoned(point, 2, 3), batches=Batches(10, size=2), epochs=1,
        on_non_finite=OnNonFinite.SKIP, on_loss=lambda *loss: seen.append(loss),
    )  # fmt: skip

    ((number, mean),) = seen
    assert number == 5
    assert mean == pytest.approx((4.0 + 3.6 + 3.2) / 3)
