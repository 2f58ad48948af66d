"""Commands of the flows: how each ends, and which servers have to answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from prefect import State

from pd_core.core.errors import BadParams, PdError
from pd_core.pipeline.redaction import has_login, masked, masked_tracebacks, without_login
from pd_core.pipeline.settings import REFUSED, load_settings, status_of

_SERVER_SECONDS = 5.0
_PROXY = (502, 503, 504)  # statuses of a proxy before a server that is not there

Work = Callable[[Sequence[str] | None], State[Any] | int | None]


def command(work: Work) -> Callable[..., int]:
    """Turn a command's function into one that returns an exit status.

    Args:
        work: takes the arguments, `sys.argv`'s if None; returns a flow's state, or a status.

    Returns:
        The same, which returns 0, or 2 after one line on stderr.
    """

    @wraps(work)
    @masked_tracebacks()
    def main(arguments: Sequence[str] | None = None) -> int:
        try:
            ended = work(arguments)
        except PdError as error:
            return refuse(str(error))
        if isinstance(ended, State) and not ended.is_completed():
            return refuse(str(ended.message))
        return ended if isinstance(ended, int) else 0

    return main


def refuse(message: str) -> int:
    """Say in one line on stderr what is wrong, without secrets; return the exit status, 2."""
    sys.stderr.write(f"error: {masked(message)}\n")
    return 2


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
        status = status_of(f"{address.rstrip('/')}/health", seconds=_SERVER_SECONDS)
        if status < 300 or status in REFUSED:  # it asks for a password, which Prefect will give
            return
        reason = f"it answers {status}"
    except PdError as error:
        reason = str(error)
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


def _answers(address: str) -> bool:
    try:
        return status_of(without_login(address), seconds=_SERVER_SECONDS) not in _PROXY
    except PdError:
        return False
