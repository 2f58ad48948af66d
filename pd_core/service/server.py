"""Listening, and ending without dropping a request."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from pd_core.errors import BadParams

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 30


def listen(host: str, port: int) -> socket.socket:
    """Take a port; clients may connect from now on, and wait for `run`.

    Args:
        host: name or address of this machine.
        port: 0 for any free one.

    Raises:
        BadParams: the port is taken, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadParams(
            f"cannot listen at {host}:{port} ({reason}); give another --port, or 0 for a free one"
        ) from None


def address(listening: socket.socket) -> str:
    """Return the URL of what listens."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: ASGIApp, listening: socket.socket, *, drain_seconds: float) -> None:
    """Serve until SIGTERM or SIGINT; then answer what has come, and return.

    Args:
        app: what answers.
        listening: from `listen`.
        drain_seconds: most that requests may take to their end.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=round(drain_seconds) + 1,
    )
    asyncio.run(_Server(config).serve([listening]))


class _Server(uvicorn.Server):
    """Uvicorn's server, for which a signal to end is no failure."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Note the signals; unlike the original, do not raise them again at the end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
