"""Typed configurations: their base, the ranges of their numbers, and what many stages share."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pd_core.core.options import OnCorrupt, Precision

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ValueError("give cpu, mps, cuda or cuda:<number>")
    return name


Device = Annotated[str, AfterValidator(_device)]


class Config(BaseModel):
    """Named values: unknown ones are refused, nothing is converted, nothing changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ClipConfig(Config):
    """A CLIP."""

    model: Annotated[str, Field(min_length=1)]
    weights: str | None  # file, or a tag of open_clip's


class Clips(NamedTuple):
    """The two CLIPs of a distillation."""

    student: ClipConfig
    teacher: ClipConfig


class ComputeConfig(Config):
    """How a stage computes."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]  # as far as torch's generators go
    threads: Count  # of the CPU; they decide the last bits
    device: Device
    precision: Precision  # of the towers; what is trained and the losses stay fp32
    workers: CountOrZero  # processes that decode images; they change nothing
    on_corrupt: OnCorrupt  # a skipped image is counted
    compile: bool  # whether torch compiles the towers' blocks


class Compute(ComputeConfig):
    """How a stage computes, and where its images are."""

    data_root: Path  # folder that holds the photo data sets


@dataclass(frozen=True)
class StagePaths:
    """Folders of the stages of one data set, each written by the stage of its name.

    Attributes:
        prepared: by `prepare`.
        teacher: by `teacher`.
        vectors: by `class_vectors`.
        student: by `student`.
        evaluation: by `evaluate`.
    """

    prepared: Path
    teacher: Path
    vectors: Path
    student: Path
    evaluation: Path
