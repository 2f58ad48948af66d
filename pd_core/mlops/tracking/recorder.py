"""A stage as one MLflow run, sent while the stage works."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

from pd_core.core.errors import Interrupted
from pd_core.mlops.tracking import runs
from pd_core.mlops.tracking.store import (
    Machine,
    client,
    exclusive,
    experiment_id,
    milliseconds,
    one_line,
)
from pd_core.pipeline import provenance
from pd_core.pipeline.redaction import masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

_CONTEXT = "mlflow.data.context"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataInput:
    """A data set that a stage reads.

    Attributes:
        name: as in the parameters.
        path: the file or folder whose hash tells one state of it from another.
        context: what it is read for: "training", "evaluation", ...
    """

    name: str
    path: Path
    context: str


@dataclass(frozen=True)
class StageInfo:
    """Description of a stage, known before its work begins.

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
        inputs: the data sets among what it reads; those that are not there are left out.
        experiment: its name's first part; the profile is the second.
        project: folder that the paths are named from, and whose git commit is recorded.
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

    def tags(self) -> dict[str, str]:
        """Return the run's tags; the dependencies are hashed."""
        return {
            "profile": self.profile,
            "dataset": self.dataset,
            "stage": self.stage,
            "protocol": self.protocol,
            "seed": str(self.seed),
            "params_md5": provenance.params_hash(self.params),
            "host": socket.gethostname(),
            "pid": str(os.getpid()),
            **provenance.commit_tags(self.project),
            **provenance.hash_tags("dep", self.deps, self.project, self.code),
        }


class Point(NamedTuple):
    """One value of a metric; the fields are those of MLflow's `Metric`."""

    name: str
    value: float
    milliseconds: int  # since 1970
    step: int


