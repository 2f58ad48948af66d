"""What the training loop does to a module of four numbers, step by step and worked out by hand."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from point import STEPS, Point, Step, downhill, moved, poisoned, train
from tiny import Batches, checkpoints
from torch import Tensor
from trainings import fit

from pd_core.core.errors import BadParams, Diverged
from pd_core.core.options import OnNonFinite, Precision
from pd_core.data.loading.images import Batch
from pd_core.training.loop.fit import make_optimizer
from pd_core.training.loop.schedule import learning_rate


@pytest.mark.parametrize("warmup", [{}, {"warmup_epochs": 2}, {"warmup_lr": 0.03}])
def test_every_step_of_an_epoch_has_the_epochs_rate(warmup: dict[str, Any]) -> None:
    point, given = Point(), {"warmup_epochs": 1, "warmup_lr": 1e-5, **warmup}

    history = train(point, epochs=4, **given)

    rates = [learning_rate(epoch, epochs=4, peak=0.1, **given) for epoch in (1, 2, 3, 4)]
    assert [epoch["lr"] for epoch in history] == rates
    assert moved(point) == pytest.approx([-STEPS * sum(rates)] * 4, rel=1e-5)


def test_the_first_epoch_is_the_published_warm_up_unless_told_otherwise() -> None:
    point = Point()

    history = fit(point, downhill(point), Batches(6, size=2), epochs=2, lr=0.1)

    assert [epoch["lr"] for epoch in history] == [1e-5, 0.1]


@pytest.mark.parametrize("given", [{}, {"momentum": 0.5, "weight_decay": 0.2}])
def test_momentum_and_weight_decay_are_those_of_plain_sgd(given: dict[str, Any]) -> None:
    published = {"momentum": 0.9, "weight_decay": 5e-4}
    momentum, decay = {**published, **given}.values()
    point = Point()

    fit(point, downhill(point), Batches(6, size=2), epochs=2, lr=0.1, warmup_epochs=0, **given)

    value, velocity = 1.0, 0.0
    for rate in [0.1] * STEPS + [0.05] * STEPS:  # the second epoch is half of the cosine
        velocity = momentum * velocity + 1 + decay * value
        value -= rate * velocity
    assert point.value.tolist() == pytest.approx([value] * 4, rel=1e-5)


def test_the_optimiser_has_the_rate_momentum_and_decay_it_is_given() -> None:
    group = make_optimizer(
        Point().parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4
    ).param_groups[0]

    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 5e-4)


@pytest.mark.parametrize(("largest", "step"), [(1.0, 0.5), (2.0, 1.0), (3.0, 1.0), (None, 1.0)])
def test_gradients_are_scaled_down_to_the_largest_norm(largest: float | None, step: float) -> None:
    point = Point()  # whose gradient has norm 2

    train(point, epochs=1, max_grad_norm=largest)

    assert moved(point) == pytest.approx([-STEPS * 0.1 * step] * 4, rel=1e-4)


def test_accumulated_gradients_are_averaged_and_what_is_left_over_makes_a_smaller_step() -> None:
    for batches, steps in ((1, 5), (2, 2.5), (5, 1), (7, 5 / 7)):
        point = Point()

        train(point, epochs=1, accumulate=batches, batches=Batches(10, size=2))

        assert moved(point) == pytest.approx([-0.1 * steps] * 4, rel=1e-5)


def test_accumulated_batches_are_as_good_as_one_large_batch() -> None:
    moves = []
    for size, accumulate in ((6, 1), (2, 3)):
        point = Point()
        slope = downhill(point, lambda indices: float(indices.float().mean()))
        train(point, slope, accumulate=accumulate, batches=Batches(12, size=size), momentum=0.9)
        moves.append(moved(point))

    assert moves[0] == pytest.approx(moves[1], rel=1e-5)


def test_a_step_whose_accumulated_gradient_is_not_finite_is_left_out() -> None:
    point = Point()

    history = train(
        point,
        poisoned(point, 2, by=math.inf),
        epochs=1,
        accumulate=2,
        batches=Batches(12, size=2),
        on_non_finite=OnNonFinite.SKIP,
    )

    assert history[0]["non_finite"] == 1
    assert moved(point) == pytest.approx([-0.1 * 2.5] * 4, rel=1e-5)


@pytest.mark.parametrize(("numbers", "moves"), [([2], 1.5), ([4], 1.5), ([5], 2.0), ([1, 5], 1.0)])
def test_a_sum_of_gradients_that_is_not_finite_is_left_out_whole(
    numbers: list[int], moves: float
) -> None:
    point, count = Point(), iter(range(1, 10))

    def step(indices: Tensor, images: Tensor) -> Mapping[str, Tensor]:
        if next(count) not in numbers:
            return downhill(point)(indices, images)
        return {"loss": (point.value - point.value.detach()).sqrt().sum()}  # 0, infinitely steep

    history = train(
        point, step, epochs=1, accumulate=2, batches=Batches(10, size=2),
        on_non_finite=OnNonFinite.SKIP,
    )  # fmt: skip

    assert history[0]["non_finite"] == len(numbers)
    assert moved(point) == pytest.approx([-0.1 * moves] * 4, rel=1e-5)


@pytest.mark.parametrize(
    ("precision", "scale"), [(Precision.FP32, 1), (Precision.BF16, 1), (Precision.FP16, 64)]
)
def test_only_fp16_scales_the_loss_and_no_step_is_longer_for_it(
    precision: Precision, scale: float
) -> None:
    point, seen = Point(), list[float]()
    register: Any = point.value.register_hook
    register(lambda gradient: seen.append(float(gradient[0])))

    train(point, epochs=1, precision=precision, max_grad_norm=100.0)

    assert seen == [scale] * STEPS
    assert moved(point) == pytest.approx([-STEPS * 0.1] * 4, rel=1e-5)


def test_the_metrics_of_an_epoch_are_means_over_its_steps() -> None:
    point = Point()

    history = train(point, lambda indices, _: {"loss": point(1.0), "first": indices[0].float()})

    # The loss falls by 4 x 0.1 with each step of the first epoch.
    assert history[0]["loss"] == pytest.approx(4 - 0.4 * (0 + 1 + 2) / 3)
    chosen = [int(indices[0]) for indices, *_ in Batches(6, size=2).epoch(1)]
    assert history[0]["first"] == pytest.approx(sum(chosen) / STEPS)
    assert history[0].keys() == {"loss", "first", "lr"}


def test_a_module_trains_in_training_mode_and_is_judged_and_left_in_the_other() -> None:
    point, judged = Point().eval(), list[bool]()

    def score() -> float:
        judged.append(point.training)
        return 0.0

    train(point, epochs=2, score=score)

    assert point.trained == [True] * (2 * STEPS)
    assert judged == [False, False]
    assert not point.training


@pytest.mark.parametrize(("scores", "best"), [((1, 3, 2), 2), ((3, 3, 1), 1), ((1, 2, 3), 3)])
def test_a_module_ends_as_it_was_after_its_first_best_epoch(
    scores: tuple[float, ...], best: int
) -> None:
    point, left = Point(), iter(scores)

    history = train(point, epochs=3, score=lambda: next(left))

    assert [epoch["score"] for epoch in history] == list(scores)
    rates = [epoch["lr"] for epoch in history[:best]]
    assert moved(point) == pytest.approx([-STEPS * sum(rates)] * 4, rel=1e-5)


def test_a_module_ends_as_the_weighted_sum_of_its_epochs() -> None:
    point = Point()

    history = train(point, averaging=(0.25, 0.75))

    first, second = (STEPS * epoch["lr"] for epoch in history)
    expected = 0.25 * (1 - first) + 0.75 * (1 - first - second)
    assert point.value.tolist() == pytest.approx([expected] * 4, rel=1e-5)


class Uneven(Batches):
    """Three batches an epoch, of the sizes given."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(sum(sizes), size=1)
        self._sizes = sizes

    @property
    def steps(self) -> int:
        return len(self._sizes)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        parts = torch.arange(sum(self._sizes)).split(list(self._sizes))  # type: ignore[no-untyped-call]
        for number, indices in enumerate(parts[start:], start=start):
            yield Batch(indices, self._images[indices], epoch, number)


