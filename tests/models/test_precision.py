"""One parameter chooses fp32, bf16 or fp16 for the towers; trained parameters stay fp32."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import open_clip
import pytest
import tiny
import torch
import trainings
from torch import Tensor, nn
from torch.optim import SGD

from pd_core.core.options import Precision
from pd_core.models import class_vectors, clip
from pd_core.models.clip import ClipTowers
from pd_core.models.precision import is_emulated
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.training.loop import fit

DTYPES = {
    Precision.FP32: torch.float32,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
}
PRECISIONS = pytest.mark.parametrize("precision", list(Precision))
DEVICES = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ),
    ],
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: more only get in each other's way with models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Run:
    """A tuned teacher, and a student distilled from it."""

    modules: list[nn.Module] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of every epoch of both
    optimizers: list[SGD] = field(default_factory=list)
    image_dtypes: set[torch.dtype] = field(default_factory=set)  # of the blocks' outputs
    text_dtypes: set[torch.dtype] = field(default_factory=set)


def towers(device: str, *, seed: int = 0) -> ClipTowers:
    model = tiny.model(seed=seed).to(device)
    tokenize = open_clip.SimpleTokenizer(context_length=tiny.CONTEXT_LENGTH)
    return clip.freeze("tiny", model, tokenize)


def watch(tower: Any, seen: set[torch.dtype]) -> None:
    """Note what the blocks of a tower compute in."""
    for block in tower.transformer.resblocks:
        block.mlp.register_forward_hook(lambda _, __, output: seen.add(output.dtype))


@cache
def trained(precision: Precision, device: str) -> Run:
    """Tune a tiny teacher and distil it, for two epochs each."""
    run = Run()
    large, small = towers(device), towers(device, seed=1)
    vectors = class_vectors.build(Teacher(large), tiny.NAMES)
    for tower in (large.visual, small.visual):
        watch(tower, run.image_dtypes)
    watch(large.text, run.text_dtypes)
    labels, make = torch.arange(16) % len(tiny.NAMES), fit.make_optimizer

    def record(*args: Any, **rest: Any) -> SGD:
        run.optimizers.append(make(*args, **rest))
        return run.optimizers[-1]

    with patch.object(fit, "make_optimizer", record):
        teacher, first = trainings.tune(
            large, tiny.Batches(16, size=8), labels, tiny.NAMES,
            epochs=2, gpa_mean=2, templates=2, precision=precision,
        )  # fmt: skip
        student, second = trainings.distill(
            small, teacher, vectors, tiny.Batches(16, size=8),
            epochs=2, lr=1e-4, precision=precision,
        )  # fmt: skip
    run.modules = [teacher, student]
    run.losses = [metrics["loss"] for metrics in (*first, *second)]
    return run


@DEVICES
@PRECISIONS
def test_everything_that_is_trained_stays_fp32(precision: Precision, device: str) -> None:
    run = trained(precision, device)

    parameters = [p for module in run.modules for p in module.parameters()]
    assert {p.dtype for p in parameters} == {torch.float32}
    assert {p.device.type for p in parameters} == {device}
    states = [state for optimizer in run.optimizers for state in optimizer.state.values()]
    assert len(states) == len(parameters)
    assert {state["momentum_buffer"].dtype for state in states} == {torch.float32}
    statistics = [value for value in run.modules[1].buffers() if value.is_floating_point()]
    assert {value.dtype for value in statistics} == {torch.float32}


@DEVICES
@PRECISIONS
def test_the_towers_compute_in_the_precision_asked_for(precision: Precision, device: str) -> None:
    run = trained(precision, device)

    assert run.image_dtypes == {DTYPES[precision]}
    # The frozen text features of the templates are computed once, and in full.
    assert run.text_dtypes == {DTYPES[precision], torch.float32}


@DEVICES
@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_low_precision_changes_the_losses_but_little(precision: Precision, device: str) -> None:
    losses, full = trained(precision, device).losses, trained(Precision.FP32, device).losses

    assert losses != full
    assert losses == pytest.approx(full, rel=0.03)


class Overflow(nn.Module):
    """A number whose gradient overflows at the first steps, once the loss is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(3))
        self.history: list[list[float]] = []

    def step(self, overflows: int) -> Any:
        """Make a step whose scaled loss overflows a number of times."""

        def step(indices: Tensor, images: Tensor) -> dict[str, Tensor]:
            del indices, images
            self.history.append(self.value.tolist())
            size = 1e38 if len(self.history) <= overflows else 1.0
            return {"loss": (self.value * size).mean()}

        return step


