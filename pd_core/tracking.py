"""MLflow tracking: each stage is one run, with everything needed to trace its outputs.

The default store is a SQLite database beside the pipeline file, with the runs' files in `mlruns/`.
It is created once, under a lock, because MLflow's own migration breaks when several processes
start it at the same time. MLflow takes seconds to import, so it is imported when a run is sent:
after the stage's work, in one go. Nothing here touches a stage's outputs, and measured times
appear nowhere else.
"""

from __future__ import annotations

import logging
import os
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import urlsplit

from filelock import FileLock

from pd_core import provenance
from pd_core.errors import BadParams, Interrupted, PdError
from pd_core.masking import masked, without_login
from pd_core.settings import telemetry_off

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE = "mlflow.db"
ARTIFACTS = "mlruns"

_SQLITE = "sqlite:///"
_SERVER_SCHEMES = ("http", "https")
_DATABASE_SCHEMES = ("postgresql", "mysql", "mssql")
_SERVER_SECONDS = 5.0
_METRICS_PER_CALL = 1000  # MLflow's limit for metrics, and for all entries together
_ENTRIES_PER_CALL = 100  # MLflow's limit for parameters and for tags

_log = logging.getLogger(__name__)


def open_store(project: Path, uri: str | None = None) -> str:
    """Find or create the place that runs are written to, before any work is done.

    Args:
        project: folder of the pipeline; the local database is `mlflow.db` in it.
        uri: a tracking server (`http://host:port`) or database; None or "" for the local one.

    Returns:
        The address to hand to `stage_run` and to the registry.

    Raises:
        BadParams: the address is of no known kind.
        PdError: nothing answers there, or the database cannot be created.
    """
    if not uri:
        uri = f"{_SQLITE}{(project / DATABASE).resolve()}"
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if uri.startswith(_SQLITE):
        path = Path(uri.removeprefix(_SQLITE)).resolve()
        _create_database(path)
        return f"{_SQLITE}{path}"
    if scheme in _SERVER_SCHEMES:
        _check_server(uri)
    elif scheme in _DATABASE_SCHEMES:
        _check_database(uri)
    else:
        raise BadParams(
            f"unknown tracking address '{masked(uri)}'; valid: http://host:port, https://host, "
            f"{_SQLITE}file.db, postgresql://...; leave it empty for the local database"
        )
    return uri


@dataclass
class StageRun:
    """What one stage wants recorded; it is sent when the `stage_run` block ends.

    Attributes:
        run_id: MLflow's name of the run; None until it is sent, and when tracking is off.
    """

    run_id: str | None = None
    _metrics: list[tuple[str, float, int]] = field(default_factory=list)
    _files: list[tuple[Path, str]] = field(default_factory=list)
    _tags: dict[str, str] = field(default_factory=dict)

    def log_epochs(self, history: Sequence[Mapping[str, object]], prefix: str = "") -> None:
        """Record the numbers of every epoch; what is not a number is left out.

        Args:
            history: one mapping per epoch; its key `epoch`, if there, is the step.
            prefix: put before each name, for example "val/".
        """
        for index, row in enumerate(history):
            epoch = row.get("epoch")
            step = epoch if isinstance(epoch, int) else index
            for name, value in row.items():
                if name != "epoch" and _is_number(value):
                    self._metrics.append((prefix + name, float(value), step))

    def log_metrics(self, metrics: Mapping[str, object]) -> None:
        """Record single numbers; nested mappings become names such as `student/hm`."""
        for name, value in _flat(metrics, "/").items():
            if _is_number(value):
                self._metrics.append((name, float(value), 0))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file or folder with the run, in `folder` of its artifacts."""
        self._files.append((path, folder))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add tags to the run."""
        self._tags.update(tags)


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
    experiment: str = "promptkd",
    project: Path = Path(),
) -> Iterator[StageRun]:
    """Record what happens in the block as one run named `stage@dataset`.

    The dependencies are hashed before the block and the outputs after it, as DVC does, because
    `dvc.lock` does not have them while the stage runs. A block that raises is recorded as failed.
    Results outweigh their record: if the store fails once the work is done, that is a warning.

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
        experiment: its name's first part; the profile is the second.
        project: folder that the paths are named from, and whose git commit is recorded.

    Yields:
        The run, to add metrics and files to; its `run_id` is set when the block has ended.
    """
    run = StageRun()
    if store is None:
        yield run
        return
    name = f"{stage}@{dataset}" if dataset else stage
    run.set_tags({"profile": profile, "dataset": dataset, "stage": stage, "protocol": protocol})
    run.set_tags(
        {
            "seed": str(seed),
            "params_md5": provenance.params_hash(params),
            **provenance.commit_tags(project),
        }
    )
    run.set_tags(provenance.hash_tags("dep", deps, project))
    start = time.time()
    status = "FAILED"
    try:
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
        run.log_metrics(
            {"seconds": time.time() - start, "peak_memory_mb": provenance.peak_memory()}
        )
        _send(
            run,
            store,
            experiment=f"{experiment}-{profile}",
            name=name,
            start=start,
            status=status,
            params=params,
        )


