"""Sizes, models and ways of computing that the measurements on a GPU share."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from miniatures import miniature
from torch import Tensor

from benchmarks import reference, sizes
from benchmarks.rehearsal.trees import PIXELS
from benchmarks.timing import Work
from pd_core.core.options import Precision
from pd_core.data.catalog.catalogue import DatasetSpec, dataset_spec
from pd_core.models.clip import ClipTowers
from pd_core.models.precision import autocast
from pd_core.models.prompts import compile_blocks
from pd_core.models.teacher import Teacher


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmark.

    Attributes:
        threads: of the CPU.
        batch: images of a step of distillation.
        few: images of a step of PromptSRC.
        classes: of a step of distillation.
        taught: numbers of classes of PromptSRC.
        steps: of a measurement.
        wide: images of the step of PromptSRC whose memory is measured.
        many: its classes.
        data: row of the data set, all of whose images are for training.
        pixels: width and height of its images.
        workers: processes that decode them.
        profiled: steps of an epoch between which the GPU's share is measured.
    """

    device: str = "cuda"
    threads: int = 2
    teacher: str = sizes.LARGE
    student: str = sizes.SMALL
    batch: int = 8
    few: int = 4
    classes: int = 100
    taught: tuple[int, ...] = (37, 100, 1000)
    steps: int = 20
    wide: int = 8
    many: int = 1000
    data: DatasetSpec = replace(dataset_spec("dtd"), val=0, test=0)
    pixels: tuple[int, int] = PIXELS["dtd"]
    workers: int = min(8, os.cpu_count() or 1)  # the paper's profile has 8
    profiled: tuple[int, int] = (50, 100)
    rounds: int = 3

    @property
    def machine(self) -> str:
        """Name of the device."""
        return torch.cuda.get_device_name() if self.device == "cuda" else self.device


REAL = Size()
TINY = Size(
    device="cpu", threads=1, teacher=sizes.TINY_LARGE, student=sizes.TINY_SMALL,
    batch=4, few=2, classes=5, taught=(3, 4), steps=2, wide=2, many=5,
    data=replace(miniature("dtd"), val=0, test=0), pixels=(40, 32), workers=1, rounds=1,
)  # fmt: skip


def towers(name: str, size: Size) -> ClipTowers:
    """Make a frozen CLIP with random weights on the device."""
    built = sizes.build(name)
    for tower in (built.visual, built.text):
        tower.to(size.device)
    return built


def tokens(teacher: Teacher, names: list[str]) -> Tensor:
    """Tokenize the teacher's texts at the full context length on its device: (C, L)."""
    texts = teacher.texts(names)
    return reference.tokenize(teacher.towers, texts).to(teacher.towers.device)


def half(device: torch.device) -> AbstractContextManager[object]:
    """Compute in fp16, as the original does."""
    return autocast(device, Precision.FP16)


def plain(work: Work) -> Work:
    """Let torch choose the fastest kernels for a side; the stages' are deterministic."""

    def run() -> float:
        torch.use_deterministic_algorithms(mode=False)
        try:
            return work()
        finally:
            torch.use_deterministic_algorithms(mode=True)

    return run


def compiled(work: Work) -> Work:
    """Compile the blocks of the towers for a side, as `run.compile: true` does."""

    def run() -> float:
        compile_blocks(on=True)
        try:
            return work()
        finally:
            compile_blocks(on=False)

    return run
