"""Stage that a process runs to be measured, and the file that describes it."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from pd_core.core.artifacts import write_text
from pd_core.core.config import Config
from pd_core.data.catalog.catalogue import DatasetSpec
from pd_core.pipeline.provenance import peak_memory
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import DATA, DatasetParams
from pd_core.rehearsal.timeline import Mark, Timeline

WORKER = (sys.executable, "-m", "pd_core.cli.measured")
"""Program that runs a task: its file and that of the timeline are its arguments."""

_MIB = 2**20


class Task(Config):
    """A stage in the folder of a rehearsal.

    Attributes:
        stage: its name.
        params: of the data set.
        seed: of the run.
        device: to compute on.
        data_root: folder of the photo data sets.
        fingerprint: of the images; None not to compare them.
        rehearsed: row of a smaller copy of the data set, if it is one.
        started: when the process was started, by the monotonic clock of the system.
    """

    stage: str
    params: DatasetParams
    seed: int
    device: str
    data_root: Path
    fingerprint: Path | None
    rehearsed: DatasetSpec | None
    started: float

    @classmethod
    def read(cls, file: Path) -> Task:
        """Read a task from its file."""
        return cls.model_validate_json(file.read_text("utf-8"))

    def job(self, folder: Path = Path()) -> Job:
        """Return the job in a folder, with checkpoints and cached features."""
        data = folder / DATA
        job = Job.at(
            data,
            self.params,
            seed=self.seed,
            device=self.device,
            data_root=self.data_root,
            fingerprint=self.fingerprint,
            checkpoints=data / "checkpoints",
            features=data / "features",
        )
        return replace(job, rehearsed=self.rehearsed)


@dataclass
class Clock:
    """Recorder of a stage's timeline, in its process."""

    started: float
    gpu: bool
    marks: list[Mark] = field(default_factory=list)

    def progress(self, done: int, total: int) -> None:
        """Record that units are done, after a GPU has finished them."""
        if self.gpu:
            import torch

            torch.cuda.synchronize()
        self.marks.append(self._now(done, total))

    def write(self, file: Path) -> None:
        """Write the timeline, which ends now."""
        end = self._now(0, 0)
        timeline = Timeline(
            marks=tuple(self.marks), end=end, memory=_peak_memory(), gpu=self._gpu_memory()
        )
        write_text(file, timeline.model_dump_json())

    def _now(self, done: int, total: int) -> Mark:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = time.process_time() + children.ru_utime + children.ru_stime
        return Mark(wall=time.monotonic() - self.started, cpu=cpu, done=done, total=total)

    def _gpu_memory(self) -> int:
        if not self.gpu:
            return 0
        import torch

        return torch.cuda.max_memory_reserved()


def _peak_memory() -> int:
    return int(peak_memory() * _MIB)


def read_timeline(file: Path) -> Timeline:
    """Read a timeline from its file."""
    return Timeline.model_validate_json(file.read_text("utf-8"))
