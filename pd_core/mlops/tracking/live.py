"""A stage as one MLflow run: sent while the stage works."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd_core.core.errors import Interrupted
from pd_core.mlops.tracking import runs
from pd_core.mlops.tracking.record import DataInput, StageRun, flat
from pd_core.mlops.tracking.store import Machine, client, exclusive, experiment_id
from pd_core.pipeline import provenance
from pd_core.pipeline.redaction import masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

_METRICS_PER_CALL = 1000  # MLflow's limit
_ENTRIES_PER_CALL = 100  # MLflow's limit for parameters and for tags
_CONTEXT = "mlflow.data.context"

_log = logging.getLogger(__name__)


class Recorder:
    """Sends a record: what is known at the start, then what comes, then the end.

    What MLflow imports, it imports in `open`, in the thread that calls: two threads that import
    at the same time can get half of a module. A store that fails costs nothing before `close`,
    since what was not sent is sent later.
    """

    def __init__(
        self,
        store: str,
        run: StageRun,
        *,
        experiment: str,
        params: Mapping[str, object],
        inputs: Iterable[DataInput],
        project: Path,
    ) -> None:
        """Take what is known before the stage's work; nothing is sent yet.

        Args:
            store: what `open_store` returned.
            run: the record; it has the stage's tags.
            experiment: its name.
            params: of the stage, may be nested.
            inputs: data sets that the stage reads.
            project: folder that their paths are named from.
        """
        self._store = store
        self._run = run
        self._experiment = experiment
        self._params = params
        self._inputs = list(inputs)
        self._project = project
        self._sender: _Sender | None = None
        self._described = False
        self._made: dict[str, str] = {}  # files by name
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_sending, name="tracking", daemon=True)

    def open(self) -> None:
        """Make the run, and send from now on what is recorded, every few seconds."""
        error = self._failure_of(self._begin)
        if isinstance(error, Interrupted):  # the stage was told to end, and has not begun
            raise error
        if error is None:
            self._thread.start()

    def close(self, status: str) -> None:
        """Send what is left, and end the run; a store that fails is a warning."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        name = _name(self._run.tags)
        if error := self._failure_of(self._make_texts):
            _log.warning("run '%s' goes without its figures: %s", name, _reason(error))
        if error := self._failure_of(lambda: self._finish(status)):
            _log.warning(
                "run '%s' is not recorded in '%s': %s", name, masked(self._store), _reason(error)
            )

    def _begin(self) -> _Sender:
        """Make the run, if the store does not have it yet."""
        if self._sender is None:
            mlflow = client(self._store)
            experiment = experiment_id(mlflow, self._store, self._experiment)
            self._sender = _Sender(mlflow, experiment, self._run, self._store)
        if self._run.run_id is None:
            self._sender.make_run()
        if not self._described:
            self._sender.describe(self._params, _dataset_inputs(self._inputs, self._project))
            self._described = True
        return self._sender

    def _keep_sending(self) -> None:
        start = time.monotonic()
        while not self._over.wait(_pause(time.monotonic() - start)):
            self._failure_of(self._send_sample)

    def _send_sample(self) -> None:
        sender = self._begin()
        sender.sample()
        sender.send_points()

    def _make_texts(self) -> None:
        for make in self._run.texts:
            self._made.update(make())

    def _finish(self, status: str) -> None:
        sender = self._begin()
        try:
            sender.sample()
            sender.send_points()
            sender.send_tags()
            sender.send_files()
            sender.send_texts(self._made)
        finally:
            sender.end(status)

    def _failure_of(self, step: Callable[[], object]) -> Exception | None:
        """Do one step; whatever goes wrong must not cost the stage its results."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 each store and driver has its own errors
            return error
        return None


class _Sender:
    """One run in the store."""

    def __init__(self, mlflow: MlflowClient, experiment: str, run: StageRun, store: str) -> None:
        self._mlflow = mlflow
        self._experiment = experiment
        self._run = run
        self._store = store
        self._above: runs.Above | None = None
        self._machine = Machine()
        self._sent = 0  # points

    @property
    def _id(self) -> str:
        if self._run.run_id is None:
            raise RuntimeError("the run has not been made")
        return self._run.run_id

    def make_run(self) -> None:
        """Make the run, and find or make those above it."""
        tags = self._run.tags
        with exclusive(self._store):
            above = runs.find_or_make(self._mlflow, self._experiment, tags)
            made = self._mlflow.create_run(
                self._experiment,
                run_name=_name(tags),
                tags={
                    runs.LEVEL: "stage",
                    runs.PARENT: above.nearest,
                    **{name: tags[name] for name in ("stage", "dataset", "host", "pid")},
                },
            )
            self._above = above
            self._run.run_id = made.info.run_id
            runs.reopen(self._mlflow, above)

    def describe(self, params: Mapping[str, object], inputs: list[DatasetInput]) -> None:
        """Send what is known from the start, and note which runs this one replaces."""
        from mlflow.entities import Param

        values = [Param(name, masked(str(value))) for name, value in flat(params, ".").items()]
        self.send_tags()
        for some in _chunks(values, _ENTRIES_PER_CALL):
            self._mlflow.log_batch(self._id, params=some)
        if inputs:
            self._mlflow.log_inputs(self._id, inputs)
        with exclusive(self._store):
            runs.replace(self._mlflow, self._experiment, self._id, self._run.tags)

    def sample(self) -> None:
        """Record how far the stage is, and how busy the machine."""
        self._run.sample_pace()
        self._run.add(self._machine.sample(), self._machine.samples)

    def send_points(self) -> None:
        """Send the metrics that have not been sent; if that fails they wait for the next time."""
        from mlflow.entities import Metric

        waiting = self._run.points[self._sent :]
        for some in _chunks([Metric(*point) for point in waiting], _METRICS_PER_CALL):
            self._mlflow.log_batch(self._id, metrics=some)
            self._sent += len(some)

    def send_tags(self) -> None:
        """Send all tags; those that the store has stay as they are."""
        from mlflow.entities import RunTag

        tags = [RunTag(name, masked(value)) for name, value in self._run.tags.items()]
        for some in _chunks(tags, _ENTRIES_PER_CALL):
            self._mlflow.log_batch(self._id, tags=some)

    def send_files(self) -> None:
        """Send copies of the files and folders."""
        for path, folder in self._run.files:
            if path.is_dir():
                self._mlflow.log_artifacts(self._id, str(path), folder or path.name)
            else:
                self._mlflow.log_artifact(self._id, str(path), folder or None)

    def send_texts(self, texts: Mapping[str, str]) -> None:
        """Send files that are there as texts only, by name."""
        for name, text in texts.items():
            self._mlflow.log_text(self._id, text, name)

    def end(self, status: str) -> None:
        """End the run, and those above it if it was the last below them."""
        self._mlflow.set_terminated(self._id, status)
        with exclusive(self._store):
            above = runs.find_or_make(self._mlflow, self._experiment, self._run.tags)
            if above != self._above:  # another process was faster to make those above
                self._mlflow.set_tag(self._id, runs.PARENT, above.nearest)
            runs.settle(self._mlflow, self._experiment, above)
        if status == "FINISHED":
            runs.summarise(self._mlflow, above, self._run.headline)


def _name(tags: Mapping[str, str]) -> str:
    return f"{tags['stage']}@{tags['dataset']}" if tags["dataset"] else tags["stage"]


def _reason(error: Exception) -> str:
    return masked(" ".join(str(error).split()))[:300]


def _pause(elapsed: float) -> float:
    """Return the seconds to the next sample: few at first, more the longer a stage runs."""
    return min(30.0, max(2.0, elapsed / 20))


def _dataset_inputs(inputs: Iterable[DataInput], project: Path) -> list[DatasetInput]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = []
    for given in inputs:
        digest = provenance.content_hash(project / given.path)
        if digest != provenance.ABSENT:
            source = json.dumps({"uri": provenance.name_in(project, given.path)})
            dataset = Dataset(given.name, digest, source_type="local", source=source)
            found.append(DatasetInput(dataset, [InputTag(_CONTEXT, given.context)]))
    return found


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextmanager
def stage_run(
    store: str | None,
    *,
    profile: str,
    dataset: str,
    stage: str,
    params: Mapping[str, object],
    deps: Iterable[Path],
    outs: Iterable[Path],
    seed: int,
    protocol: str,
    inputs: Iterable[DataInput] = (),
    experiment: str = "promptkd",
    project: Path = Path(),
) -> Iterator[StageRun]:
    """Record what happens in the block as one run named `stage@dataset`.

    The run is there from the start of the block, and its numbers arrive while it lasts. The
    dependencies are hashed before the block and the outputs after it, as DVC does, because
    `dvc.lock` does not have them while the stage runs. A block that raises is recorded as failed.
    Results outweigh their record: whatever the store does, it is at most a warning.

    Args:
        store: what `open_store` returned; None records nothing.
        profile: `quickstart` or `paper`; each has its own experiment.
        dataset: the data set; "" for a stage over all of them.
        stage: `prepare`, `teacher`, ...
        params: the stage's own parameters, may be nested.
        deps: files and folders that the stage reads, in `project`.
        outs: files and folders that it writes, in `project`.
        seed: its random seed.
        protocol: which classes are trained and tested on.
        inputs: the data sets among what it reads; those that are not there are left out.
        experiment: its name's first part; the profile is the second.
        project: folder that the paths are named from, and whose git commit is recorded.

    Yields:
        The run, to add metrics and files to; its `run_id` is None if the store does not answer.
    """
    run = StageRun()
    if store is None:
        yield run
        return
    run.set_tags({"profile": profile, "dataset": dataset, "stage": stage, "protocol": protocol})
    run.set_tags(
        {
            "seed": str(seed),
            "params_md5": provenance.params_hash(params),
            "host": socket.gethostname(),
            "pid": str(os.getpid()),
            **provenance.commit_tags(project),
            **provenance.hash_tags("dep", deps, project),
        }
    )
    recorder = Recorder(
        store, run, experiment=f"{experiment}-{profile}", params=params, inputs=inputs,
        project=project,
    )  # fmt: skip
    start = time.monotonic()
    status = "FAILED"
    try:
        recorder.open()
        start = time.monotonic()
        yield run
        run.set_tags(provenance.hash_tags("out", outs, project))
        status = "FINISHED"
    except (KeyboardInterrupt, Interrupted):
        status = "KILLED"
        raise
    except Exception as error:
        run.set_tags({"error": " ".join(f"{type(error).__name__}: {error}".split())})
        raise
    finally:
        seconds = time.monotonic() - start
        run.add({"seconds": seconds, "peak_memory_mb": provenance.peak_memory()})
        recorder.close(status)
