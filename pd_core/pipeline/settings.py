"""The environment: where things are and who may get at them. Numbers are in ``params.yaml``.

Each field is an environment variable with the prefix ``PD_`` (``PD_DATA_ROOT``), or a line of the
same form in a file ``.env``. None is needed: everything is inside the project by default.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from base64 import b64encode
from http.client import HTTPException
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pd_core.core.config import Device
from pd_core.core.errors import BadParams, PdError
from pd_core.pipeline.redaction import ENV_FILE, has_login

# Read by the tools themselves. MLflow understands the word, not 1.
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

REFUSED = (401, 403)
"""Statuses by which a server asks for a password, or refuses one."""

_BUCKET = re.compile(r"s3://[\w.-]+(/.*)?")
_PAGE = re.compile(r"https?://[^\s/]+(/\S*)?")
_S3_KEYS = "PD_S3_ACCESS_KEY_ID and PD_S3_SECRET_ACCESS_KEY are"


def _location(mirror: str) -> str:
    if not _BUCKET.fullmatch(mirror):
        raise ValueError("give s3://<bucket>/<prefix>")
    return mirror


def _bare(address: str, place: str = _S3_KEYS) -> str:
    if has_login(address):
        raise ValueError(f"leave name and password out; {place} for them")
    return address


def _remote(address: str) -> str:
    if not _BUCKET.fullmatch(_bare(address)) and not Path(address).is_absolute():
        raise ValueError("give s3://<bucket>/<prefix>, or a folder's whole path, from / on")
    return address


def _server(address: str) -> str:
    if not _PAGE.fullmatch(_bare(address, "PREFECT_API_AUTH_STRING is")):
        raise ValueError("give an address like http://127.0.0.1:4200/api")
    return address


def _stripped(secret: SecretStr) -> SecretStr:
    # A line feed, as files of secrets end, would break every request, and appear in the error.
    return SecretStr(secret.get_secret_value().strip())


Secret = Annotated[SecretStr, AfterValidator(_stripped)]


class Settings(BaseSettings):
    """What the environment decides.

    Attributes:
        data_root: Folder that holds the photo data sets, one folder each; None for the
            repository's `data/raw`.
        mlflow_tracking_uri: Tracking server or database; None for a local SQLite file.
        mlflow_experiment: Experiment that runs are written to.
        prefect_api_url: Prefect server; None for Prefect's own PREFECT_API_URL, or no server.
        device: Device in place of ``run.device`` (``cpu``, ``cuda``, ``cuda:1``).
        dvc_remote: Where DVC keeps copies of outputs for other machines, `s3://<bucket>/<prefix>`
            or a folder that all of them see; None for what DVC's own settings say.
        mirror: Where archives and weights are mirrored, `s3://<bucket>/<prefix>`; None if nowhere.
        s3_endpoint_url: S3 server of the mirror and of DVC's remote; None for Amazon's.
        s3_access_key_id: Credential for both; None to let boto3 look for its own.
        s3_secret_access_key: Credential for both; None to let boto3 look for its own.
    """

    model_config = SettingsConfigDict(
        env_prefix="PD_",
        env_file=ENV_FILE,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    data_root: Path | None = None
    mlflow_tracking_uri: Annotated[str | None, Field(repr=False)] = None  # may hold a password
    mlflow_experiment: Annotated[str, Field(min_length=1)] = "promptkd"
    prefect_api_url: Annotated[str, AfterValidator(_server)] | None = None
    device: Device | None = None
    dvc_remote: Annotated[str, AfterValidator(_remote)] | None = None
    mirror: Annotated[str, AfterValidator(_location)] | None = None
    s3_endpoint_url: Annotated[str, AfterValidator(_bare)] | None = None
    s3_access_key_id: Secret | None = None
    s3_secret_access_key: Secret | None = None


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        BadParams: A variable has a value that cannot be; secrets are not repeated.
    """
    try:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise BadParams(f"'{ENV_FILE}' cannot be read ({reason}); mend or remove it") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        variable = f"PD_{first['loc'][0]}".upper()
        raise BadParams(
            f"environment variable {variable}: {first['msg'].removeprefix('Value error, ')}"
        ) from None


def variable_names() -> tuple[str, ...]:
    """Names of all variables that are read."""
    return tuple(f"PD_{field}".upper() for field in Settings.model_fields)


def telemetry_off() -> None:
    """Keep the tools from reporting to their makers, unless the user said otherwise.

    Call it before mlflow or prefect is imported.
    """
    for variable, value in TELEMETRY_OFF.items():
        os.environ.setdefault(variable, value)


def compute_with(threads: int) -> None:
    """Fix the threads of every numeric library, before torch and NumPy are imported.

    Their number changes the last bits, so the environment must not decide it. Passive waiting
    leaves the cores to others while one thread works.
    """
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_DYNAMIC"] = os.environ["MKL_DYNAMIC"] = "FALSE"


def status_of(address: str, *, seconds: float, login: str | None = None) -> int:
    """Ask one of the servers for an address; return the status that it answers with.

    Args:
        address: Without name and password.
        seconds: Time after which it is given up.
        login: `<name>:<password>` for basic authentication, if any.

    Raises:
        PdError: It does not answer, in words.
    """
    try:
        request = urllib.request.Request(address)
        if login is not None:
            request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (OSError, ValueError, HTTPException) as error:
        raise PdError(str(getattr(error, "reason", error))) from None