def client(store: str) -> MlflowClient:
    """Return MLflow's client for tracking and registry, with its chatter off."""
    telemetry_off()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    with warnings.catch_warnings():  # about MLflow's own use of SQLAlchemy
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        return MlflowClient(tracking_uri=store, registry_uri=store)


def experiment_id(mlflow: MlflowClient, store: str, name: str) -> str:
    """Return the id of an experiment, creating it if there is none of that name.

    With a local database its files go to `mlruns/<name>` beside the database; a server decides
    for itself.
    """
    from mlflow.exceptions import MlflowException

    place = None
    if store.startswith(_SQLITE):
        place = str(Path(store.removeprefix(_SQLITE)).with_name(ARTIFACTS) / name)
    if found := mlflow.get_experiment_by_name(name):
        return str(found.experiment_id)
    try:
        return mlflow.create_experiment(name, artifact_location=place)
    except MlflowException:  # another process was faster
        found = mlflow.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _send(
    run: StageRun,
    store: str,
    *,
    experiment: str,
    name: str,
    start: float,
    status: str,
    params: Mapping[str, object],
) -> None:
    try:
        mlflow = client(store)
        created = mlflow.create_run(
            experiment_id(mlflow, store, experiment),
            start_time=round(start * 1000),
            run_name=name,
        )
        _log_all(mlflow, created.info.run_id, run, params)
        for path, folder in run._files:
            _log_path(mlflow, created.info.run_id, path, folder)
        mlflow.set_terminated(created.info.run_id, status=status)
        run.run_id = created.info.run_id
    except Exception as error:  # noqa: BLE001 whatever it is, it must not cost the stage its results
        reason = masked(" ".join(str(error).split()))[:300]
        _log.warning("run '%s' is not recorded in '%s': %s", name, masked(store), reason)


def _log_all(
    mlflow: MlflowClient, run_id: str, run: StageRun, params: Mapping[str, object]
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now = round(time.time() * 1000)
    metrics = [Metric(name, value, now, step) for name, value, step in run._metrics]
    values = [Param(name, masked(str(value))) for name, value in _flat(params, ".").items()]
    tags = [RunTag(name, masked(value)) for name, value in run._tags.items()]
    if max(len(values), len(tags)) <= _ENTRIES_PER_CALL and (
        len(metrics) + len(values) + len(tags) <= _METRICS_PER_CALL
    ):
        mlflow.log_batch(run_id, metrics=metrics, params=values, tags=tags)
        return
    for some_tags in _chunks(tags, _ENTRIES_PER_CALL):
        mlflow.log_batch(run_id, tags=some_tags)
    for some_values in _chunks(values, _ENTRIES_PER_CALL):
        mlflow.log_batch(run_id, params=some_values)
    for some_metrics in _chunks(metrics, _METRICS_PER_CALL):
        mlflow.log_batch(run_id, metrics=some_metrics)


def _log_path(mlflow: MlflowClient, run_id: str, path: Path, folder: str) -> None:
    if path.is_dir():
        mlflow.log_artifacts(run_id, str(path), folder or path.name)
    else:
        mlflow.log_artifact(run_id, str(path), folder or None)


def _create_database(path: Path) -> None:
    # A database is migrated under another name and then renamed: one that is there is whole.
    try:
        if path.is_file() and path.stat().st_size > 0:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not (path.is_file() and path.stat().st_size > 0):
                new = path.with_name(f"{path.name}.new")
                new.unlink(missing_ok=True)  # what a killed process left
                client(f"{_SQLITE}{new}").search_experiments(max_results=1)
                new.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PdError(
            f"cannot create the tracking database '{path}': {reason}; make the folder writable "
            f"or give another tracking address"
        ) from None


def _check_server(uri: str) -> None:
    health = f"{without_login(uri).rstrip('/')}/health"
    try:
        with urllib.request.urlopen(health, timeout=_SERVER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):  # it is there and asks for a password, which MLflow will give
            return
        reason = f"it answers {error.code}"
    except HTTPException as error:
        reason = type(error).__name__  # its text may repeat a part of the address
    except (OSError, ValueError) as error:
        reason = masked(str(getattr(error, "reason", error)))
    raise PdError(
        f"no MLflow server answers at '{masked(uri)}' ({reason}); start it, correct the tracking "
        f"address, or leave it empty for the local database"
    )


def _check_database(uri: str) -> None:
    try:
        client(uri).search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001 each driver has its own errors
        reason = masked(str(error).partition("\n")[0])
        raise PdError(
            f"no MLflow database answers at '{masked(uri)}' ({reason}); correct the tracking "
            f"address, or leave it empty for the local database"
        ) from None


def _flat(values: Mapping[str, object], separator: str) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = _flat(value, separator)
            flat.update({f"{name}{separator}{key}": item for key, item in inner.items()})
        else:
            flat[str(name)] = value
    return flat


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
