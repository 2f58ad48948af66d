"""Every stage of every protocol, in a few steps, on copies of the data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path

from pd_core.core.hooks import Hooks
from pd_core.data.catalog.catalogue import DatasetSpec
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline import protocols
from pd_core.pipeline.protocols import ProtocolsParams
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import DatasetParams, Params
from pd_core.rehearsal.measure import fitting, shorten

STEPS = 2  # of an epoch

Seen = Counter[tuple[str, str]]
"""Number of data sets by protocol and stage."""


@dataclass(frozen=True)
class Walk:
    """A run through the protocols.

    Attributes:
        folder: for the outputs.
        rules: of the protocols.
        profile: with models and parameters.
        rows: of the copies, by data set.
        fingerprints: of the copies, by data set.
        data_root: folder of the copies.
        note: called with messages.
    """

    folder: Path
    rules: ProtocolsParams
    profile: Params
    rows: Mapping[str, DatasetSpec]
    fingerprints: Mapping[str, Path]
    data_root: Path
    note: Callable[[str], None]

    def run(self) -> Seen:
        """Run every stage of every protocol for the first seed.

        Raises:
            PdError: a stage fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        seen: Seen = Counter()
        with chdir(self.folder):
            for protocol in (each for each in Protocol if self.rules.of(each)):
                if protocol.has_source and not seen[protocols.SOURCE, "teacher"]:
                    self._source(protocol, seen)
                for name in self.rules.of(protocol):
                    self._dataset(protocol, name, seen)
        return seen

    def _source(self, protocol: Protocol, seen: Seen) -> None:
        """Tune the teacher that the data sets of protocols with a source get."""
        job = self._prepared(protocol, self.rules.source.dataset, seen, protocols.SOURCE)
        jobs.teacher(job, self._hooks(job))
        seen[protocols.SOURCE, "teacher"] += 1

    def _dataset(self, protocol: Protocol, name: str, seen: Seen) -> None:
        job = self._prepared(protocol, name, seen, str(protocol))
        hooks = self._hooks(job)
        stages: dict[str, Callable[[], object]] = {
            "teacher": lambda: jobs.teacher(job, hooks),
            "class_vectors": lambda: jobs.class_vectors(job),
            "student": lambda: jobs.student(job, hooks),
            "evaluate": lambda: jobs.evaluate(job, hooks),
        }
        if protocol.has_source:
            del stages["teacher"]
        for stage, run in stages.items():
            run()
            seen[str(protocol), stage] += 1

    def _prepared(self, protocol: Protocol, name: str, seen: Seen, part: str) -> Job:
        """Run the stage `prepare`, shorten its lists, and return the job of the other stages."""
        self.note(f"{part}/{name}")
        mine = fitting(self.rules.for_dataset(self.profile, protocol, name), self.rows[name])
        job = self._job(protocol, mine)
        jobs.prepare(job, on_note=self.note)
        seen[part, "prepare"] += 1
        return self._job(protocol, shorten(mine, job.prepared, STEPS))

    def _job(self, protocol: Protocol, mine: DatasetParams) -> Job:
        job = protocols.job(
            self.rules, protocol, mine,
            seed=self.rules.seeds[0], device=jobs.resolved(self.profile.run.device),
            data_root=self.data_root, fingerprint=self.fingerprints[mine.name],
        )  # fmt: skip
        return replace(job, rehearsed=self.rows[mine.name])

    def _hooks(self, job: Job) -> Hooks:
        name = job.student.name
        return Hooks(on_note=lambda line: self.note(f"  {name}: {line}"))
