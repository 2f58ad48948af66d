"""Checks of MLflow, Prefect, DVC's remotes and S3 permissions."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from pd_core.cli.doctor.local import Finding, ok, warning, wrong
from pd_core.core.atomic import existing
from pd_core.core.errors import PdError
from pd_core.mlops import tracking
from pd_core.pipeline import dvc as dvc_remote
from pd_core.pipeline.redaction import has_login, without_login
from pd_core.pipeline.settings import REFUSED, status_of

_SECONDS = 5.0
_SERVER_SECONDS = 5
_DVC_SECONDS = 25.0
_SQLITE = "sqlite:///"
_PREFECT = "PD_PREFECT_API_URL (or PREFECT_API_URL)"
_LOST = ("NoSuchBucket", "404")
_BAD_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
_KEYS = "PD_S3_ACCESS_KEY_ID and PD_S3_SECRET_ACCESS_KEY"
_DVC_KEYS = "`dvc remote modify --local`"
_LIST = "list (s3:ListBucket)"
_WRITE = "write (s3:PutObject)"
_READ = "read (s3:GetObject)"
_DELETE = "delete (s3:DeleteObject)"


def mlflow(
    project: Path, uri: str | None, *, user: str | None = None, password: SecretStr | None = None
) -> Finding:
    """See whether runs can be recorded; a local database is not created.

    Args:
        project: Folder of the local database, if `uri` names none.
        uri: A tracking server or database; None for the local one.
        user: Name for a server that asks, if the address has none.
        password: Likewise.

    Raises:
        PdError: Nothing answers at the address.
    """
    if not uri or uri.startswith(_SQLITE):
        path = Path(uri.removeprefix(_SQLITE)) if uri else project / tracking.DATABASE
        return _local_database(path.resolve())
    tracking.open_store(project, uri)
    if not uri.startswith("http"):
        return ok("MLflow", f"the database at '{uri}' answers")
    parts = urlsplit(uri)
    if parts.username is not None:
        user, password = unquote(parts.username), SecretStr(unquote(parts.password or ""))
    login = None if user is None else f"{user}:{_plain(password) or ''}"
    search = f"{without_login(uri).rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1"
    if status_of(search, login=login, seconds=_SECONDS) not in REFUSED:
        return ok("MLflow", f"the server at '{uri}' answers")
    verb, fault = ("set", "asks for a") if user is None else ("correct", "refuses the")
    remedy = f"{verb} MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    return wrong("MLflow", f"the server at '{uri}' {fault} password", remedy)


def _local_database(path: Path) -> Finding:
    folder = existing(path.parent)
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        remedy = "make it writable, or set PD_MLFLOW_TRACKING_URI"
        return wrong("MLflow", f"'{path}' cannot be written", remedy)
    if not path.exists():
        return ok("MLflow", f"the first stage will make '{path}'")
    address = f"{path.as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=_SECONDS)) as database:
            (runs,) = database.execute("SELECT COUNT(*) FROM runs").fetchone()
    except sqlite3.Error as error:
        remedy = "move the file away: the next stage makes a new one"
        return wrong("MLflow", f"'{path}' is no database of MLflow ({error})", remedy)
    return ok("MLflow", f"'{path}', {runs} runs")


def prefect(address: str | None) -> Finding:
    """See whether the Prefect server answers, if one is set."""
    if not address:
        return ok("Prefect", "no server set: flows run without one")
    if has_login(address):
        remedy = "put name and password in PREFECT_API_AUTH_STRING, as <name>:<password>"
        return wrong("Prefect", f"'{address}' holds a password", remedy)
    try:
        status = status_of(f"{address.rstrip('/')}/health", seconds=_SECONDS)
    except PdError as error:
        remedy = f"start it by `prefect server start`, or correct or unset {_PREFECT}"
        return wrong("Prefect", f"no server at '{address}' ({error})", remedy)
    if status == 200:
        return ok("Prefect", f"the server at '{address}' answers")
    if status in REFUSED:
        return ok("Prefect", f"the server at '{address}' answers, asks for a password")
    return wrong(
        "Prefect", f"'{address}' answers {status}", f"correct {_PREFECT}: it ends with /api"
    )


@dataclass(frozen=True)
class Access:
    """How a bucket is reached; boto3 looks for what is None."""

    location: str  # `s3://bucket/prefix`; of a DVC remote also a folder, or another address
    endpoint: str | None = None  # None for Amazon's
    key_id: SecretStr | None = None
    secret: SecretStr | None = None
    token: SecretStr | None = None  # of a session
    region: str | None = None
    profile: str | None = None  # of boto3's own files
    keys: str = _KEYS  # where the user's credentials are set, for the remedy


@dataclass(frozen=True)
class DvcProject:
    """A DVC project: the folder of `.dvc`, and its merged settings, which may hold secrets."""

    root: Path
    config: Mapping[str, SecretStr]

    def get(self, key: str) -> str | None:
        """Return a setting that is no secret."""
        return _plain(self.config.get(key))

    @property
    def cache(self) -> Path:
        """Where outputs are kept."""
        return self.root / ".dvc" / (self.get("cache.dir") or "cache")


def read_dvc(folder: Path) -> DvcProject:
    """Ask DVC for the project that a folder is in.

    Raises:
        PdError: It is in none, or DVC does not answer.
    """
    root = (folder / _dvc(folder, "root").strip()).resolve()
    lines = _dvc(folder, "config", "--list").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    return DvcProject(root, {key: SecretStr(value) for key, _, value in pairs})


def _dvc(folder: Path, *arguments: str) -> str:
    """Run DVC of this environment; a message of its own is not repeated, it may hold an address."""
    command = [sys.executable, "-m", "dvc", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_DVC_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise PdError(f"`dvc {' '.join(arguments)}` does not answer; run it by hand") from None
    if done.returncode != 0:
        raise PdError(
            f"DVC finds no project at '{folder.resolve()}', or cannot read it; run `dvc status` "
            "there, it says why"
        )
    return done.stdout


def dvc(project: DvcProject, shared: Access | None = None) -> Iterator[Finding]:
    """Reach a DVC project's remotes.

    That of the settings, if they name one, is the default, whatever DVC's own say.
    """
    yield ok("DVC", f"project '{project.root}', cache '{project.cache}'")
    names = [
        key.removeprefix("remote.").removesuffix(".url")
        for key in project.config
        if key.startswith("remote.") and key.endswith(".url")
    ]
    if shared is not None:
        names = [name for name in names if name != dvc_remote.NAME]
        yield _reach(dvc_remote.NAME, shared, project.root, "correct PD_DVC_REMOTE")
    elif not names:
        remedy = "PD_DVC_REMOTE gives `promptkd push` a place for copies"
        yield warning("DVC remote", "none: results are on this disk only", remedy)
    elif project.get("core.remote") is None:
        yield warning("DVC remote", "none is the default", f"run `dvc remote default {names[0]}`")
    for name in names:
        remedy = f"run `dvc remote modify {name} url <folder>`"
        yield _reach(name, _access(project, f"remote.{name}."), project.root, remedy)


def _access(project: DvcProject, prefix: str) -> Access:
    return Access(
        project.get(f"{prefix}url") or "",
        endpoint=project.get(f"{prefix}endpointurl"),
        key_id=project.config.get(f"{prefix}access_key_id"),
        secret=project.config.get(f"{prefix}secret_access_key"),
        token=project.config.get(f"{prefix}session_token"),
        region=project.get(f"{prefix}region"),
        profile=project.get(f"{prefix}profile"),
        keys=_DVC_KEYS,
    )


def _reach(name: str, access: Access, root: Path, remedy: str) -> Finding:
    """See whether a remote of any kind that DVC has can be used; a folder is seen from the root."""
    subject, url = f"DVC remote {name}", access.location
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme == "s3":
        return s3(subject, access)
    if scheme:
        return ok(subject, f"'{url}', not asked: only folders and S3 are")
    path = root / url
    place = existing(path)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        remedy = f"mount it, make it writable, or {remedy}"
        return wrong(subject, f"'{path}' cannot be written", remedy)
    made = "" if path.exists() else ", which the first `dvc push` will make"
    return ok(subject, f"'{path}'{made}")


def s3(subject: str, access: Access) -> Finding:
    """Write, read and delete a small object of a name of its own in a bucket."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        EndpointConnectionError,
        HTTPClientError,
    )

    bucket, _, prefix = access.location.removeprefix("s3://").partition("/")
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    where = {"Bucket": bucket, "Key": f"{prefix}promptkd-doctor-{uuid.uuid4().hex}"}
    place = f"'{access.location}'" + (f" at {access.endpoint}" if access.endpoint else "")
    try:
        refused = _refused_rights(_client(access), where)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _LOST:
            remedy = "make it, or correct the address"
            return wrong(subject, f"no bucket '{bucket}' for {place}", remedy)
        if code in _BAD_KEYS:
            found = f"{place} refuses the credentials ({code})"
            return wrong(subject, found, f"correct {access.keys}")
        found = f"{place} fails: {error.operation_name}, {code}"
        return wrong(subject, found, "see the server's log")
    except (EndpointConnectionError, HTTPClientError):
        remedy = "correct its server's address, or see why it is down"
        return wrong(subject, f"{place} does not answer", remedy)
    except (BotoCoreError, ValueError) as error:
        return wrong(subject, f"{place}: {error}", f"correct the address or {access.keys}")
    if not refused:
        return ok(subject, f"{place}: list, write, read and delete are allowed")
    stays = _DELETE in refused and _WRITE not in refused
    left = f"; '{where['Key']}' is left there" if stays else ""
    found = f"{place} does not allow to {', '.join(refused)}{left}"
    judged = warning if refused == [_DELETE] else wrong
    return judged(subject, found, "give these rights to the credentials' user")


