"""The HTTP application: routes, metrics, upload page, a server that drains requests at its end."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pd_core.core.errors import BadParams
from pd_core.mlops.serving import requests
from pd_core.mlops.serving.model_manager import Engine, Keeper, Ranking, Served
from pd_core.mlops.serving.requests import Limits, Room

TEXT = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _digest(element: str) -> str:
    """Return the hash of what stands in the page's only such element, as the policy wants it."""
    code = TEXT.partition(f"<{element}>")[2].partition(f"</{element}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_digest('script')}; style-src {_digest('style')}; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PICTURES = (1, 2, 4, 8, 16, 32, 64, 128)
_TOP = 5
_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 30
_FACTS = ("dataset", "profile", "protocol", "seed", "kind", "accuracy")  # of a version's tags


class Telemetry:
    """Prometheus metrics of requests and batches, in a registry of their own."""

    def __init__(self, room: Room, keeper: Keeper) -> None:
        """Start at zero."""
        self._room = room
        self._keeper = keeper
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "promptkd_requests",
            "Requests, by route and status.",
            ["route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "promptkd_request_seconds",
            "Seconds from a request's first line to its answer, by route.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "promptkd_batch_pictures",
            "Pictures that went through the model together.",
            buckets=_PICTURES,
            registry=self._registry,
        )
        self._registry.register(self)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, size: int) -> None:
        """Count a batch."""
        self._batches.observe(size)

    def text(self) -> bytes:
        """Return all numbers, in Prometheus's format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Look up the queue, the version and its monitor, whenever the numbers are asked for."""
        served = self._keeper.current
        yield GaugeMetricFamily(
            "promptkd_waiting_pictures", "Pictures that wait for an answer.", self._room.pictures
        )
        info = GaugeMetricFamily(
            "promptkd_model_info", "The version that answers.", labels=["name", "version"]
        )
        info.add_metric([served.version.name, str(served.version.number)], 1)
        yield info
        yield CounterMetricFamily(
            "promptkd_versions_taken_over",
            "Versions that took over since the start.",
            self._keeper.taken_over,
        )
        gauges = served.monitor.gauges() if served.monitor is not None else {}
        for name, value in gauges.items():
            if math.isfinite(value):
                yield GaugeMetricFamily(name, "See /monitoring.", value)


class Counted:
    """ASGI middleware: every request is counted under its route, not its path."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, routes: Iterable[str]) -> None:
        """Surround an application; all paths but the known `routes` are counted as one."""
        self._app = app
        self._telemetry = telemetry
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._telemetry.answered(route, status, time.perf_counter() - begun)


class Service:
    """The parts of the service: active model, limits of requests, queue, metrics and batches."""

    def __init__(self, keeper: Keeper, limits: Limits) -> None:
        """Make the parts around a keeper."""
        self.keeper, self.limits = keeper, limits
        self.room = Room(limits)
        self.telemetry = Telemetry(self.room, keeper)
        self.engine = Engine(limits, on_batch=self.telemetry.batch)


def build(service: Service, *, poll: float) -> FastAPI:
    """Make the application, which looks for a newer version every `poll` seconds."""
    keeper, engine, room, limits = service.keeper, service.engine, service.room, service.limits

    @asynccontextmanager
    async def alive(_app: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(keeper.follow(poll))
        yield
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following

    app = FastAPI(title="PromptKD", docs_url=None, redoc_url=None, lifespan=alive)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        """Classify one picture: the body itself, or a form's field `file`."""
        top = _top(request)
        with room.hold() as held:
            picture = await requests.one_picture(request, limits, held)
            rankings = await engine.answer(keeper.current, [picture])
        return JSONResponse(_about(rankings[0]) | {"predictions": rankings[0].best(top)})

    @app.post("/predict/batch")
    async def predict_batch(request: Request) -> Response:
        """Classify many: a form's fields `files`, or JSON `{"images": [base64, ...]}`."""
        top = _top(request)
        with room.hold() as held:
            pictures = await requests.many_pictures(request, limits, held)
            rankings = await engine.answer(keeper.current, pictures)
        best = [ranking.best(top) for ranking in rankings]
        return JSONResponse(_about(rankings[0]) | {"predictions": best})

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the service is alive."""
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Say whether predictions can be asked for."""
        if keeper.current.worker.broken:
            raise requests.gone()
        return {"status": "ready"}

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """Describe the version that answers."""
        return _described(keeper.current, limits)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return numbers for Prometheus."""
        return Response(await asyncio.to_thread(service.telemetry.text), media_type=CONTENT_TYPE)

    @app.get("/monitoring")
    async def monitoring() -> Response:
        """Compare what is asked for with the training pictures."""
        monitor = keeper.current.monitor
        if monitor is None:
            raise HTTPException(404, "this version has no reference to compare with")
        return JSONResponse(await asyncio.to_thread(monitor.report))

    @app.get("/", include_in_schema=False)
    async def upload_page() -> Response:
        """Return the upload page."""
        return HTMLResponse(TEXT, headers=HEADERS)

    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _broken)
    app.add_middleware(
        Counted,
        telemetry=service.telemetry,
        routes=[getattr(route, "path", "") for route in app.routes],
    )
    return app


def _top(request: Request) -> int:
    given = request.query_params.get("top", str(_TOP))
    if not (given.isascii() and given.isdigit() and 0 < len(given) <= 6 and int(given) > 0):
        raise requests.bad(f"top = {given[:20]}; ask for at least one name")
    return int(given)


def _about(ranking: Ranking) -> dict[str, Any]:
    version = ranking.served.version
    return {"model": version.name, "version": version.number}


def _described(served: Served, limits: Limits) -> dict[str, Any]:
    version, facts = served.version, served.worker.facts
    return {
        "name": version.name,
        "version": version.number,
        "aliases": list(version.aliases),
        "dataset": version.dataset,
        "image_size": facts.image_size,
        "clip": facts.info.get("model"),
        "facts": {key: version.tags[key] for key in _FACTS if key in version.tags},
        "max_upload_bytes": limits.picture_bytes,
        "classes": list(facts.names),
    }


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)


async def _gone(_request: Request, _error: Exception) -> Response:
    """Answer a client that hung up; nobody reads it."""
    return Response(status_code=400)


async def _broken(_request: Request, _error: Exception) -> Response:
    """Hide from the client what went wrong; the log has it."""
    return JSONResponse({"detail": "the service failed; its log says why"}, 500)


def listen(host: str, port: int) -> socket.socket:
    """Take a port (0 for any free one); clients may connect from now on, and wait for `run`.

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
    """Serve until SIGTERM or SIGINT; then answer what has come, for so many seconds at most."""
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
