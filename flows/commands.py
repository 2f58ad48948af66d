"""Parts that the flows' commands share: exit status, server checks, names of data sets."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import yaml
from prefect import State
from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from pd_core.core.errors import BadParams, PdError, unknown
from pd_core.pipeline.redaction import has_login, masked, masked_tracebacks, without_login
from pd_core.pipeline.settings import REFUSED, load_settings, status_of
from pd_core.pipeline.stages.params import PARAMS

CLONE = "PROMPTKD_CLONE"
"""Variable with the folder of an agent's flow run, which starts elsewhere."""

ROOT, PAPER = Path(), Path("paper")
"""Folders of the profiles' `params.yaml`, from the project's root."""

_TIMEOUT_SECONDS = 5.0
_PROXY_ERRORS = (502, 503, 504)  # statuses of a proxy whose server is down

Main = Callable[[Sequence[str] | None], State[Any] | int | None]


def command(main: Main) -> Callable[..., int]:
    """Decorate a command's function, so that it returns an exit status.

    Args:
        main: takes the arguments (None for `sys.argv`'s); returns a flow's state, or a status.

    Returns:
        The function, which returns 0, or 2 after one line on stderr.
    """

    @wraps(main)
    @masked_tracebacks()
    def wrapper(arguments: Sequence[str] | None = None) -> int:
        try:
            result = main(arguments)
        except PdError as error:
            return _refuse(str(error))
        if isinstance(result, State) and not result.is_completed():
            return _refuse(str(result.message))
        return result if isinstance(result, int) else 0

    return wrapper


def _refuse(message: str) -> int:
    sys.stderr.write(f"error: {masked(message)}\n")
    return 2


def check_server(address: str | None) -> None:
    """Check that the Prefect server responds, if one is set.

    Raises:
        BadParams: the address contains a password, which Prefect would show.
        PdError: no response.
    """
    if not address:
        return
    if has_login(address):
        raise BadParams(
            f"the Prefect server's address is '{masked(address)}', and Prefect shows it in its "
            "log; put name and password in PREFECT_API_AUTH_STRING, as <name>:<password>"
        )
    try:
        status = status_of(f"{address.rstrip('/')}/health", seconds=_TIMEOUT_SECONDS)
        if status < 300 or status in REFUSED:  # Prefect will give the password
            return
        reason = f"status {status}"
    except PdError as error:
        reason = str(error)
    raise PdError(
        f"no Prefect server answers at '{address}' ({reason}); start it with `python -m "
        f"flows.server`, correct PD_PREFECT_API_URL (or PREFECT_API_URL), or unset it to run "
        "without a server"
    )


def unreachable() -> list[str]:
    """Return the addresses of the stages' servers, MLflow and S3, that do not respond."""
    settings = load_settings()
    addresses = (settings.mlflow_tracking_uri, settings.s3_endpoint_url)
    return [masked(uri) for uri in addresses if uri and uri.startswith("http") and _is_down(uri)]


def _is_down(address: str) -> bool:
    try:
        return status_of(without_login(address), seconds=_TIMEOUT_SECONDS) in _PROXY_ERRORS
    except PdError:
        return True


def read_profiles(root: Path, profiles: Sequence[Path] = (ROOT, PAPER)) -> dict[str, Path]:
    """Return the folder of each data set's profile, relative to the project's root.

    Empty if a file cannot be read: the code that needs its parameters reports why.
    """
    folders: dict[str, Path] = {}
    try:
        for profile in profiles:
            if not (root / profile / PARAMS).is_file():
                continue
            content = yaml.safe_load((root / profile / PARAMS).read_text(encoding="utf-8"))
            for name in content["datasets"]:
                folders.setdefault(str(name), profile)
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return {}
    return folders


@dataclass(frozen=True)
class Names:
    """Annotation of a flow's parameter, for which a Prefect server accepts data sets only.

    Their names are read when the schema is made. Without names any is accepted, as for profiles
    elsewhere; the flows check it again.

    Attributes:
        profiles: folders of the profiles, relative to the project's root.
    """

    profiles: Sequence[Path] = (ROOT, PAPER)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Add the names to the schema of a text."""
        names = list(read_profiles(PROJECT, self.profiles))
        return handler(schema) | ({"enum": names} if names else {})


def _project() -> Path:
    """Return the clone of this process's agent, the folder of its worker, or the current one.

    A worker of `prefect worker start` runs flows in a temporary folder.
    """
    by_worker = "PREFECT__FLOW_RUN_ID" in os.environ
    here = os.environ.get("PWD", ".") if by_worker else "."
    return Path(os.environ.get(CLONE) or here)


PROJECT = _project()
"""Folder of this process's profiles."""
PROFILE_OF = read_profiles(PROJECT)

DataSet = Annotated[str, Names()]
"""Type of a parameter for a data set of any profile."""
RootDataSet = Annotated[str, Names((ROOT,))]
"""Type of a parameter for a data set of the profile in the project's root."""
PaperDataSet = Annotated[str, Names((PAPER,))]
"""Type of a parameter for a data set of the profile `paper`."""


def check_name(name: str) -> None:
    """Refuse an unknown data set before Prefect does, with a guess.

    Raises:
        UnknownName: no profile has the data set.
    """
    if PROFILE_OF and name not in PROFILE_OF:
        raise unknown("data set", name, PROFILE_OF)


def profile_of(name: str) -> Path:
    """Return the folder of a data set's profile: the current one, or one below it."""
    folder = PROFILE_OF.get(name, Path())
    return folder if (folder / PARAMS).is_file() else Path()