def test_the_loss_is_told_for_the_last_step_of_an_epoch_whose_last_batch_was_passed_over() -> None:
    seen: list[int] = []

    train(
        Point(),
        batches=Uneven(2, 3, 1),
        least_batch=2,
        on_loss=lambda number, _: seen.append(number),
    )

    assert seen == [2, 5]


def test_batches_with_too_few_images_are_passed_over() -> None:
    point, seen = Point(), list[int]()

    train(
        point,
        downhill(point, lambda indices: len(indices)),
        batches=Uneven(3, 1, 2),
        epochs=1,
        least_batch=2,
        on_progress=lambda done, _: seen.append(done),
    )

    assert moved(point) == pytest.approx([-0.1 * (3 + 2)] * 4, rel=1e-5)
    assert seen == [1, 3]


def test_without_a_least_size_an_empty_batch_is_passed_over_and_one_image_is_not() -> None:
    point = Point()

    train(point, batches=Uneven(3, 0, 1), epochs=1)

    assert moved(point) == pytest.approx([-0.1 * 2] * 4, rel=1e-5)


def test_an_epoch_without_a_batch_that_is_large_enough_is_refused() -> None:
    with pytest.raises(BadParams) as caught:
        train(Point(), batches=Uneven(2, 1, 2), least_batch=3)

    assert str(caught.value) == (
        "epoch 1 has no batch of 3 or more intact images; lower batch_size, or give more images"
    )


