"""The training loop: schedule, optimiser, averaging, resuming, precision."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import Batches, checkpoints
from torch import Tensor, nn
from trainings import fit

from pd_core.core.errors import BadParams, Diverged
from pd_core.core.options import Precision
from pd_core.models.precision import autocast, set_threads
from pd_core.training.loop.fit import EVERY
from pd_core.training.loop.schedule import WeightedSum, gaussian_weights, learning_rate


def network() -> nn.Module:
    """Make a small network with batch norm, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(768, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def step_of(
    module: nn.Module, precision: Precision = Precision.FP32
) -> Callable[[Tensor, Tensor], Mapping[str, Tensor]]:
    def step(indices: Tensor, images: Tensor) -> Mapping[str, Tensor]:
        with autocast(images.device, precision):
            outputs = module(images.flatten(1))
        loss = F.cross_entropy(outputs.float(), indices % 2)
        return {"loss": loss, "twice": 2 * loss}

    return step


def state(module: nn.Module) -> list[Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_rate_is_constant_at_first_and_never_reaches_zero() -> None:
    rates = [
        learning_rate(epoch, epochs=20, peak=0.005, warmup_epochs=1, warmup_lr=1e-5)
        for epoch in range(1, 21)
    ]

    assert rates[:2] == [1e-5, 0.005]
    assert rates[2] == pytest.approx(0.5 * 0.005 * (1 + math.cos(math.pi / 20)))
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(0.5 * 0.005 * (1 + math.cos(math.pi * 18 / 20)))
    assert rates[-1] > 1e-5


def test_a_longer_warm_up_delays_the_peak() -> None:
    def rate(epoch: int) -> float:
        return learning_rate(epoch, epochs=5, peak=0.1, warmup_epochs=2, warmup_lr=0.01)

    assert [rate(1), rate(2), rate(3)] == [0.01, 0.01, 0.1]


def test_gaussian_weights_add_up_to_one_and_peak_at_their_mean() -> None:
    weights = gaussian_weights(20, mean=15, deviation=1)

    assert sum(weights) == pytest.approx(1)
    assert weights.index(max(weights)) + 1 == 15
    assert weights[13] == pytest.approx(weights[15])
    assert weights[13] / weights[14] == pytest.approx(math.exp(-0.5))


def test_gaussian_weights_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadParams, match="deviation = 0"):
        gaussian_weights(20, mean=15, deviation=0)
    with pytest.raises(BadParams, match="mean = 500 .* between 1 and 3"):
        gaussian_weights(3, mean=500, deviation=1)


def test_training_ends_as_the_weighted_sum_of_its_epochs() -> None:
    weights = (0.2, 0.5, 0.3)
    seen: list[list[Tensor]] = []
    watched = network()
    fit(
        watched,
        step_of(watched),
        Batches(16, size=4),
        epochs=3,
        lr=0.1,
        on_epoch=lambda _, __: seen.append([p.detach().clone() for p in watched.parameters()]),
    )
    averaged = network()

    fit(averaged, step_of(averaged), Batches(16, size=4), epochs=3, lr=0.1, averaging=weights)

    for number, parameter in enumerate(averaged.parameters()):
        expected = sum(w * epoch[number] for w, epoch in zip(weights, seen, strict=True))
        torch.testing.assert_close(parameter.detach(), expected)


def test_a_weighted_sum_only_holds_what_is_trained() -> None:
    module = network()
    module[0].requires_grad_(requires_grad=False)  # type: ignore[index]

    assert not any(name.startswith("0.") for name in WeightedSum(module, (1.0,)).sums)


def test_training_lowers_the_loss_and_reports_every_scalar() -> None:
    module, reports = network(), []

    history = fit(
        module,
        step_of(module),
        Batches(16, size=4),
        epochs=8,
        lr=0.1,
        on_epoch=lambda epoch, metrics: reports.append((epoch, metrics)),
    )

    assert [epoch for epoch, _ in reports] == list(range(1, 9))
    assert [metrics for _, metrics in reports] == history
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[3]["twice"] == pytest.approx(2 * history[3]["loss"])
    assert history[3]["lr"] == learning_rate(4, epochs=8, peak=0.1, warmup_epochs=1, warmup_lr=1e-5)
    assert not module.training


def test_progress_counts_every_step_of_all_epochs() -> None:
    module = network()
    seen: list[tuple[int, int]] = []

    fit(
        module,
        step_of(module),
        Batches(10, size=4),
        epochs=3,
        lr=0.1,
        on_progress=lambda done, total: seen.append((done, total)),
    )

    assert seen == [(number, 6) for number in range(1, 7)]


class StopError(Exception):
    """Stands for whatever interrupts a run."""


def stop_after(last: int) -> Callable[[int, dict[str, float]], None]:
    def on_epoch(epoch: int, _: dict[str, float]) -> None:
        if epoch == last:
            raise StopError

    return on_epoch


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, precision: Precision) -> None:
    def train(module: nn.Module, **rest: Any) -> list[dict[str, float]]:
        return fit(
            module,
            step_of(module, precision),
            Batches(16, size=4),
            epochs=5,
            lr=0.1,
            averaging=gaussian_weights(5, mean=3, deviation=2),
            precision=precision,
            **rest,
        )

    whole, resumed = network(), network()
    expected = train(whole)

    for last in (2, 4):
        with pytest.raises(StopError):
            train(network(), checkpoints=checkpoints(tmp_path), on_epoch=stop_after(last))
    history = train(resumed, checkpoints=checkpoints(tmp_path))

    assert same(state(resumed), state(whole))
    assert history == expected


