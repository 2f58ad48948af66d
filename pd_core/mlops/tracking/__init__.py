"""MLflow tracking: each stage is one run, with everything needed to trace its outputs.

Runs are nested: a profile's experiment holds one run per commit (the benchmark), below it one per
data set, below that one per stage. This module connects to the store and searches it, `recorder`
writes runs. Nothing here touches a stage's outputs, and measured times appear nowhere else.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock

from pd_core.core.errors import BadParams, PdError
from pd_core.mlops.tracking import moved
from pd_core.mlops.tracking.moved import ARTIFACTS
from pd_core.pipeline.code_hash import CODE
from pd_core.pipeline.experiment import origin
from pd_core.pipeline.provenance import Lineage
from pd_core.pipeline.redaction import masked, without_login
from pd_core.pipeline.settings import REFUSED, status_of, telemetry_off

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.entities import PagedList

T = TypeVar("T")

DATABASE = "mlflow.db"
SQLITE = "sqlite:///"

LINEAGE, LINEAGE_FILE = "lineage", "lineage.json"
"""Tag with the digest of a lineage, and the artifact that holds it."""

LEVEL = "level"
"""Tag of a run: benchmark, dataset or stage."""

EXPERIMENT = "dvc_experiment"
"""Tag of runs of `dvc exp run`: the name of DVC's experiment."""

REPLACED_BY = "replaced_by"
PARENT = "mlflow.parentRunId"
COMMIT = "mlflow.source.git.commit"

_KINDS = {
    **dict.fromkeys(("http", "https"), "server"),
    **dict.fromkeys(("postgresql", "mysql", "mssql"), "database"),
}
_SERVER_SECONDS = 5.0
_LOCK_SECONDS = 60.0  # the holder needs less than one, unless it has been stopped
_ATTEMPTS = "4"  # half a minute for a server to come back; MLflow's own 7 are minutes a call
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's pages for model training


class StoreRefuses(PdError):
    """MLflow refuses a request, or does not answer; a stage's result is kept all the same."""


def milliseconds() -> int:
    """Return the time now as MLflow counts it."""
    return round(time.time() * 1000)


def one_line(error: Exception) -> str:
    """Return an error's text in one short line, without passwords."""
    return masked(" ".join(str(error).split()))[:300]


def open_store(project: Path, uri: str | None = None) -> str:
    """Check or create the tracking store, and return its address.

    A local one that was moved or copied with its folder then has its files in the new folder.

    Args:
        project: folder of the pipeline; the local database is `mlflow.db` in it. For a temporary
            copy by DVC, it is that of the project.
        uri: a tracking server (`http://host:port`) or database; None or "" for the local one.

    Raises:
        BadParams: the address is of no valid kind.
        PdError: nothing answers there, or the database cannot be created.
    """
    if not uri:
        uri = f"{SQLITE}{(origin(project) / DATABASE).resolve()}"
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if uri.startswith(SQLITE):
        path = (origin(Path()) / uri.removeprefix(SQLITE)).resolve()
        _create_database(path)
        moved.adopt(path)
        return f"{SQLITE}{path}"
    if scheme not in _KINDS:
        raise BadParams(
            f"unknown tracking address '{masked(uri)}'; valid: http://host:port, https://host, "
            f"{SQLITE}file.db, postgresql://...; leave it empty for the local database"
        )
    _check(uri, _KINDS[scheme])
    return uri


def client(store: str) -> MlflowClient:
    """Return MLflow's client for tracking and registry, with its messages off."""
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

    Raises:
        StoreRefuses: the experiment was deleted, and not for good.
    """
    from mlflow.entities import LifecycleStage
    from mlflow.exceptions import MlflowException

    location = None
    if store.startswith(SQLITE):
        location = str(Path(store.removeprefix(SQLITE)).with_name(ARTIFACTS) / name)
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is None:
        try:
            return mlflow.create_experiment(name, artifact_location=location, tags=_KIND)
        except MlflowException:  # another process was faster
            experiment = mlflow.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        raise StoreRefuses(
            f"the experiment '{name}' was deleted in MLflow; restore it: "
            f"MLFLOW_TRACKING_URI={masked(store)} mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}"
        )
    return str(experiment.experiment_id)


@contextmanager
def exclusive(store: str) -> Iterator[None]:
    """Keep the other processes of this machine out of the block, if the store is a local one."""
    if not store.startswith(SQLITE):
        yield
        return
    with FileLock(f"{store.removeprefix(SQLITE)}.lock", timeout=_LOCK_SECONDS):
        yield


def search(mlflow: MlflowClient, experiment: str, tags: Mapping[str, str]) -> list[Run]:
    """Return all runs of an experiment that have the given tags."""
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return every(lambda token: mlflow.search_runs([experiment], query, page_token=token))


def every(page_at: Callable[[str | None], PagedList[T]]) -> list[T]:
    """Return the entries of all pages of a search, given the function that fetches a page."""
    page = page_at(None)
    entries = list(page)
    while page.token:
        page = page_at(page.token)
        entries += page
    return entries


def find(mlflow: MlflowClient, run_id: str) -> Run | None:
    """Return the run with an id; None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def below(mlflow: MlflowClient, run: Run) -> list[Run]:
    """Return the current stage runs below a benchmark's or data set's run, the earliest first."""
    children = search(mlflow, run.info.experiment_id, {PARENT: run.info.run_id})
    stages = [child for child in children if "stage" in child.data.tags]
    further = [stage for run in children if run not in stages for stage in below(mlflow, run)]
    current = [stage for stage in stages if REPLACED_BY not in stage.data.tags]
    return sorted([*current, *further], key=lambda stage: stage.info.start_time)