def test_damaged_pictures_that_were_left_out_are_counted_if_there_are_any() -> None:
    batches = Batches(6, size=2)
    batches.left_out = 2

    assert [epoch["skipped"] for epoch in train(Point(), batches=batches)] == [2, 2]
    assert "skipped" not in train(Point())[0]


@pytest.mark.parametrize("by", [math.nan, math.inf, -math.inf])
def test_a_batch_whose_loss_is_not_finite_can_be_left_out_and_is_counted(by: float) -> None:
    point = Point()

    history = train(point, poisoned(point, 2, by=by), on_non_finite=OnNonFinite.SKIP)

    assert moved(point) == pytest.approx([-0.1 * 2 - 0.05 * 3] * 4, rel=1e-5)
    assert history[0]["non_finite"] == 1
    assert history[0]["loss"] == pytest.approx(4 - 0.4 / 2)
    assert "non_finite" not in history[1]


def steep(point: Point, *numbers: int) -> Step:
    """Make a step whose loss is 0 with an infinite gradient some times, counted from 1."""
    count = iter(range(1, 1000))

    def step(*_: Tensor) -> Mapping[str, Tensor]:
        loss = point(1.0)
        return {"loss": (loss - loss.detach()).sqrt() if next(count) in numbers else loss}

    return step


def test_a_batch_whose_gradient_is_not_finite_can_be_left_out_too() -> None:
    point = Point()

    history = train(point, steep(point, 1), epochs=1, on_non_finite=OnNonFinite.SKIP)

    assert history[0]["non_finite"] == 1
    assert moved(point) == pytest.approx([-0.1 * 2] * 4, rel=1e-5)


def test_no_more_than_half_of_an_epoch_may_have_such_gradients() -> None:
    point = Point()

    with pytest.raises(Diverged) as caught:
        train(point, steep(point, 1, 3), on_non_finite=OnNonFinite.SKIP)

    third = list(Batches(6, size=2).epoch(1))[2][0].tolist()
    assert str(caught.value).startswith(
        "the loss is 0.0, and more than half of the epoch's batches were left out, at epoch 1,"
        f" step 3, on {third[0]}.png, {third[1]}.png;"
    )


def test_clipping_alone_leaves_no_batch_out() -> None:
    point = Point()

    with pytest.raises(Diverged):
        train(point, steep(point, 1), max_grad_norm=1.0)


def test_in_fp16_the_scaling_of_the_loss_passes_over_a_steep_batch_and_it_is_not_counted() -> None:
    point = Point()

    history = train(
        point,
        steep(point, 1),
        epochs=1,
        precision=Precision.FP16,
        on_non_finite=OnNonFinite.SKIP,
    )

    assert "non_finite" not in history[0]
    assert moved(point) == pytest.approx([-0.1 * 2] * 4, rel=1e-5)


def test_half_of_an_epoch_may_be_left_out_and_no_more() -> None:
    four: dict[str, Any] = {"epochs": 1, "on_non_finite": OnNonFinite.SKIP}
    point = Point()
    history = train(point, poisoned(point, 1, 2), batches=Batches(8, size=2), **four)
    assert history[0]["non_finite"] == 2

    point = Point()
    with pytest.raises(Diverged) as caught:
        train(point, poisoned(point, 1, 2, 3), batches=Batches(8, size=2), **four)

    third = list(Batches(8, size=2).epoch(1))[2][0].tolist()
    assert str(caught.value).startswith(
        "the loss is nan, and more than half of the epoch's batches were left out, at epoch 1,"
        f" step 3, on {third[0]}.png, {third[1]}.png;"
    )


def test_what_was_left_out_is_counted_anew_in_each_epoch() -> None:
    point = Point()

    history = train(point, poisoned(point, 1, 4), on_non_finite=OnNonFinite.SKIP)

    assert [epoch["non_finite"] for epoch in history] == [1, 1]


def test_a_loss_that_is_not_finite_stops_the_run_by_default_and_names_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    point, kept = Point(), checkpoints(tmp_path)

    with pytest.raises(Diverged) as caught:
        train(point, poisoned(point, 5), checkpoints=kept)

    second = [indices.tolist() for indices, *_ in Batches(6, size=2).epoch(2)][1]
    assert str(caught.value).startswith(
        f"the loss is nan at epoch 2, step 2, on {second[0]}.png, {second[1]}.png;"
        f" last good checkpoint: '{kept.newest()}'"
    )
    assert kept.newest() is not None
    assert kept.newest() == checkpoints(tmp_path).newest()


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
