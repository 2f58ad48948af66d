"""What the flows' commands share: is the Prefect server there, and how an error is said."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from http.client import HTTPException

from pd_core.errors import BadParams, PdError
from pd_core.masking import has_login, masked

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
        f"no Prefect server answers at '{address}' ({reason}); start it with `prefect server "
        f"start`, correct PD_PREFECT_API_URL (or PREFECT_API_URL), or unset it to run without a "
        "server"
    )


def refuse(message: str) -> int:
    """Say in one line on stderr what is wrong; secrets are masked.

    Returns:
        The exit status, 2.
    """
    sys.stderr.write(f"error: {masked(message)}\n")
    return 2
