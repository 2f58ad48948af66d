"""Which servers answer, and how the flows' commands say an error."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from http.client import HTTPException

from pd_core.core.errors import BadParams, PdError
from pd_core.pipeline.redaction import has_login, masked, without_login
from pd_core.pipeline.settings import load_settings

_SERVER_SECONDS = 5.0


def check_server(address: str | None) -> None:
    """Make sure that the Prefect server answers, if one is set.

    Raises:
        BadParams: the address holds a password, which Prefect would show.
        PdError: it does not answer.
    """
    if not address:
        return
    if has_login(address):
        raise BadParams(
            f"the Prefect server's address is '{masked(address)}', and Prefect shows it in its "
            "log; put name and password in PREFECT_API_AUTH_STRING, as <name>:<password>"
        )
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=_SERVER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):  # it is there and asks for a password, which Prefect will give
            return
        reason = f"it answers {error.code}"
    except (OSError, ValueError, HTTPException) as error:
        reason = str(getattr(error, "reason", error))
    raise PdError(
        f"no Prefect server answers at '{address}' ({reason}); start it with `python -m "
        f"flows.server`, correct PD_PREFECT_API_URL (or PREFECT_API_URL), or unset it to run "
        "without a server"
    )


def silent() -> list[str]:
    """Return which of the servers that stages need do not answer: MLflow's, S3."""
    settings = load_settings()
    used = (settings.mlflow_tracking_uri, settings.s3_endpoint_url)
    return [masked(one) for one in used if one and one.startswith("http") and not _answers(one)]


def refuse(message: str) -> int:
    """Say in one line on stderr what is wrong; secrets are masked.

    Returns:
        The exit status, 2.
    """
    sys.stderr.write(f"error: {masked(message)}\n")
    return 2


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(without_login(address), timeout=_SERVER_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code not in (502, 503, 504)  # of a proxy before a server that is not there
    except (OSError, ValueError, HTTPException):
        return False