def test_a_run_whose_first_steps_all_overflowed_can_be_resumed(tmp_path: Path) -> None:
    def train(module: nn.Module, **rest: Any) -> list[dict[str, float]]:
        def step(indices: Tensor, images: Tensor) -> Mapping[str, Tensor]:
            values = step_of(module, Precision.FP16)(indices, images)
            return {name: 1e30 * value for name, value in values.items()}

        return fit(
            module, step, Batches(8, size=4), epochs=3, lr=0.1, precision=Precision.FP16,
            checkpoints=checkpoints(tmp_path), **rest,
        )  # fmt: skip

    with pytest.raises(StopError):
        train(network(), on_epoch=stop_after(2))
    resumed = network()

    assert len(train(resumed)) == 3
    before = dict(network().named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in resumed.named_parameters())


def test_the_checkpoint_of_another_run_is_not_taken_up(tmp_path: Path) -> None:
    def train(key: str) -> list[Tensor]:
        module = network()
        fit(
            module,
            step_of(module),
            Batches(16, size=4),
            epochs=2,
            lr=0.1 if key == "a" else 0.2,
            checkpoints=checkpoints(tmp_path, key=key),
        )
        return state(module)

    first = train("a")

    assert not same(train("b"), first)


@pytest.mark.parametrize("precision", list(Precision))
def test_every_precision_trains_fp32_parameters(precision: Precision) -> None:
    module = network()

    history = fit(
        module,
        step_of(module, precision),
        Batches(16, size=4),
        epochs=6,
        lr=0.1,
        precision=precision,
    )

    assert history[-1]["loss"] < history[0]["loss"]
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


def test_the_towers_compute_in_the_precision_asked_for() -> None:
    linear, inputs = nn.Linear(4, 4), torch.ones(2, 4)
    dtypes = {}
    for precision in Precision:
        with autocast(torch.device("cpu"), precision):
            dtypes[precision] = linear(inputs).dtype

    assert dtypes == {
        Precision.FP32: torch.float32,
        Precision.BF16: torch.bfloat16,
        Precision.FP16: torch.float16,
    }


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line() -> None:
    module = network()

    def step(indices: Tensor, images: Tensor) -> Mapping[str, Tensor]:
        return {"loss": step_of(module)(indices, images)["loss"] * math.inf}

    with pytest.raises(Diverged, match="the loss is inf at epoch 1, step 1, on .*lower lr"):
        fit(module, step, Batches(8, size=4), epochs=2, lr=0.1)


def test_no_threads_are_refused() -> None:
    with pytest.raises(BadParams, match="threads = 0"):
        set_threads(0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_waits_for_the_gpu() -> None:
    device, module = torch.device("cuda"), network().cuda()
    count = 2 * EVERY  # the losses are looked at after so many steps, which does wait
    waits: list[int] = []

    def step(indices: Tensor, images: Tensor) -> Mapping[str, Tensor]:
        waits.append(1)
        torch.cuda.set_sync_debug_mode("default" if len(waits) % EVERY == 0 else "error")
        return step_of(module)(indices, images)

    try:
        fit(module, step, Batches(2 * count, size=2), epochs=1, lr=0.1, device=str(device))
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert len(waits) == count
