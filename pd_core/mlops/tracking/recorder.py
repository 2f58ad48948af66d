"""A stage as one MLflow run, nested and sent while the stage works."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import psutil

from pd_core.core.errors import Interrupted
from pd_core.mlops.tracking import (
    EXPERIMENT,
    LEVEL,
    LINEAGE,
    PARENT,
    client,
    exclusive,
    experiment_id,
    milliseconds,
    one_line,
    write_lineage,
)
from pd_core.mlops.tracking.nesting import PROCESS, Nesting, source_tags, this_process
from pd_core.pipeline import experiment as dvc_experiment
from pd_core.pipeline import provenance
from pd_core.pipeline.provenance import Lineage
from pd_core.pipeline.redaction import masked

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput


_log = logging.getLogger(__name__)


class DataInput(NamedTuple):
    """A data set that a stage reads, the path that identifies its state, and its use."""

    name: str
    path: Path
    context: str  # "training", "evaluation", ...


@dataclass(frozen=True)
class StageInfo:
    """Description of a stage, complete before its work begins.

    Attributes:
        profile: `quickstart` or `paper`; each has its own experiment.
        dataset: the data set; "" for a stage over all of them.
        stage: `prepare`, `teacher`, ...
        params: the stage's own parameters, may be nested.
        deps: files and folders that the stage reads, in `project`.
        outs: files and folders that it writes, in `project`.
        code: MD5 of the files that stand for the stage's code, by path in `project`.
        seed: its random seed.
        protocol: which classes are trained and tested on.
        inputs: the data sets among `deps`; those that do not exist are left out.
        experiment: its name's first part; the profile is the second.
        project: folder that the paths are relative to, and whose git commit is recorded.
    """

    profile: str
    dataset: str
    stage: str
    params: Mapping[str, object]
    deps: Sequence[Path]
    outs: Sequence[Path]
    seed: int
    protocol: str
    code: Mapping[str, str] = field(default_factory=dict)
    inputs: Sequence[DataInput] = ()
    experiment: str = "promptkd"
    project: Path = Path()

    @property
    def name(self) -> str:
        """The run's name: `stage@dataset`."""
        return f"{self.stage}@{self.dataset}" if self.dataset else self.stage

    def lineage(self) -> Lineage:
        """Hash what the stage reads."""
        return Lineage.of_commit(
            self.project,
            params_md5=provenance.params_hash(self.params),
            deps=provenance.hashes(self.deps, self.project, self.code),
        )


@dataclass
class StageRun:
    """Metrics, files and tags of one stage; collected here, sent by another thread.

    Attributes:
        run_id: MLflow's id of the run; None until the store has it, and when tracking is off.
        points: name, value, milliseconds since 1970 and step of each metric, in order.
        headline: the final metrics, which the run above is given as well.
        files: files and folders to upload, and the artifact folder of each.
        texts: functions that return further artifacts, text by file name.
        error: the exception that ended the stage, in one line.
    """

    run_id: str | None = None
    points: list[tuple[str, float, int, int]] = field(default_factory=list)
    headline: dict[str, float] = field(default_factory=dict)
    files: list[tuple[Path, str]] = field(default_factory=list)
    texts: list[Callable[[], Mapping[str, str]]] = field(default_factory=list)
    error: str = ""
    _now: tuple[float, int, int] | None = None  # seconds, steps done, steps in all
    _sampled: tuple[float, int] | None = None  # seconds, steps done

    def epoch(self, epoch: int, metrics: Mapping[str, object]) -> None:
        """Record the numbers of an epoch; what is not a number is left out."""
        self.add(metrics, epoch)

    def loss(self, step: int, mean: float) -> None:
        """Record the mean loss of the steps up to this one, counted over all epochs."""
        self.add({"train/loss": mean}, step)

    def progress(self, done: int, total: int) -> None:
        """Note that `done` of `total` steps are done; `sample_pace` records it now and then."""
        self._now = (time.monotonic(), done, total)
        if self._sampled is None:
            self._sampled = self._now[:2]

    def sample_pace(self) -> None:
        """Record the progress, and the steps per second since the last sample, if any are done."""
        if self._now is None or self._sampled is None:
            return
        (when, done, total), (before, done_before) = self._now, self._sampled
        self._sampled = (when, done)
        if when == before or done < done_before:  # or another part of the work, counted from 0
            return
        speed = (done - done_before) / (when - before)
        percent = 100 * done / total if total else 0.0
        self.add({"progress/steps_per_second": speed, "progress/percent": percent}, done)

    def log_metrics(self, metrics: Mapping[str, object]) -> None:
        """Record final metrics; nested mappings become names such as `student/hm`."""
        numbers = {key: item for key, item in flat(metrics, "/").items() if _is_number(item)}
        self.add(numbers)
        self.headline.update({name: float(value) for name, value in numbers.items()})

    def log_file(self, path: Path, folder: str = "") -> None:
        """Upload a file or folder when the stage ends, into `folder` of the run's artifacts."""
        self.files.append((path, folder))

    def log_texts(self, make: Callable[[], Mapping[str, str]]) -> None:
        """Upload the files that `make` returns, by name; it is called when the stage has ended.

        Without a store it is never called; an error in it is a warning.
        """
        self.texts.append(make)

    def add(self, metrics: Mapping[str, object], step: int = 0) -> None:
        """Record numbers that are no final metrics."""
        now = milliseconds()
        self.points += [
            (name, float(value), now, step) for name, value in metrics.items() if _is_number(value)
        ]


