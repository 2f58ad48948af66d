"""Numbers that go wrong stop a training with what is needed to find out why, or are left out."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from point import Point, Step, poisoned, train
from tiny import Batches, checkpoints
from torch import Tensor

from pd_core.core.errors import Diverged
from pd_core.core.options import OnNonFinite
from pd_core.training.loop.fit import EVERY

SKIP: dict[str, Any] = {"on_non_finite": OnNonFinite.SKIP}


def pictures(epoch: int, step: int, count: int = 6) -> str:
    """Return the names of a batch's two images, as messages list them."""
    indices = [indices.tolist() for indices, *_ in Batches(count, size=2).epoch(epoch)][step - 1]
    return f"{indices[0]}.png, {indices[1]}.png;"


def steep(point: Point, *numbers: int) -> Step:
    """Make a step whose loss is 0 with an infinite gradient some times, counted from 1."""
    count = iter(range(1, 1000))

    def step(*_: Tensor) -> Mapping[str, Tensor]:
        loss = point(1.0)
        return {"loss": (loss - loss.detach()).sqrt() if next(count) in numbers else loss}

    return step


@pytest.mark.parametrize("by", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_with_step_images_and_last_good_checkpoint(
    by: float, tmp_path: Path
) -> None:
    point, kept = Point(), checkpoints(tmp_path)

    with pytest.raises(Diverged) as caught:
        train(point, poisoned(point, 5, by=by), checkpoints=kept)

    assert str(caught.value).startswith(
        f"the loss is {by} at epoch 2, step 2, on {pictures(2, 2)}"
        f" last good checkpoint: '{kept.newest()}'; lower"
    )
    assert "on_non_finite: skip" in str(caught.value)
    assert kept.newest() is not None
    assert kept.newest() == checkpoints(tmp_path).newest()
    assert torch.isfinite(kept.latest()[0]["module.value"]).all()  # type: ignore[index]


def test_it_is_noticed_within_an_epoch_though_not_at_every_step() -> None:
    point, reported = Point(), list[object]()

    with pytest.raises(Diverged, match="at epoch 1, step 3, on .*last good checkpoint: none"):
        train(
            point, poisoned(point, 3), batches=Batches(12 * EVERY, size=4),
            on_loss=lambda *loss: reported.append(loss),
        )  # fmt: skip

    assert len(point.trained) == EVERY
    assert reported == []


@pytest.mark.parametrize(("size", "more"), [(16, ";"), (20, " and 4 more;")])
def test_of_a_large_batch_only_some_images_are_named(size: int, more: str) -> None:
    point = Point()

    with pytest.raises(Diverged) as caught:
        train(point, poisoned(point, 1), batches=Batches(2 * size, size=size))

    assert str(caught.value).count(".png") == 16
    assert f".png{more}" in str(caught.value)