def _refused_rights(client: Any, where: Mapping[str, str]) -> list[str]:
    """Return the rights that are missing; without writing, the others cannot be tried."""
    refused = []
    bucket, folder = where["Bucket"], where["Key"].rpartition("/")[0]
    if not _allowed(lambda: client.list_objects_v2(Bucket=bucket, Prefix=folder, MaxKeys=1)):
        refused.append(_LIST)
    if not _allowed(lambda: client.put_object(**where, Body=b"promptkd doctor")):
        return [*refused, _WRITE]
    if not _allowed(lambda: client.get_object(**where)["Body"].read()):
        refused.append(_READ)
    if not _allowed(lambda: client.delete_object(**where)):
        refused.append(_DELETE)
    return refused


def _allowed(call: Callable[[], object]) -> bool:
    from botocore.exceptions import ClientError

    try:
        call()
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("403", "AccessDenied"):
            return False
        raise
    return True


def _client(access: Access) -> Any:
    import boto3
    from botocore.config import Config

    session = boto3.Session(profile_name=access.profile, region_name=access.region)
    return session.client(
        "s3",
        endpoint_url=access.endpoint,
        aws_access_key_id=_plain(access.key_id),
        aws_secret_access_key=_plain(access.secret),
        aws_session_token=_plain(access.token),
        config=Config(
            connect_timeout=_SERVER_SECONDS,
            read_timeout=_SERVER_SECONDS,
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",  # as the mirror does
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if access.endpoint else {},
        ),
    )


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