@DEVICES
def test_a_step_that_overflows_is_skipped_and_the_scale_halved(device: str, tmp_path: Path) -> None:
    module = Overflow().to(device)
    trainings.fit(
        module, module.step(overflows=2), tiny.Batches(16, size=4),
        epochs=1, lr=0.1, warmup_epochs=0, device=device, precision=Precision.FP16,
        checkpoints=tiny.checkpoints(tmp_path),
    )  # fmt: skip

    assert module.history[:3] == [[1.0] * 3] * 3
    assert module.history[3] != [1.0] * 3
    assert torch.isfinite(module.value).all()
    _, numbers = tiny.stored_state(tmp_path)
    assert numbers["scaler"]["scale"] == fit.INITIAL_LOSS_SCALE / 4


@DEVICES
def test_without_fp16_the_loss_is_not_scaled(device: str) -> None:
    for precision in (Precision.FP32, Precision.BF16):
        module = Overflow().to(device)

        trainings.fit(
            module, module.step(overflows=0), tiny.Batches(8, size=4),
            epochs=1, lr=0.1, warmup_epochs=0, device=device, precision=precision,
        )  # fmt: skip

        assert module.history[1] == pytest.approx([1 - 0.1 * (1 / 3 + 5e-4)] * 3)


@DEVICES
def test_a_distillation_that_overflows_leaves_the_student_as_it_was(device: str) -> None:
    small = towers(device, seed=1)
    teacher = Teacher(towers(device))
    vectors = class_vectors.build(teacher, tiny.NAMES)

    student, history = trainings.distill(
        small, teacher, vectors, tiny.Batches(8, size=4),
        epochs=1, kd_weight=1e12, precision=Precision.FP16, seed=3,
    )  # fmt: skip

    untouched = Student.untrained(small, feature_width=16, seed=3)
    assert history[0]["loss"] > 1e8
    for name, value in student.named_parameters():
        assert torch.equal(value, untouched.get_parameter(name))
    assert all(torch.isfinite(value).all() for value in student.state_dict().values())


@pytest.mark.parametrize("instructions", ["amx_bf16", "avx512_bf16", "bf16"])
def test_a_processor_with_bf16_instructions_computes_bf16_natively(instructions: str) -> None:
    found = {"architecture": "any", instructions: True}

    assert not is_emulated(torch.device("cpu"), Precision.BF16, found)
    assert is_emulated(torch.device("cpu"), Precision.FP16, found)


def test_a_processor_without_such_instructions_emulates_both() -> None:
    found = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_fp16": False}

    assert is_emulated(torch.device("cpu"), Precision.BF16, found)
    assert is_emulated(torch.device("cpu"), Precision.FP16, found)


def test_fp32_and_other_devices_are_never_emulated() -> None:
    assert not is_emulated(torch.device("cpu"), Precision.FP32, {})
    assert not is_emulated(torch.device("cuda", 1), Precision.BF16, {})


def test_the_instructions_are_those_of_this_processor() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.is_file():
        pytest.skip("no /proc/cpuinfo")
    words = set(flags.read_text(encoding="utf-8").split())

    native = not is_emulated(torch.device("cpu"), Precision.BF16)

    assert native is bool(words & {"amx_bf16", "avx512_bf16", "bf16"})
