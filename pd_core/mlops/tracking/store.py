"""Connection to the MLflow tracking store, and the system metrics that MLflow samples."""

from __future__ import annotations

import logging
import os
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock

from pd_core.core.errors import BadParams, PdError
from pd_core.pipeline.redaction import masked, without_login
from pd_core.pipeline.settings import telemetry_off

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.entities import PagedList

T = TypeVar("T")

BUSY = "system/cpu_utilization_percentage"
DATABASE = "mlflow.db"
ARTIFACTS = "mlruns"

_SQLITE = "sqlite:///"
_SERVER_SCHEMES = ("http", "https")
_DATABASE_SCHEMES = ("postgresql", "mysql", "mssql")
_SERVER_SECONDS = 5.0
_LOCK_SECONDS = 60.0  # who holds it is done in one, unless it has been stopped
_ATTEMPTS = "4"  # half a minute for a server to come back; MLflow's own 7 are minutes a call


class Machine:
    """Samples of processor, memory and, where there is one, GPU.

    MLflow's own collector of these has a thread and a connection of its own; its parts are used
    here, so that there is one thread a stage, and one place where a failing store is dealt with.
    """

    def __init__(self) -> None:
        """Take the first reading, which the processor's use counts from."""
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

        processor: Callable[[], Any] = CPUMonitor  # published without types
        self._monitors = [processor(), *_gpus()]
        self.samples = 0
        self._read()

    def sample(self) -> dict[str, float]:
        """Return the numbers now, by MLflow's names."""
        self.samples += 1
        return {f"system/{name}": value for name, value in self._read().items()}

    def _read(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found.update(monitor.aggregate_metrics())
            monitor.clear_metrics()
        return found


def _gpus() -> list[Any]:
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    gpus: Callable[[], Any] = GPUMonitor
    try:
        return [gpus()]
    except Exception:  # noqa: BLE001 no GPU, or not the package that reads it
        return []


def milliseconds() -> int:
    """Return the time now as MLflow counts it."""
    return round(time.time() * 1000)


def one_line(error: Exception) -> str:
    """Return an error's text in one short line, without passwords."""
    return masked(" ".join(str(error).split()))[:300]


def open_store(project: Path, uri: str | None = None) -> str:
    """Find or create the tracking store, before any work is done.

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


def client(store: str) -> MlflowClient:
    """Return MLflow's client for tracking and registry, with its chatter off."""
    telemetry_off()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _ATTEMPTS)
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
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        try:
            return mlflow.create_experiment(name, artifact_location=place)
        except MlflowException:  # another process was faster
            found = mlflow.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def search(mlflow: MlflowClient, experiment: str, tags: Mapping[str, str]) -> list[Run]:
    """Return all runs of an experiment that have the given tags."""
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return every(lambda token: mlflow.search_runs([experiment], wanted, page_token=token))


def every(page_at: Callable[[str | None], PagedList[T]]) -> list[T]:
    """Return the entries of all pages of a search, given the function that fetches a page."""
    page = page_at(None)
    found = list(page)
    while page.token:
        page = page_at(page.token)
        found += page
    return found


@contextmanager
def exclusive(store: str) -> Iterator[None]:
    """Keep the other processes of this machine out of the block, if the store is a local one."""
    if not store.startswith(_SQLITE):
        yield
        return
    with FileLock(f"{store.removeprefix(_SQLITE)}.lock", timeout=_LOCK_SECONDS):
        yield


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
