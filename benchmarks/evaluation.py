"""Evaluation: the stage's way through pictures in files, against a bare loop over the student.

The bare loop has the same batches as tensors in memory, so that it only computes; the difference
is what decoding, and everything around it, costs. With a process that decodes, seconds of the wall
say so; the clock of the processor does not see that process.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.outcome import Outcome
from benchmarks.sizes import SMALL, TINY_SMALL, build, class_names
from benchmarks.timing import Note, Work, check_agreement, take_turns
from pd_core.core.options import Precision
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, eval_transform
from pd_core.models.class_vectors import Classifier, ClassVectors, distilled, logits_of
from pd_core.models.student import Student

BARE, DECODING = "bare loop", "decoding alone"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmark: model, images, images a batch, their sides in pixels."""

    model: str = SMALL
    pictures: int = 48
    batch: int = 16
    sides: tuple[int, int] = (500, 400)
    workers: tuple[int, ...] = (0, 1)
    rounds: int = 4


REAL = Size()
TINY = Size(TINY_SMALL, pictures=6, batch=4, sides=(40, 30), workers=(0,), rounds=2)


def measure(size: Size, note: Note) -> Outcome:
    """Measure the throughput of both ways."""
    towers = build(size.model)
    width, names = 768, tuple(class_names(100))
    noise = torch.randn(len(names), width, generator=torch.Generator().manual_seed(0))
    shared = ClassVectors(names, normalize(noise, dim=-1), towers.logit_scale, "random")
    student = Student.untrained(towers, feature_width=width, seed=1).eval()
    judge = distilled(student, shared)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), size)

        def batches(workers: int = 0) -> ImageBatches:
            # Nothing decoded is kept: a data set of photos would not fit into memory.
            store = ImageStore(Path(folder), keep_bytes=0)
            transform = eval_transform(towers.preprocess)
            return ImageBatches(store, paths, transform, batch_size=size.batch, workers=workers)

        decoded = [batch.images for batch in batches().in_order()]
        sides: dict[str, Work] = {BARE: lambda: _bare(judge, decoded)}
        for workers in size.workers:
            sides[_ours(workers)] = _stage(judge, batches(workers))
        sides[DECODING] = lambda: float(sum(len(batch.indices) for batch in batches().in_order()))
        turns = take_turns(sides, rounds=size.rounds, note=note)
    check_agreement({side: turns.values[side] for side in (BARE, *map(_ours, size.workers))})
    rows = [
        turns.row(
            f"throughput of {size.pictures} pictures, {_decoders(workers)}", BARE, _ours(workers),
            clock="wall", least=0.95,
        )
        for workers in size.workers
    ]  # fmt: skip
    alone = turns.row("decoding alone, against the bare loop", DECODING, BARE)
    return Outcome((*rows, alone))


def write_pictures(folder: Path, size: Size) -> list[str]:
    """Write pictures as photos are, half of them JPEG and half PNG; return their names."""
    rng = np.random.default_rng(0)
    names = []
    for number in range(size.pictures):
        blobs = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(blobs.resize(size.sides, Image.Resampling.BICUBIC)).astype(int)
        grainy = (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        names.append(f"{number}.{'png' if number % 2 else 'jpg'}")
        Image.fromarray(grainy).save(folder / names[-1])
    return names


def _bare(judge: Classifier, decoded: list[Tensor]) -> float:
    with torch.inference_mode():
        return sum(float(judge.logits(images).abs().sum()) for images in decoded)


def _stage(judge: Classifier, batches: ImageBatches) -> Work:
    def work() -> float:
        logits = logits_of({"student": judge}, batches, CPU, Precision.FP32)
        return float(np.abs(logits["student"]).sum())

    return work


def _ours(workers: int) -> str:
    return f"the stage, {_decoders(workers)}"


def _decoders(workers: int) -> str:
    return f"{workers} decoding processes" if workers != 1 else "1 decoding process"
