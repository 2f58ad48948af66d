"""Numbers that go wrong stop a training with what is needed to find out why, or are left out."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from point import Point, Step, downhill, moved, poisoned, train
from tiny import Batches, checkpoints
from torch import Tensor

from pd_core.core.errors import Diverged
from pd_core.core.options import OnNonFinite, Precision
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


@pytest.mark.parametrize(
    ("minutes", "bad", "at"), [(60, 3, ""), (0, 2, r" 1, step 2, on \d.png, \d.png;")]
)
def test_weights_that_are_not_finite_are_not_stored(
    tmp_path: Path, minutes: float, bad: int, at: str
) -> None:
    point, kept = Point(), checkpoints(tmp_path, minutes=minutes)
    count = iter(range(1, 100))
    # The loss is finite, what its step leads to is not.
    step = downhill(point, lambda _: 1e37 if next(count) == bad else 0.0)

    with pytest.raises(Diverged, match=f"^a weight is not finite at epoch{at}") as caught:
        train(point, step, lr=100.0, checkpoints=kept)

    assert (".png" in str(caught.value)) == bool(at)  # at the end of an epoch, no batch is named
    stored = [f"checkpoint-000001-{done:09}.safetensors" for done in range(1, bad)]
    files = sorted((tmp_path / "checkpoints").glob("*"))
    assert [file.name for file in files] == ([] if minutes else stored)


@pytest.mark.parametrize("by", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_batch_whose_loss_is_not_finite_can_be_left_out_and_is_counted(
    by: float, precision: Precision
) -> None:
    point = Point()

    history = train(point, poisoned(point, 2, by=by), precision=precision, **SKIP)

    assert moved(point) == pytest.approx([-0.1 * 2 - 0.05 * 3] * 4, rel=1e-5)
    assert history[0]["non_finite"] == 1
    assert history[0]["loss"] == pytest.approx(4 - 0.4 / 2)
    assert "non_finite" not in history[1]


def test_batches_left_out_are_counted_anew_in_each_epoch() -> None:
    point = Point()

    history = train(point, poisoned(point, 1, 4), **SKIP)

    assert [epoch["non_finite"] for epoch in history] == [1, 1]


def test_a_batch_whose_gradient_is_not_finite_can_be_left_out_too() -> None:
    point = Point()

    history = train(point, steep(point, 1), epochs=1, **SKIP)

    assert history[0]["non_finite"] == 1
    assert moved(point) == pytest.approx([-0.1 * 2] * 4, rel=1e-5)


def test_no_more_than_half_of_an_epoch_may_have_such_gradients() -> None:
    point = Point()

    with pytest.raises(Diverged) as caught:
        train(point, steep(point, 1, 3), **SKIP)

    assert str(caught.value).startswith(
        "the loss is 0.0, and more than half of the epoch's batches were left out, at epoch 1,"
        f" step 3, on {pictures(1, 3)}"
    )


def test_half_of_an_epoch_may_be_left_out_and_no_more() -> None:
    point = Point()
    history = train(point, poisoned(point, 1, 2), batches=Batches(8, size=2), epochs=1, **SKIP)
    assert history[0]["non_finite"] == 2

    point = Point()
    with pytest.raises(Diverged) as caught:
        train(point, poisoned(point, 1, 2, 3), batches=Batches(8, size=2), epochs=1, **SKIP)

    assert str(caught.value).startswith(
        "the loss is nan, and more than half of the epoch's batches were left out, at epoch 1,"
        f" step 3, on {pictures(1, 3, 8)}"
    )


def test_clipping_alone_leaves_no_batch_out() -> None:
    point = Point()

    with pytest.raises(Diverged):
        train(point, steep(point, 1), max_grad_norm=1.0)


def test_in_fp16_the_scaling_of_the_loss_skips_a_steep_batch_and_it_is_not_counted() -> None:
    point = Point()

    history = train(point, steep(point, 1), epochs=1, precision=Precision.FP16, **SKIP)

    assert "non_finite" not in history[0]
    assert moved(point) == pytest.approx([-0.1 * 2] * 4, rel=1e-5)


@pytest.mark.parametrize(("numbers", "moves"), [([2], 1.5), ([4], 1.5), ([5], 2.0), ([1, 5], 1.0)])
def test_a_sum_of_gradients_that_is_not_finite_is_left_out_whole(
    numbers: list[int], moves: float
) -> None:
    point = Point()

    history = train(
        point, steep(point, *numbers), epochs=1, accumulate=2, batches=Batches(10, size=2), **SKIP
    )

    assert history[0]["non_finite"] == len(numbers)
    assert moved(point) == pytest.approx([-0.1 * moves] * 4, rel=1e-5)


def test_a_step_whose_accumulated_gradient_is_not_finite_is_left_out() -> None:
    point = Point()

    history = train(
        point, poisoned(point, 2, by=math.inf), epochs=1, accumulate=2,
        batches=Batches(12, size=2), **SKIP,
    )  # fmt: skip

    assert history[0]["non_finite"] == 1
    assert moved(point) == pytest.approx([-0.1 * 2.5] * 4, rel=1e-5)
