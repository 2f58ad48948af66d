"""Numbers that go wrong stop a training with what is needed to find out why, or are left out."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn
from trainings import fit

from pd_core.core.errors import Diverged
from pd_core.core.options import OnNonFinite, Precision
from pd_core.training.loop.fit import EVERY

Step = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


class Weights(nn.Module):
    """Two numbers, trained on losses that a test chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(2))
        self.batches: list[list[int]] = []

    def step(self, wrong: Mapping[int, float], slope: float = 1.0) -> Step:
        """Make a step; `wrong` maps the number of a step, from 1, to a factor of its loss."""

        def step(indices: Tensor, images: Tensor) -> Mapping[str, Tensor]:
            del images
            self.batches.append(indices.tolist())
            return {"loss": wrong.get(len(self.batches), 1.0) * slope * self.value.sum()}

        return step

    def steep_step(self, after: int) -> Step:
        """Make a step whose loss is 0 and whose slope, after some steps, is infinite."""

        def step(indices: Tensor, images: Tensor) -> Mapping[str, Tensor]:
            del images
            self.batches.append(indices.tolist())
            distance = (self.value - self.value.detach()).abs()
            return {"loss": (distance.sqrt() if len(self.batches) > after else distance).sum()}

        return step


def train(module: Weights, step: Step, count: int = 16, **rest: object) -> list[dict[str, float]]:
    given = {"epochs": 2, "lr": 0.1, "warmup_epochs": 0, **rest}
    return fit(module, step, tiny.Batches(count, size=4), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_with_step_pictures_and_last_good_checkpoint(
    factor: float, tmp_path: Path
) -> None:
    module, checkpoints = Weights(), tiny.checkpoints(tmp_path)

    with pytest.raises(Diverged) as caught:
        train(module, module.step({6: factor}), checkpoints=checkpoints)

    first, then = str(caught.value).split("; last good checkpoint: ")
    loss = -factor  # the weights are below zero by then
    pictures = ", ".join(f"{index}.png" for index in module.batches[5])
    assert first == f"the loss is {loss} at epoch 2, step 2, on {pictures}"
    assert then.startswith(f"'{checkpoints.folder / 'checkpoint-000002-000000000.safetensors'}';")
    assert "on_non_finite: skip" in then
    found = checkpoints.latest()
    assert found is not None
    assert torch.isfinite(found[0]["module.value"]).all()


def test_it_is_noticed_within_an_epoch_though_not_at_every_step() -> None:
    module, told = Weights(), list[object]()

    with pytest.raises(Diverged, match="at epoch 1, step 3, on .*last good checkpoint: none"):
        train(
            module, module.step({3: math.nan}), count=4 * 3 * EVERY,
            on_loss=lambda *loss: told.append(loss),
        )  # fmt: skip

    assert len(module.batches) == EVERY
    assert told == []


def test_weights_that_are_not_finite_are_not_stored(tmp_path: Path) -> None:
    module, checkpoints = Weights(), tiny.checkpoints(tmp_path)

    with pytest.raises(Diverged, match="a weight is not finite at epoch 2, step 0"):
        train(module, module.steep_step(after=3), checkpoints=checkpoints)

    assert checkpoints.latest() is None


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_such_batches_can_be_left_out_and_are_counted(precision: Precision) -> None:
    module = Weights()

    history = train(
        module, module.step({2: math.nan, 7: math.inf, 8: -math.inf}),
        on_non_finite=OnNonFinite.SKIP, precision=precision,
    )  # fmt: skip

    assert [row.get("non_finite") for row in history] == [1, 2]
    assert torch.isfinite(module.value).all()
    assert all(math.isfinite(row["loss"]) for row in history)


def test_a_batch_left_out_changes_nothing() -> None:
    with_it, without = Weights(), Weights()

    train(with_it, with_it.step({4: math.nan}), epochs=1, on_non_finite=OnNonFinite.SKIP)
    train(without, without.step({}), count=12, epochs=1)

    assert torch.equal(with_it.value, without.value)


def test_gradients_that_are_not_finite_are_left_out_too() -> None:
    module = Weights()

    with pytest.raises(Diverged, match="the loss is 0.0, and more than half .* were left out"):
        train(module, module.steep_step(after=0), on_non_finite=OnNonFinite.SKIP)
    assert torch.equal(module.value.detach(), torch.ones(2))


def test_more_than_half_of_an_epoch_is_not_left_out() -> None:
    module = Weights()

    with pytest.raises(Diverged, match="more than half of the epoch's batches.* step 4, on"):
        train(module, module.step({1: math.nan, 3: math.nan, 4: math.nan}),
              on_non_finite=OnNonFinite.SKIP)  # fmt: skip


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_gradients_are_scaled_down_to_the_norm_asked_for(precision: Precision) -> None:
    clipped, free = Weights(), Weights()

    for module, norm in ((clipped, 0.5), (free, None)):
        train(
            module, module.step({}, slope=3.0), count=4, epochs=1, weight_decay=0.0,
            max_grad_norm=norm, precision=precision,
        )  # fmt: skip

    # One step of rate 0.1; the gradient is (3, 3).
    torch.testing.assert_close(free.value.detach(), torch.full((2,), 1 - 0.3))
    torch.testing.assert_close(clipped.value.detach(), torch.full((2,), 1 - 0.05 / math.sqrt(2)))


def test_smaller_gradients_are_left_as_they_are() -> None:
    clipped, free = Weights(), Weights()

    train(clipped, clipped.step({}), max_grad_norm=10.0)
    train(free, free.step({}))

    assert torch.equal(clipped.value, free.value)


def test_many_pictures_are_not_all_named() -> None:
    module = Weights()

    with pytest.raises(Diverged) as caught:
        fit(module, module.step({1: math.nan}), tiny.Batches(40, size=20), epochs=1, lr=0.1)

    assert str(caught.value).count(".png") == 16
    assert " and 4 more;" in str(caught.value)