@dataclass
class StageRun:
    """Metrics, files and tags of one stage; collected here, sent by another thread.

    Attributes:
        run_id: MLflow's id of the run; None until the store has it, and when tracking is off.
        points: values of metrics, in the order in which they came.
        headline: the single numbers that say how the stage ended.
        files: files and folders to keep with the run, and in which of its folders.
        texts: functions that make further files, by their names in the run.
        tags: by name.
    """

    run_id: str | None = None
    points: list[Point] = field(default_factory=list)
    headline: dict[str, float] = field(default_factory=dict)
    files: list[tuple[Path, str]] = field(default_factory=list)
    texts: list[Callable[[], Mapping[str, str]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
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
        """Record single numbers; nested mappings become names such as `student/hm`."""
        numbers = {key: item for key, item in flat(metrics, "/").items() if _is_number(item)}
        self.add(numbers)
        self.headline.update({name: float(value) for name, value in numbers.items()})

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file or folder with the run, in `folder` of its artifacts."""
        self.files.append((path, folder))

    def log_texts(self, make: Callable[[], Mapping[str, str]]) -> None:
        """Keep files that `make` returns, by name; it is called once the work is done.

        Without a store it is never called; an error in it is a warning, as the store's are.
        """
        self.texts.append(make)

    def add(self, metrics: Mapping[str, object], step: int = 0) -> None:
        """Record numbers that are no headline."""
        now = milliseconds()
        self.points += [
            Point(name, float(value), now, step)
            for name, value in metrics.items()
            if _is_number(value)
        ]


@contextmanager
def stage_run(store: str | None, stage: StageInfo) -> Iterator[StageRun]:
    """Record what happens in the block as one run named `stage@dataset`.

    The run is there from the start of the block, and its numbers arrive while it lasts. The
    dependencies are hashed before the block and the outputs after it, as DVC does, because
    `dvc.lock` does not have them while the stage runs. A block that raises is recorded as failed.
    Results outweigh their record: whatever the store does, it is at most a warning.

    Without a store (from `open_store`) nothing is recorded.

    Yields:
        The run, to add metrics and files to; its `run_id` is None if the store does not answer.
    """
    run = StageRun()
    if store is None:
        yield run
        return
    run.tags.update(stage.tags())
    recorder = _Recorder(store, stage, run)
    start = time.monotonic()
    status = "FAILED"
    try:
        recorder.open()
        start = time.monotonic()
        yield run
        run.tags.update(provenance.hash_tags("out", stage.outs, stage.project))
        status = "FINISHED"
    except (KeyboardInterrupt, Interrupted):
        status = "KILLED"
        raise
    except Exception as error:
        run.tags["error"] = " ".join(f"{type(error).__name__}: {error}".split())
        raise
    finally:
        seconds = time.monotonic() - start
        run.add({"seconds": seconds, "peak_memory_mb": provenance.peak_memory()})
        recorder.close(status)


class _Recorder:
    """Sends a run in a thread of its own, every few seconds.

    What MLflow imports, it imports in `open`, in the thread that calls: two threads that import
    at the same time can get half of a module. A store that fails costs nothing before `close`,
    since what was not sent is sent later.
    """

    _mlflow: MlflowClient
    _machine: Machine
    _above: runs.Above

    def __init__(self, store: str, stage: StageInfo, run: StageRun) -> None:
        self._store = store
        self._stage = stage
        self._run = run
        self._experiment = self._id = ""  # of the store, once it has them
        self._described = False
        self._sent = 0  # points
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_sending, name="tracking", daemon=True)

    def open(self) -> None:
        """Make the run, and send from now on what is recorded."""
        error = _failure_of(self._begin)
        if isinstance(error, Interrupted):  # the stage was told to end, and has not begun
            raise error
        if error is None:
            self._thread.start()

    def close(self, status: str) -> None:
        """Send what is left, and end the run; a store that fails is a warning."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        name, texts = self._stage.name, dict[str, str]()
        if error := _failure_of(lambda: [texts.update(make()) for make in self._run.texts]):
            _log.warning("run '%s' goes without its figures: %s", name, one_line(error))
        if error := _failure_of(lambda: self._finish(status, texts)):
            _log.warning(
                "run '%s' is not recorded in '%s': %s", name, masked(self._store), one_line(error)
            )

    def _keep_sending(self) -> None:
        start = time.monotonic()
        while not self._over.wait(_pause(time.monotonic() - start)):
            _failure_of(self._send_sample)

    def _begin(self) -> None:
        """Make and describe the run, if the store does not have it yet."""
        if not self._experiment:
            self._mlflow = client(self._store)
            name = f"{self._stage.experiment}-{self._stage.profile}"
            experiment = experiment_id(self._mlflow, self._store, name)
            self._machine = Machine()
            self._experiment = experiment
        if not self._id:
            self._make_run()
        if not self._described:
            self._describe()
            self._described = True

    def _make_run(self) -> None:
        """Make the run, and find or make those above it."""
        tags = self._run.tags
        with exclusive(self._store):
            above = runs.find_or_make(self._mlflow, self._experiment, tags)
            made = self._mlflow.create_run(
                self._experiment,
                run_name=self._stage.name,
                tags={
                    runs.LEVEL: "stage",
                    runs.PARENT: above[0],
                    **{name: tags[name] for name in ("stage", "dataset", "host", "pid")},
                },
            )
            self._above = above
            self._id = self._run.run_id = made.info.run_id
            runs.reopen(self._mlflow, above)

    def _describe(self) -> None:
        """Send what is known from the start, and note which runs this one replaces."""
        from mlflow.entities import Param

        params = flat(self._stage.params, ".")
        self._send_tags()
        values = [Param(name, masked(str(value))) for name, value in params.items()]
        self._mlflow.log_batch(self._id, params=values)
        if inputs := _dataset_inputs(self._stage):
            self._mlflow.log_inputs(self._id, inputs)
        with exclusive(self._store):
            runs.replace(self._mlflow, self._experiment, self._id, self._run.tags)

    def _send_sample(self) -> None:
        """Sample progress and machine; send the points that have not been sent."""
        self._begin()
        from mlflow.entities import Metric

        self._run.sample_pace()
        self._run.add(self._machine.sample(), self._machine.samples)
        waiting = [Metric(*point) for point in self._run.points[self._sent :]]
        self._mlflow.log_batch(self._id, metrics=waiting)
        self._sent += len(waiting)

    def _send_tags(self) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, masked(value)) for name, value in self._run.tags.items()]
        self._mlflow.log_batch(self._id, tags=tags)

    def _finish(self, status: str, texts: Mapping[str, str]) -> None:
        """Send the rest, and files that are there as texts only, by name; end the run."""
        self._begin()
        try:
            self._send_sample()
            self._send_tags()
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
        self._mlflow.set_terminated(self._id, status)
        with exclusive(self._store):
            above = runs.find_or_make(self._mlflow, self._experiment, self._run.tags)
            if above != self._above:  # another process was faster to make those above
                self._mlflow.set_tag(self._id, runs.PARENT, above[0])
            runs.settle(self._mlflow, self._experiment, above)
        if status == "FINISHED":
            runs.summarise(self._mlflow, above, self._run.headline)


def flat(values: Mapping[str, object], separator: str) -> dict[str, object]:
    """Return nested mappings as one, with names such as `prompts.depth`."""
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = flat(value, separator)
            found.update({f"{name}{separator}{key}": item for key, item in inner.items()})
        else:
            found[str(name)] = value
    return found


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _failure_of(step: Callable[[], object]) -> Exception | None:
    """Do one step; whatever goes wrong must not cost the stage its results."""
    try:
        step()
    except Exception as error:  # noqa: BLE001 each store and driver has its own errors
        return error
    return None


def _pause(elapsed: float) -> float:
    """Return the seconds to the next sample: few at first, more the longer a stage runs."""
    return min(30.0, max(2.0, elapsed / 20))


def _dataset_inputs(stage: StageInfo) -> list[DatasetInput]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = []
    for given in stage.inputs:
        digest = provenance.content_hash(stage.project / given.path)
        if digest != provenance.ABSENT:
            source = json.dumps({"uri": provenance.name_in(stage.project, given.path)})
            dataset = Dataset(given.name, digest, source_type="local", source=source)
            found.append(DatasetInput(dataset, [InputTag(_CONTEXT, given.context)]))
    return found
