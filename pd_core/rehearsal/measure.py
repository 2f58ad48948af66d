"""Measurement of the stages of data sets, shortened, each in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pd_core.core.errors import FailedRun
from pd_core.core.hooks import OnNote
from pd_core.core.options import Computed
from pd_core.data.catalog.catalogue import DatasetSpec
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.prepared import image_root, read_split, read_unlabelled, write_prepared
from pd_core.pipeline import processes
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.params import DatasetParams, validate
from pd_core.rehearsal.estimate import Cost, Rate
from pd_core.rehearsal.forecast import Measured, Rehearsed
from pd_core.rehearsal.task import WORKER, Task, read_timeline
from pd_core.rehearsal.timeline import Timeline, image_rates, training_rates
from pd_core.rehearsal.workload import Load, Sizes, load_of, sizes_of
from pd_core.training.student.config import StudentConfig
from pd_core.training.teacher.config import TeacherConfig

FEW = 10
"""Steps an epoch below which texts are few as well: for large models on a CPU."""

_FEW_TEMPLATES = 2  # of PromptSRC's 60
_BATCHES = 4  # of the images that are classified
_GENTLE = 1e-5  # learning rate that leaves random models in peace; it costs what others cost

_READ = 64  # images that are decoded
_COPIES = 2  # of outputs: the workspace's and that of DVC's cache

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Place:
    """Where and how stages are measured.

    Attributes:
        folder: for outputs and the tracking store.
        data_root: folder of the photo data sets.
        fingerprints: file by data set; one that is left out is not compared.
        copies: rows of smaller copies of data sets, with random weights.
        device: to compute on.
        seed: of the run.
        steps: an epoch, at most.
    """

    folder: Path
    data_root: Path
    fingerprints: Mapping[str, Path]
    copies: Mapping[str, DatasetSpec]
    device: str
    seed: int
    steps: int

    def task(self, stage: str, params: DatasetParams) -> Task:
        """Return the task of measuring a stage, which starts now."""
        return Task(
            stage=stage, params=params, seed=self.seed, device=self.device,
            data_root=self.data_root, fingerprint=self.fingerprints.get(params.name),
            rehearsed=self.copies.get(params.name),
            started=time.monotonic(),
        )  # fmt: skip

    def job(self, params: DatasetParams) -> jobs.Job:
        """Return the job of a data set in the folder."""
        return self.task("", params).job(self.folder)


def measure(
    place: Place, params: DatasetParams, stages: Sequence[str], on_note: OnNote
) -> Rehearsed:
    """Run the stages of a data set with few images and epochs.

    The stage `prepare` runs as it is; then its lists are shortened.

    Args:
        place: where and how.
        params: of the data set.
        stages: to measure, in order; the first one is `prepare`.
        on_note: called with a line before each stage.

    Raises:
        FailedRun: a stage fails.
    """
    params = fitting(params, place.copies.get(params.name))
    prepared = place.job(params).prepared
    first, *others = stages
    on_note(f"measures {first}@{params.name}")
    timeline = _run(place, first, params)
    sizes = sizes_of(prepared, params.evaluate.split)
    results = {first: _measured(place, first, params, load_of(first, params, sizes), timeline)}
    short = shorten(params, prepared, place.steps)
    short_sizes = sizes_of(prepared, params.evaluate.split)
    for stage in others:
        on_note(f"measures {stage}@{params.name}")
        load = load_of(stage, short, short_sizes)
        results[stage] = _measured(place, stage, short, load, _run(place, stage, short))
    return Rehearsed(params, sizes, _decoding(prepared, place.data_root), results)


def _measured(
    place: Place, stage: str, params: DatasetParams, load: Load, timeline: Timeline
) -> Measured:
    rates = training_rates(timeline, load.epochs) if load.epochs else image_rates(timeline)
    disk = _COPIES * _size(jobs.output(place.job(params), stage))
    return Measured(load, replace(rates, needs=replace(rates.needs, disk=disk)))


def _decoding(prepared: Path, data_root: Path) -> Rate:
    """Measure how long it takes to read an image."""
    store = ImageStore(image_root(prepared, data_root=data_root))
    costs = []
    for path in spread(read_unlabelled(prepared), _READ):
        wall, cpu = time.perf_counter(), time.process_time()
        store.open(path)
        costs.append(Cost(time.perf_counter() - wall, time.process_time() - cpu))
    return Rate.of(costs)


def _run(place: Place, stage: str, params: DatasetParams) -> Timeline:
    """Run a stage in a process, and return its timeline."""
    task, timeline = place.folder / "task.json", place.folder / "timeline.json"
    task.write_text(place.task(stage, params).model_dump_json(), "utf-8")
    own = {"PD_MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    command = [*WORKER, str(task), str(timeline)]
    ended = processes.run(command, place.folder, lambda _: None, extra=own)
    if ended.status != 0:
        raise FailedRun(f"the stage {stage} of '{params.name}' fails: {ended.reason}")
    return read_timeline(timeline)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def shorten(params: DatasetParams, prepared: Path, steps: int) -> DatasetParams:
    """Shorten the lists of a prepared data set; return parameters for few epochs.

    Args:
        params: of the data set.
        prepared: output folder of the stage `prepare`, which is changed.
        steps: an epoch, at most.
    """
    batches = [t.batch_size for t in (params.teacher, params.tuned_student) if t is not None]
    images = steps * params.student.batch_size
    split, unlabelled = read_split(prepared), read_unlabelled(prepared)
    limits = {"few_shot": steps * max(batches), "test": images, "val": images}
    for key, count in limits.items():
        split[key] = spread(split[key], count)
    write_prepared(prepared, split, spread(unlabelled, images))
    sizes = sizes_of(prepared, params.evaluate.split)
    few = steps < FEW
    tuned = params.tuned_student
    return params.model_copy(
        update={
            "run": params.run.model_copy(update={"processes": 1}),
            "teacher": _short_tuning(params.teacher, sizes, few=few),
            "tuned_student": None if tuned is None else _short_tuning(tuned, sizes, few=few),
            "student": _short_training(
                params.student, sizes.unlabelled, {"teacher_targets": Computed.ONLINE}
            ),
            "evaluate": params.evaluate.model_copy(
                update={"batch_size": min(params.evaluate.batch_size, -(-sizes.test // _BATCHES))}
            ),
        }
    )


def fitting(params: DatasetParams, row: DatasetSpec | None) -> DatasetParams:
    """Return parameters with no more shots than a smaller copy of the data set has images."""
    if row is None or not row.train:
        return params
    shots = min(params.prepare.shots, row.train // row.num_classes)
    return params.model_copy(
        update={"prepare": params.prepare.model_copy(update={"shots": shots, "val_shots": 1})}
    )


_Training = TypeVar("_Training", TeacherConfig, StudentConfig)


def _short_tuning(config: TeacherConfig, sizes: Sizes, *, few: bool) -> TeacherConfig:
    templates = min(config.templates, _FEW_TEMPLATES) if few else config.templates
    changes = {"frozen_features": Computed.ONLINE, "templates": templates, "gpa_mean": 1}
    return _short_training(config, sizes.few_shot, changes)


def _short_training(config: _Training, count: int, changes: Mapping[str, object]) -> _Training:
    """Return a training of two epochs, the second of which has the views of the first.

    Of a single step an epoch there are four.
    """
    epochs = 4 if count // config.batch_size == 1 else 2
    gentle = {"epochs": epochs, "view_epochs": epochs // 2, "warmup_epochs": epochs}
    values = config.model_dump(mode="json")
    return validate(type(config), {**values, **gentle, "warmup_lr": _GENTLE, **changes})


def spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """Return so many of the items, at most, evenly spread."""
    size = min(count, len(items))
    return [items[number * len(items) // size] for number in range(size)]