def write_lineage(mlflow: MlflowClient, run_id: str, lineage: Lineage, folder: str = "") -> None:
    """Write a lineage into a folder of a run's artifacts."""
    mlflow.log_text(run_id, lineage.text(), f"{folder}/{LINEAGE_FILE}".lstrip("/"))


def read_lineage(mlflow: MlflowClient, run_id: str, folder: str = "") -> Lineage:
    """Read what `write_lineage` wrote."""
    with TemporaryDirectory() as temporary:
        file = f"{folder}/{LINEAGE_FILE}".lstrip("/")
        path = mlflow.download_artifacts(run_id, file, temporary)
        return Lineage.parse(Path(path).read_text(encoding="utf-8"))


def lineage_of(mlflow: MlflowClient, run: Run) -> Lineage:
    """Return a run's lineage; those of earlier releases of this package have a tag for each hash.

    It is empty where the run has none.
    """
    if LINEAGE in run.data.tags:
        return read_lineage(mlflow, run.info.run_id)
    hashes = {"dep": dict[str, str](), "out": dict[str, str]()}
    for key, value in run.data.tags.items():
        kind, _, path = key.partition(":")
        hashes.get(kind, {})[path] = value
    return Lineage(deps=hashes["dep"], outs=hashes["out"])


def makers(mlflow: MlflowClient, run: Run) -> list[Run]:
    """Return the runs that made what a run read, directly or not, by the hashes of their lineage.

    Outputs from DVC's cache were made by no run of this commit, maybe by none that is recorded.
    """
    results: dict[str, Run] = {}
    queue = [run]
    while queue:
        for path, digest in lineage_of(mlflow, queue.pop()).deps.items():
            maker = _maker(mlflow, run.info.experiment_id, path, digest)
            if maker and maker.info.run_id not in results:
                results[maker.info.run_id] = maker
                queue.append(maker)
    return list(results.values())


def _maker(mlflow: MlflowClient, experiment: str, path: str, digest: str) -> Run | None:
    """Return the newest run of a stage that wrote `data/<stage>/<data set>` with that hash."""
    parts = Path(path).parts
    if len(parts) < 3 or parts[0] != "data" or parts[1] == CODE:  # data, stage, data set
        return None
    query = f"tags.stage = '{parts[1]}' and tags.dataset LIKE '%{parts[2]}'"
    runs = every(lambda token: mlflow.search_runs([experiment], query, page_token=token))
    newest = sorted(runs, key=lambda run: -run.info.start_time)
    return next((run for run in newest if lineage_of(mlflow, run).outs.get(path) == digest), None)


def page_of(store: str, experiment: str, commit: str, dataset: str = "") -> str:
    """Return the URL of a commit's benchmark, or of one data set's run, on a tracking server.

    It is the experiment's page if there is no such run, as when all was taken from a cache.

    Raises:
        PdError: the server refuses a search.
    """
    mlflow = client(store)
    from mlflow.exceptions import MlflowException

    level = {LEVEL: "dataset", "dataset": dataset} if dataset else {LEVEL: "benchmark"}
    root = without_login(store).rstrip("/")
    try:
        match = mlflow.get_experiment_by_name(experiment)
        if match is None:
            return f"{root}/#/experiments"
        runs = search(mlflow, match.experiment_id, {COMMIT: commit, **level})
        runs = [run for run in runs if EXPERIMENT not in run.data.tags]
    except MlflowException as error:  # its text repeats the server's response
        raise PdError(
            f"MLflow at '{masked(store)}' refuses a search ({error.error_code}); see that the "
            "address and its login are right"
        ) from None
    page = f"{root}/#/experiments/{match.experiment_id}"
    return f"{page}/runs/{runs[0].info.run_id}" if runs else page


def _create_database(path: Path) -> None:
    # A database is migrated under another name and then renamed: an existing one is complete.
    try:
        if path.is_file() and path.stat().st_size > 0:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not (path.is_file() and path.stat().st_size > 0):
                new = path.with_name(f"{path.name}.new")
                new.unlink(missing_ok=True)  # left by a killed process
                client(f"{SQLITE}{new}").search_experiments(max_results=1)
                new.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PdError(
            f"cannot create the tracking database '{path}': {reason}; make the folder writable "
            f"or give another tracking address"
        ) from None


def _check(uri: str, kind: str) -> None:
    """Refuse a server or a database that does not answer."""
    try:
        if kind == "database":
            client(uri).search_experiments(max_results=1)
            return
        health = f"{without_login(uri).rstrip('/')}/health"
        status = status_of(health, seconds=_SERVER_SECONDS)
        if status < 300 or status in REFUSED:  # MLflow sends the login
            return
        reason = f"it answers {status}"
    except Exception as error:  # noqa: BLE001 each driver has its own errors
        reason = masked(str(error).partition("\n")[0])
    raise PdError(
        f"no MLflow {kind} answers at '{masked(uri)}' ({reason}); start it, correct the tracking "
        f"address, or leave it empty for the local database"
    )