@contextmanager
def stage_run(store: str | None, stage: StageInfo) -> Iterator[StageRun]:
    """Record the block as one run named `stage@dataset`.

    The run exists from the start of the block, and its numbers arrive while it lasts. The
    dependencies are hashed before the block and the outputs after it, as DVC does, because
    `dvc.lock` does not have them while the stage runs. A block that raises is recorded as failed.
    A store that fails is at most a warning: it costs no results.

    Without a store (from `open_store`) nothing is recorded.

    Yields:
        The run, to add metrics and files to; its `run_id` is None if the store does not answer.
    """
    run = StageRun()
    if store is None:
        yield run
        return
    recorder = _Recorder(store, stage, run)
    start = time.monotonic()
    status = "FAILED"
    try:
        recorder.open()
        start = time.monotonic()
        yield run
        outs = provenance.hashes(stage.outs, stage.project)
        recorder.lineage = replace(recorder.lineage, outs=outs)
        status = "FINISHED"
    except (KeyboardInterrupt, Interrupted):
        status = "KILLED"
        raise
    except Exception as error:
        run.error = " ".join(f"{type(error).__name__}: {error}".split())
        raise
    finally:
        seconds = time.monotonic() - start
        run.add({"seconds": seconds, "peak_memory_mb": provenance.peak_memory()})
        recorder.close(status)


