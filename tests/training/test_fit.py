"""The training loop trains a real network: reports, precision, resumption in fp16."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import Batches, checkpoints
from torch import Tensor, nn
from trainings import fit, run_of

from pd_core.core.errors import BadParams
from pd_core.core.options import Precision
from pd_core.models.precision import autocast, set_threads
from pd_core.training.loop.feature_cache import FeatureCache
from pd_core.training.loop.fit import EVERY, store
from pd_core.training.loop.schedule import WeightedSum, learning_rate


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


def test_a_weighted_sum_only_holds_what_is_trained() -> None:
    module = network()
    module[0].requires_grad_(requires_grad=False)  # type: ignore[index]

    assert not any(name.startswith("0.") for name in WeightedSum(module, (1.0,)).sums)


def test_training_lowers_the_loss_and_reports_every_scalar_and_step() -> None:
    module, reports, progress = network(), [], list[tuple[int, int]]()

    history = fit(
        module, step_of(module), Batches(16, size=4), epochs=8, lr=0.1,
        on_epoch=lambda epoch, metrics: reports.append((epoch, metrics)),
        on_progress=lambda done, total: progress.append((done, total)),
    )  # fmt: skip

    assert reports == list(enumerate(history, start=1))
    assert progress == [(number, 32) for number in range(1, 33)]
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[3]["twice"] == pytest.approx(2 * history[3]["loss"])
    assert history[3]["lr"] == learning_rate(4, epochs=8, peak=0.1, warmup_epochs=1, warmup_lr=1e-5)
    assert not module.training


def test_a_run_whose_first_steps_all_overflowed_can_be_resumed(tmp_path: Path) -> None:
    def train(module: nn.Module, **rest: Any) -> list[dict[str, float]]:
        def step(indices: Tensor, images: Tensor) -> Mapping[str, Tensor]:
            values = step_of(module, Precision.FP16)(indices, images)
            return {name: 1e30 * value for name, value in values.items()}

        return fit(
            module, step, Batches(8, size=4), epochs=3, lr=0.1, precision=Precision.FP16,
            checkpoints=checkpoints(tmp_path), **rest,
        )  # fmt: skip

    def stop(epoch: int, _: dict[str, float]) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(network(), on_epoch=stop)
    resumed = network()

    assert len(train(resumed)) == 3
    before = dict(network().named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in resumed.named_parameters())


@pytest.mark.parametrize("precision", list(Precision))
def test_every_precision_trains_fp32_parameters(precision: Precision) -> None:
    module = network()

    history = fit(
        module, step_of(module, precision), Batches(16, size=4), epochs=6, lr=0.1,
        precision=precision,
    )  # fmt: skip

    assert history[-1]["loss"] < history[0]["loss"]
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


def test_no_threads_are_refused() -> None:
    with pytest.raises(BadParams, match="threads = 0"):
        set_threads(0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_waits_for_the_gpu() -> None:
    device, module = torch.device("cuda"), network().cuda()
    count = 2 * EVERY  # the losses are checked after so many steps, which does wait
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


def test_a_model_is_stored_with_its_history_and_its_checkpoints_go(tmp_path: Path) -> None:
    class Model:
        def save(self, path: Path) -> None:
            path.write_text("weights")

    kept = checkpoints(tmp_path)
    kept.folder.mkdir(parents=True)
    (kept.folder / "1.safetensors").write_text("state")
    run = run_of({"checkpoints": kept})

    store(Model(), [{"loss": 0.5}], tmp_path / "out" / "model.safetensors", run)

    assert (tmp_path / "out" / "model.safetensors").read_text() == "weights"
    assert json.loads((tmp_path / "out" / "history.json").read_text()) == [{"loss": 0.5}]
    assert not kept.folder.exists()


def test_features_that_a_training_needs_but_has_no_cache_for_are_refused(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, limit=1000)

    assert run_of({"features": cache}).required_features() is cache
    with pytest.raises(BadParams, match="compute them online"):
        run_of({}).required_features()
