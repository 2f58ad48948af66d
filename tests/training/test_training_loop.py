"""What the training loop does to a module of four numbers, step by step and worked out by hand."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from point import STEPS, Point, downhill, moved, train
from tiny import Batches
from trainings import batch, fit

from pd_core.core.errors import BadParams
from pd_core.core.options import Precision
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


def test_the_first_epoch_is_the_published_warm_up_by_default() -> None:
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
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_gradients_are_scaled_down_to_the_largest_norm(
    largest: float | None, step: float, precision: Precision
) -> None:
    point = Point()  # whose gradient has norm 2

    train(point, epochs=1, max_grad_norm=largest, precision=precision)

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


def test_a_module_trains_in_training_mode_and_is_scored_and_left_in_the_other() -> None:
    point, scored = Point().eval(), list[bool]()

    def score() -> float:
        scored.append(point.training)
        return 0.0

    train(point, epochs=2, score=score)

    assert point.trained == [True] * (2 * STEPS)
    assert scored == [False, False]
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
            yield batch(self._images[indices], indices, epoch, number)


def test_the_loss_is_reported_for_the_last_step_of_an_epoch_whose_last_batch_was_skipped() -> None:
    seen: list[int] = []

    train(
        Point(), batches=Uneven(2, 3, 1), least_batch=2, on_loss=lambda step, _: seen.append(step)
    )

    assert seen == [2, 5]


def test_batches_with_too_few_images_are_passed_over() -> None:
    point, seen = Point(), list[int]()

    train(
        point, downhill(point, len), batches=Uneven(3, 1, 2), epochs=1, least_batch=2,
        on_progress=lambda done, _: seen.append(done),
    )  # fmt: skip

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
