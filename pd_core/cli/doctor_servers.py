"""Checks of `promptkd doctor` that reach MLflow, DVC's remote and the mirror."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from pd_core.cli.doctor import Result, ok, warning, wrong
from pd_core.core.atomic import existing
from pd_core.mlops import tracking
from pd_core.mlops.tracking import moved
from pd_core.pipeline import dvc
from pd_core.pipeline.redaction import without_login
from pd_core.pipeline.settings import REFUSED, Settings, status_of

_SECONDS = 5.0
_SQLITE = "sqlite:///"
_KEYS = "PD_S3_ACCESS_KEY_ID and PD_S3_SECRET_ACCESS_KEY"
_WRITE = "write (s3:PutObject)"
_DELETE = "delete (s3:DeleteObject)"


def mlflow(project: Path, uri: str | None) -> Result:
    """Check that runs can be recorded; a local database is not created.

    Args:
        project: folder of the local database, if `uri` names none.
        uri: a tracking server or database; None for the local one.

    Raises:
        PdError: nothing answers at the address.
    """
    if not uri or uri.startswith(_SQLITE):
        path = Path(uri.removeprefix(_SQLITE)) if uri else project / tracking.DATABASE
        return _local_database(path.resolve())
    tracking.open_store(project, uri)
    if not uri.startswith("http"):
        return ok("MLflow", f"the database at '{uri}' answers")
    login = _mlflow_login(uri)
    search = f"{without_login(uri).rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1"
    if status_of(search, login=login, seconds=_SECONDS) not in REFUSED:
        return ok("MLflow", f"the server at '{uri}' answers")
    verb, fault = ("set", "asks for a") if login is None else ("correct", "refuses the")
    remedy = f"{verb} MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    return wrong("MLflow", f"the server at '{uri}' {fault} password", remedy)


def _mlflow_login(uri: str) -> str | None:
    """Return `<name>:<password>` of the address, or else of MLflow's variables."""
    parts = urlsplit(uri)
    if parts.username is not None:
        return f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return None if user is None else f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"


def _local_database(path: Path) -> Result:
    if not os.access(path if path.exists() else existing(path.parent), os.W_OK):
        remedy = "make it writable, or set PD_MLFLOW_TRACKING_URI"
        return wrong("MLflow", f"'{path}' cannot be written", remedy)
    if not path.exists():
        return ok("MLflow", f"the first stage will make '{path}'")
    address = f"{path.as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=_SECONDS)) as database:
            (runs,) = database.execute("SELECT COUNT(*) FROM runs").fetchone()
        former, absent = moved.former_folders(path), moved.missing_versions(path)
    except sqlite3.Error as error:
        remedy = "move the file away: the next stage makes a new one"
        return wrong("MLflow", f"'{path}' is no database of MLflow ({error})", remedy)
    if former:
        message = f"'{path}' was moved or copied: its files are looked for in '{former[0]}'"
        remedy = f"run `promptkd registry list`, which corrects it if '{path.parent}' has `mlruns`"
        return warning("MLflow", message, remedy)
    if absent:
        message = f"{len(absent)} registered versions have no files, as {absent[0]}"
        remedy = f"copy `mlruns` to '{path.parent}', or run `promptkd registry register`"
        return warning("MLflow", message, remedy)
    if names := _set_by_hand(f"{_SQLITE}{path}"):
        message = f"champions were set by hand, past the gate: {', '.join(names)}"
        return warning("MLflow", message, "run `promptkd registry promote <data set>/<version>`")
    return ok("MLflow", f"'{path}', {runs} runs")


def _set_by_hand(store: str) -> list[str]:
    """Return the champions that were made so past the gate, as `<name>/<number>`."""
    from pd_core.mlops import registry
    from pd_core.mlops.registry import promotion

    models = (registry.versions(store, name) for name in registry.models(store))
    champions = filter(None, map(promotion.set_by_hand, models))
    return [f"{champion.name}/{champion.number}" for champion in champions]


