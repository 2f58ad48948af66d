"""Settings from the environment: locations and credentials. Numbers are in ``params.yaml``.

Each field is an environment variable with the prefix ``PD_`` (``PD_DATA_ROOT``), or a line of the
same form in ``.env``. All are optional: by default everything is inside the project.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from base64 import b64encode
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pd_core.core.config import Device
from pd_core.core.errors import BadParams, PdError
from pd_core.pipeline.redaction import env_file, has_login

# Read by the tools themselves. MLflow requires the word, not 1.
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

REFUSED = (401, 403)
"""HTTP statuses for a missing or wrong password."""

_SQLITE = "sqlite:///"
_BUCKET = re.compile(r"s3://[\w.-]+(/.*)?")
_PAGE = re.compile(r"https?://[^\s/]+(/\S*)?")
_API_KEY = re.compile(r"[\w.~+/=-]{16,}", re.ASCII)  # what `Authorization: Bearer` may have
_S3_KEYS = "PD_S3_ACCESS_KEY_ID and PD_S3_SECRET_ACCESS_KEY are"


def _mirror(mirror: str) -> str:
    if not _BUCKET.fullmatch(mirror):
        raise ValueError("give s3://<bucket>/<prefix>")
    return mirror


def _without_login(address: str, variables: str = _S3_KEYS) -> str:
    if has_login(address):
        raise ValueError(f"leave name and password out; {variables} for them")
    return address


def expanded(path: str) -> str:
    """Return a path with `~` and variables such as `$HOME` replaced by their values."""
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 keeps the type


def _folder(path: Path) -> Path:
    return Path(expanded(str(path)))


def _tracking(address: str) -> str:
    if "://" not in address:
        return expanded(address)
    scheme, separator, path = address.partition(_SQLITE)
    return address if scheme else f"{separator}{expanded(path)}"  # a password may have a $


def _remote(address: str) -> str:
    address = expanded(address)
    if not _BUCKET.fullmatch(_without_login(address)) and not Path(address).is_absolute():
        raise ValueError("give s3://<bucket>/<prefix>, or a folder's whole path, from / on")
    return address


def _server(address: str) -> str:
    if not _PAGE.fullmatch(_without_login(address, "PREFECT_API_AUTH_STRING is")):
        raise ValueError("give an address like http://127.0.0.1:4200/api")
    return address


def _stripped(secret: SecretStr) -> SecretStr:
    # The line feed at the end of a secret's file would break every request.
    return SecretStr(secret.get_secret_value().strip())


Secret = Annotated[SecretStr, AfterValidator(_stripped)]


def _api_keys(secret: SecretStr) -> SecretStr:
    if not all(_API_KEY.fullmatch(key) for key in _split(secret)):
        raise ValueError(
            "give keys of at least 16 letters, digits or ._~+/=-, separated by commas; "
            "`openssl rand -hex 16` makes one"
        )
    return secret


def _split(secret: SecretStr) -> tuple[str, ...]:
    return tuple(key.strip() for key in secret.get_secret_value().split(","))


class Settings(BaseSettings):
    """Settings of the environment.

    Attributes:
        data_root: Directory with one folder per photo data set (default: the repository's
            `data/raw`).
        mlflow_tracking_uri: Tracking server or database (default: a local SQLite file).
        mlflow_experiment: Experiment of the runs.
        prefect_api_url: Prefect server (default: PREFECT_API_URL, or none).
        device: Device in place of ``run.device`` (``cpu``, ``cuda``, ``cuda:1``).
        dvc_remote: DVC remote that machines share, `s3://<bucket>/<prefix>` or a folder (default:
            DVC's own settings).
        mirror: Mirror of archives and weights, `s3://<bucket>/<prefix>` (default: none).
        s3_endpoint_url: S3 server of the mirror and the DVC remote (default: Amazon's).
        s3_access_key_id: Credential for both (default: found by boto3).
        s3_secret_access_key: Credential for both (default: found by boto3).
        serve_api_keys: Keys of `promptkd serve`, separated by commas (default: none is required).
    """

    model_config = SettingsConfigDict(
        env_prefix="PD_",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    data_root: Annotated[Path, AfterValidator(_folder)] | None = None
    mlflow_tracking_uri: Annotated[
        Annotated[str, AfterValidator(_tracking)] | None, Field(repr=False)
    ] = None  # may hold a password
    mlflow_experiment: Annotated[str, Field(min_length=1)] = "promptkd"
    prefect_api_url: Annotated[str, AfterValidator(_server)] | None = None
    device: Device | None = None
    dvc_remote: Annotated[str, AfterValidator(_remote)] | None = None
    mirror: Annotated[str, AfterValidator(_mirror)] | None = None
    s3_endpoint_url: Annotated[str, AfterValidator(_without_login)] | None = None
    s3_access_key_id: Secret | None = None
    s3_secret_access_key: Secret | None = None
    serve_api_keys: Annotated[SecretStr, AfterValidator(_api_keys)] | None = None

    @property
    def api_keys(self) -> tuple[str, ...]:
        """API keys of the service; empty if none is required."""
        return _split(self.serve_api_keys) if self.serve_api_keys is not None else ()


def load_settings() -> Settings:
    """Read the settings of the environment and, for those that it lacks, of `env_file`.

    A relative `PD_DATA_ROOT` starts at the folder that a command runs in, or that `.env` is in.

    Raises:
        BadParams: A variable has an invalid value; the message does not repeat secrets.
    """
    file = env_file()
    try:
        settings = Settings(_env_file=file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise BadParams(f"'{file}' cannot be read ({reason}); correct or remove it") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        variable = f"PD_{first['loc'][0]}".upper()
        raise BadParams(
            f"environment variable {variable}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
    set_here = {name.upper() for name, value in os.environ.items() if value}
    if settings.data_root is None or "PD_DATA_ROOT" in set_here:
        return settings
    return settings.model_copy(update={"data_root": file.parent / settings.data_root})


def variable_names() -> tuple[str, ...]:
    """Return the names of all settings' variables."""
    return tuple(f"PD_{field}".upper() for field in Settings.model_fields)


def telemetry_off() -> None:
    """Turn off the telemetry of DVC, MLflow and Prefect, unless the user has set it.

    Call it before mlflow or prefect is imported.
    """
    for variable, value in TELEMETRY_OFF.items():
        os.environ.setdefault(variable, value)


def compute_with(threads: int) -> None:
    """Set the number of threads of all numeric libraries, before torch and NumPy are imported.

    The number changes the last bits, so the environment must not decide it. Passive waiting leaves
    the cores to other processes while a single thread works.
    """
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_DYNAMIC"] = os.environ["MKL_DYNAMIC"] = "FALSE"


def status_of(address: str, *, seconds: float, login: str | None = None) -> int:
    """Return the HTTP status of an address.

    Args:
        address: Without name and password.
        seconds: Timeout.
        login: `<name>:<password>` for basic authentication, if any.

    Raises:
        PdError: No answer; the message is the reason.
    """
    try:
        request = urllib.request.Request(address)
        if login is not None:
            request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except InvalidURL:  # its text may have a part of a password
        raise PdError("the address is invalid") from None
    except (OSError, ValueError, HTTPException) as error:
        raise PdError(str(getattr(error, "reason", error))) from None
