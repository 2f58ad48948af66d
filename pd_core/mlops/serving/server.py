"""Server that completes pending requests before it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from pd_core.core.errors import BadParams

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 30


def listen(host: str, port: int) -> socket.socket:
    """Bind a port (0 for any free one); clients that connect wait for `run`.

    Raises:
        BadParams: the port is in use, or the address is not this machine's.
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
    """Return the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: ASGIApp, listening: socket.socket, *, drain_seconds: float) -> None:
    """Serve until SIGTERM or SIGINT; then finish open requests, for so many seconds at most."""
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
    """Uvicorn's server, which exits with status 0 after a signal."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals; unlike the original, do not raise them again at the end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