class _Recorder:
    """Sender of a run, in a thread of its own, every few seconds.

    Metrics wait in `StageRun` until the store has taken them, so that one which fails for a while
    loses none. MLflow is imported in `open`, by the calling thread: two threads that import at the
    same time can get half of a module.
    """

    _monitor: Any = None  # MLflow's, of the machine; published without types

    def __init__(self, store: str, stage: StageInfo, run: StageRun) -> None:
        self.lineage = stage.lineage()
        self._store = store
        self._stage = stage
        self._run = run
        self._error: Exception | None = None  # of `open`
        self._sent = 0  # points
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_sending, name="tracking", daemon=True)

    def open(self) -> None:
        """Create the run, and send from now on what is recorded."""
        self._error = _failure_of(self._create_run) or _failure_of(self._describe)
        if isinstance(self._error, Interrupted):  # before the stage has begun
            raise self._error
        if self._run.run_id is not None:
            self._thread.start()

    def close(self, status: str) -> None:
        """Send what is left, and end the run; a store that fails is a warning."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._monitor is not None:
            self._monitor.finish()
        name, texts, error = self._stage.name, dict[str, str](), self._error
        if problem := _failure_of(lambda: [texts.update(make()) for make in self._run.texts]):
            _log.warning("run '%s' goes without its figures: %s", name, one_line(problem))
        if self._run.run_id is not None:
            error = _failure_of(lambda: self._finish(status, texts)) or error
        if error:
            _log.warning(
                "run '%s' is not recorded in '%s': %s", name, masked(self._store), one_line(error)
            )

    def _keep_sending(self) -> None:
        start = time.monotonic()
        while not self._over.wait(_pause(time.monotonic() - start)):
            _failure_of(self._send_points)

    def _create_run(self) -> None:
        """Create the run, and find or create those above it."""
        stage, commit = self._stage, self.lineage.git_commit
        self._mlflow = client(self._store)
        experiment = experiment_id(self._mlflow, self._store, f"{stage.experiment}-{stage.profile}")
        self._nesting = Nesting(
            self._mlflow, experiment, stage.dataset, commit, dvc_experiment.name()
        )
        with exclusive(self._store):
            self._nesting.find_or_create()
            tags = {
                LEVEL: "stage",
                "stage": stage.stage,
                "dataset": stage.dataset,
                "protocol": stage.protocol,
                "seed": str(stage.seed),
                PROCESS: this_process(),
                PARENT: self._nesting.above[0],
                **({EXPERIMENT: name} if (name := dvc_experiment.name()) else {}),
                "mlflow.source.git.dirty": self.lineage.git_dirty,
                **source_tags(f"promptkd {stage.stage.replace('_', '-')}", commit),
            }
            run = self._mlflow.create_run(experiment, run_name=stage.name, tags=tags)
            self._id = self._run.run_id = str(run.info.run_id)
            self._nesting.reopen()

    def _describe(self) -> None:
        """Log parameters, data sets and lineage; link the runs that this one replaces."""
        from mlflow.entities import Param
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        params = flat(self._stage.params, ".")
        values = [Param(name, masked(str(value))) for name, value in params.items()]
        self._mlflow.log_batch(self._id, params=values)
        self._log_lineage()
        if inputs := _dataset_inputs(self._stage):
            self._mlflow.log_inputs(self._id, inputs)
        with exclusive(self._store):
            self._nesting.replace(self._id, self._stage.stage)
        psutil.cpu_percent()  # the monitor's first sample counts from here
        monitor: Any = SystemMetricsMonitor
        self._monitor = monitor(self._id, tracking_uri=self._store)
        self._monitor.start()

    def _log_lineage(self) -> None:
        write_lineage(self._mlflow, self._id, self.lineage)
        self._mlflow.set_tag(self._id, LINEAGE, self.lineage.digest())

    def _send_points(self) -> None:
        """Sample the pace; send the points that have not been sent."""
        from mlflow.entities import Metric

        self._run.sample_pace()
        waiting = [Metric(*point) for point in self._run.points[self._sent :]]
        self._mlflow.log_batch(self._id, metrics=waiting)
        self._sent += len(waiting)

    def _finish(self, status: str, texts: Mapping[str, str]) -> None:
        """Send the rest, with the artifacts `texts` by name; end the run."""
        try:
            self._send_points()
            self._log_lineage()
            if self._run.error:
                self._mlflow.set_tag(self._id, "error", masked(self._run.error))
            for path, folder in self._run.files:
                if path.is_dir():
                    self._mlflow.log_artifacts(self._id, str(path), folder or path.name)
                else:
                    self._mlflow.log_artifact(self._id, str(path), folder or None)
            for name, text in texts.items():
                self._mlflow.log_text(self._id, text, name)
        finally:
            self._end(status)

    def _end(self, status: str) -> None:
        """End the run, and those above it if it was the last below them."""
        nesting = self._nesting
        self._mlflow.set_terminated(self._id, status)
        with exclusive(self._store):
            before = nesting.above
            nesting.find_or_create()
            if nesting.above != before:  # another process was faster to create those above
                self._mlflow.set_tag(self._id, PARENT, nesting.above[0])
            nesting.settle()
        if status == "FINISHED":
            nesting.summarise(self._run.headline)


def flat(values: Mapping[str, object], separator: str) -> dict[str, object]:
    """Return nested mappings as one, with names such as `prompts.depth`."""
    items: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = flat(value, separator)
            items.update({f"{name}{separator}{key}": item for key, item in inner.items()})
        else:
            items[str(name)] = value
    return items


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _failure_of(step: Callable[[], object]) -> Exception | None:
    """Do one step, and return its error: none of them must cost the stage its results."""
    try:
        step()
    except Exception as error:  # noqa: BLE001 each store and driver has its own errors
        return error
    return None


def _pause(elapsed: float) -> float:
    """Return the seconds to the next batch: few at first, more the longer a stage runs."""
    return min(30.0, max(2.0, elapsed / 20))


def _dataset_inputs(stage: StageInfo) -> list[DatasetInput]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for given in stage.inputs:
        digest = provenance.content_hash(stage.project / given.path)
        if digest != provenance.ABSENT:
            source = json.dumps({"uri": provenance.name_in(stage.project, given.path)})
            dataset = Dataset(given.name, digest, source_type="local", source=source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", given.context)]))
    return inputs
