"""Typed configurations: the base class, types of numbers, and those of several stages."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pd_core.core.options import Augmentation, OnCorrupt, Precision

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError("give auto, cpu, mps, cuda or cuda:<number>")
    return name


Device = Annotated[str, AfterValidator(_device)]


class Config(BaseModel):
    """Base of configurations: frozen, strict, unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ClipConfig(Config):
    """A CLIP model."""

    model: Annotated[str, Field(min_length=1)]
    weights: str | None  # file, or tag of open_clip


class Clips(NamedTuple):
    """The two CLIPs of a distillation."""

    student: ClipConfig
    teacher: ClipConfig


class ComputeConfig(Config):
    """Compute settings of a stage."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]  # limit of torch's generators
    threads: Count  # of the CPU; their number changes the last bits
    device: Device
    precision: Precision  # of the towers; trained parameters and losses stay fp32
    workers: CountOrZero  # processes that decode images; results do not depend on them
    on_corrupt: OnCorrupt  # a skipped image is counted
    augmentation: Augmentation  # where training views are resized
    compile: bool  # torch.compile for the blocks of the towers


class Compute(ComputeConfig):
    """Compute settings and the folder of the images."""

    data_root: Path  # folder that holds the photo data sets


@dataclass(frozen=True)
class StagePaths:
    """Output folders of the stages of one data set."""

    prepared: Path
    teacher: Path
    vectors: Path  # of the stage `class_vectors`
    student: Path
    evaluation: Path