def dvc_remote(settings: Settings) -> Result:
    """Check that the DVC remote of the settings can be used; other remotes are left to DVC.

    Raises:
        MissingFile: this folder is in no DVC project.
    """
    root, location = dvc.root(), settings.dvc_remote
    if location is None:
        if "remote" in (root / ".dvc" / "config").read_text("utf-8"):
            return ok("DVC remote", "DVC's own settings name it")
        remedy = "PD_DVC_REMOTE gives `promptkd push` a place for copies"
        return warning("DVC remote", "none: results are on this disk only", remedy)
    if location.startswith("s3://"):
        return s3("DVC remote", location, settings)
    place = existing(Path(location))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        remedy = "mount it, make it writable, or correct PD_DVC_REMOTE"
        return wrong("DVC remote", f"'{location}' cannot be written", remedy)
    return ok("DVC remote", f"'{location}'")


def mirror(settings: Settings) -> Result:
    """Check that the mirror of data and weights can be used, if one is set."""
    if settings.mirror is None:
        return ok("mirror", "none set: data and weights come from their origins")
    return s3("mirror", settings.mirror, settings)


def s3(subject: str, location: str, settings: Settings) -> Result:
    """List a bucket, and write, read and delete a small object in it.

    Args:
        subject: of the result.
        location: `s3://<bucket>/<prefix>`.
        settings: with the endpoint and the credentials.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    name = "/".join(filter(None, (prefix.strip("/"), f"promptkd-doctor-{uuid.uuid4().hex}")))
    endpoint = settings.s3_endpoint_url
    place = f"'{location}'" + (f" at {endpoint}" if endpoint else "")
    try:
        denied = _denied_rights(_client(settings), bucket, name)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in ("NoSuchBucket", "404"):
            remedy = "make it, or correct the address"
            return wrong(subject, f"no bucket '{bucket}' for {place}", remedy)
        remedy = f"correct {_KEYS}, or see the server's log"
        return wrong(subject, f"{place} refuses the credentials ({code})", remedy)
    except (BotoCoreError, ValueError) as error:
        remedy = f"correct the address or {_KEYS}, or see why the server is down"
        return wrong(subject, f"{place} does not answer ({error})", remedy)
    if not denied:
        return ok(subject, f"{place}: list, write, read and delete are allowed")
    left = f"; '{name}' is left there" if _DELETE in denied and _WRITE not in denied else ""
    message = f"{place} does not allow to {', '.join(denied)}{left}"
    result = warning if denied == [_DELETE] else wrong
    return result(subject, message, "give these rights to the credentials' user")


def _denied_rights(client: Any, bucket: str, name: str) -> list[str]:
    """Return the rights that the credentials lack; if writing is denied, no others are tried."""
    where = {"Bucket": bucket, "Key": name}
    folder = name.rpartition("/")[0]
    calls: dict[str, Callable[[], Any]] = {
        "list (s3:ListBucket)": lambda: client.list_objects_v2(Bucket=bucket, Prefix=folder),
        _WRITE: lambda: client.put_object(**where, Body=b"promptkd doctor"),
        "read (s3:GetObject)": lambda: client.get_object(**where)["Body"].read(),
        _DELETE: lambda: client.delete_object(**where),
    }
    denied = []
    for right, call in calls.items():
        if _is_denied(call):
            denied.append(right)
            if right == _WRITE:
                break
    return denied


def _is_denied(call: Callable[[], object]) -> bool:
    from botocore.exceptions import ClientError

    try:
        call()
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("403", "AccessDenied"):
            return True
        raise
    return False


def _client(settings: Settings) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        aws_access_key_id=_plain(settings.s3_access_key_id),
        aws_secret_access_key=_plain(settings.s3_secret_access_key),
        config=Config(
            connect_timeout=_SECONDS,
            read_timeout=_SECONDS,
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",  # as for the mirror
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if settings.s3_endpoint_url else {},
        ),
    )


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
