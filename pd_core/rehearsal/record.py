"""Record of the last rehearsal of a profile, for `promptkd doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pd_core.core.artifacts import write_text
from pd_core.core.config import Config
from pd_core.pipeline.stages.params import DATA
from pd_core.rehearsal.estimate import Estimate, together

FILE = DATA / "rehearsal.json"
"""In the profile's folder; git ignores it, since it holds for one machine."""


_TRAININGS = ("teacher", "student", "tuned_student")


class StageRow(Config):
    """Estimate of a stage, in seconds, and its steps."""

    seconds: float
    cpu_seconds: float
    measured: int
    steps: int


class EstimateRow(Config):
    """Estimate of a data set, over all seeds, in seconds and bytes.

    Attributes:
        error: standard error of `seconds`; None if it is unknown.
        seconds_of: seconds by what works in them, the slowest first.
        measured: steps of trainings that were measured.
        steps: steps of trainings to come, of all seeds.
        stages: of one seed; of a sum the last one of each name.
    """

    name: str
    seeds: int
    seconds: float
    cpu_seconds: float
    error: float | None
    memory: int
    gpu: int
    disk: int
    measured: int
    steps: int
    seconds_of: dict[str, float]
    stages: dict[str, StageRow]

    @classmethod
    def of(cls, estimate: Estimate) -> EstimateRow:
        """Return the row of an estimate."""
        needs = estimate.needs
        trainings = [stage for stage in estimate.stages if stage.stage in _TRAININGS]
        return cls(
            name=estimate.name,
            seeds=estimate.repeats,
            seconds=round(estimate.cost.wall, 2),
            cpu_seconds=round(estimate.cost.cpu, 2),
            error=None if estimate.error is None else round(estimate.error, 2),
            memory=round(needs.memory),
            gpu=round(needs.gpu),
            disk=round(needs.disk),
            measured=sum(stage.measured for stage in trainings),
            steps=estimate.repeats * sum(stage.steps for stage in trainings),
            seconds_of={kind: round(value, 2) for kind, value in estimate.kinds().items()},
            stages={
                stage.stage: StageRow(
                    seconds=round(stage.cost.wall, 2),
                    cpu_seconds=round(stage.cost.cpu, 2),
                    measured=stage.measured,
                    steps=stage.steps,
                )
                for stage in estimate.stages
            },
        )


class Record(Config):
    """Estimates of data sets, their sum, and the device that they hold for."""

    device: str
    rows: tuple[EstimateRow, ...]
    total: EstimateRow

    @classmethod
    def of(cls, estimates: Sequence[Estimate], device: str) -> Record:
        """Return the record of a rehearsal."""
        total = EstimateRow.of(together(estimates))
        return cls(device=device, rows=tuple(map(EstimateRow.of, estimates)), total=total)


def write(record: Record, folder: Path) -> None:
    """Write the record of a rehearsal into the folder of its profile."""
    (folder / DATA).mkdir(parents=True, exist_ok=True)
    write_text(folder / FILE, record.model_dump_json(indent=2))


def read(folder: Path) -> Record | None:
    """Return the record of a profile; None if it was not rehearsed here, or by another version."""
    try:
        return Record.model_validate_json((folder / FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
