"""Checks of the servers for records: MLflow and Prefect."""

from __future__ import annotations

import base64
import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from pd_core import tracking
from pd_core.doctor import Finding, Mark
from pd_core.doctor.machine import existing
from pd_core.errors import PdError
from pd_core.masking import has_login, without_login

_SECONDS = 5.0
_SQLITE = "sqlite:///"
_REFUSED = (401, 403)
_PREFECT = "PD_PREFECT_API_URL (or PREFECT_API_URL)"


def mlflow(
    project: Path, uri: str | None, *, user: str | None = None, password: SecretStr | None = None
) -> Iterator[Finding]:
    """See whether runs can be recorded; a local database is not created.

    Args:
        project: Folder of the local database, if `uri` names none.
        uri: A tracking server or database; None for the local one.
        user: What MLflow will give a server that asks, if the address has none.
        password: Likewise.

    Raises:
        PdError: Nothing answers at the address.
    """
    if not uri or uri.startswith(_SQLITE):
        path = Path(uri.removeprefix(_SQLITE)) if uri else project / tracking.DATABASE
        yield _local_database(path.resolve())
        return
    tracking.open_store(project, uri)
    if not uri.startswith("http"):
        yield Finding("MLflow", Mark.OK, f"the database at '{uri}' answers")
        return
    parts = urlsplit(uri)
    if parts.username is not None:
        user, password = unquote(parts.username), SecretStr(unquote(parts.password or ""))
    search = f"{without_login(uri).rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1"
    if get(search, user=user, password=password) not in _REFUSED:
        yield Finding("MLflow", Mark.OK, f"the server at '{uri}' answers")
    elif user is None:
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        yield Finding("MLflow", Mark.WRONG, f"the server at '{uri}' asks for a password", remedy)
    else:
        remedy = "correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        yield Finding("MLflow", Mark.WRONG, f"the server at '{uri}' refuses the password", remedy)


def prefect(address: str | None) -> Iterator[Finding]:
    """See whether the Prefect server answers, if one is set.

    Args:
        address: PD_PREFECT_API_URL, or Prefect's own PREFECT_API_URL.
    """
    if not address:
        yield Finding("Prefect", Mark.OK, "no server set: flows run without one")
        return
    if has_login(address):
        remedy = "put name and password in PREFECT_API_AUTH_STRING, as <name>:<password>"
        yield Finding("Prefect", Mark.WRONG, f"'{address}' holds a password", remedy)
        return
    try:
        status = get(f"{address.rstrip('/')}/health")
    except PdError as error:
        remedy = f"start it by `prefect server start`, or correct or unset {_PREFECT}"
        yield Finding("Prefect", Mark.WRONG, f"no server at '{address}' ({error})", remedy)
        return
    if status == 200:
        yield Finding("Prefect", Mark.OK, f"the server at '{address}' answers")
    elif status in _REFUSED:
        yield Finding("Prefect", Mark.OK, f"the server at '{address}' answers, asks for a password")
    else:
        remedy = f"correct {_PREFECT}: it ends with /api"
        yield Finding("Prefect", Mark.WRONG, f"'{address}' answers {status}", remedy)


def get(address: str, *, user: str | None = None, password: SecretStr | None = None) -> int:
    """Ask a server for a page.

    Args:
        address: Without name and password.
        user: Name to give, if any.
        password: To give with it.

    Returns:
        The status that it answers.

    Raises:
        PdError: It does not answer, in words.
    """
    try:
        request = urllib.request.Request(address)
        if user is not None:
            login = f"{user}:{password.get_secret_value() if password else ''}"
            request.add_header("Authorization", f"Basic {_base64(login)}")
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (OSError, ValueError, HTTPException) as error:
        raise PdError(str(getattr(error, "reason", error))) from None


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _local_database(path: Path) -> Finding:
    folder = existing(path.parent)
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        remedy = "make it writable, or set PD_MLFLOW_TRACKING_URI"
        return Finding("MLflow", Mark.WRONG, f"'{path}' cannot be written", remedy)
    if not path.exists():
        return Finding("MLflow", Mark.OK, f"the first stage will make '{path}'")
    try:
        with closing(
            sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_SECONDS)
        ) as database:
            (runs,) = database.execute("SELECT COUNT(*) FROM runs").fetchone()
    except sqlite3.Error as error:
        remedy = "move the file away: the next stage makes a new one"
        return Finding("MLflow", Mark.WRONG, f"'{path}' is no database of MLflow ({error})", remedy)
    return Finding("MLflow", Mark.OK, f"'{path}', {runs} runs")
