"""HTTP application: routes, metrics, upload page, and a server that drains requests at its end."""

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
from pd_core.mlops.serving.model_manager import (
    ActiveModel,
    Batcher,
    ModelManager,
    Ranking,
    process_ended,
)
from pd_core.mlops.serving.requests import Capacity, Limits

TEXT = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _digest(element: str) -> str:
    """Return the hash of the page's only such element, for its Content-Security-Policy."""
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
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_TOP = 5
_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 30
_FACTS = ("dataset", "profile", "protocol", "seed", "kind", "accuracy")  # tags of a version


class Metrics:
    """Prometheus metrics of requests and batches, in a registry of their own."""

    def __init__(self, capacity: Capacity, manager: ModelManager) -> None:
        """Start at zero."""
        self._capacity = capacity
        self._manager = manager
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "promptkd_requests",
            "Requests by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "promptkd_request_seconds",
            "Duration of a request by route.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "promptkd_batch_pictures", "Images of a batch.", buckets=_BATCH_SIZES, registry=registry
        )
        registry.register(self)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, size: int) -> None:
        """Count a batch."""
        self._batches.observe(size)

    def text(self) -> bytes:
        """Return all metrics, in Prometheus's format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics that are read when they are scraped: queue, version, drift."""
        model = self._manager.current
        yield GaugeMetricFamily(
            "promptkd_waiting_pictures", "Images in the queue.", self._capacity.images
        )
        info = GaugeMetricFamily(
            "promptkd_model_info", "Active version.", labels=["name", "version"]
        )
        info.add_metric([model.version.name, str(model.version.number)], 1)
        yield info
        yield CounterMetricFamily(
            "promptkd_versions_taken_over",
            "Versions that took over since the start.",
            self._manager.replacements,
        )
        gauges = model.monitor.gauges() if model.monitor is not None else {}
        for name, value in gauges.items():
            if math.isfinite(value):
                yield GaugeMetricFamily(name, "See /monitoring.", value)


class MetricsMiddleware:
    """ASGI middleware that counts every request under its route."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Iterable[str]) -> None:
        """Wrap an application; all paths that are not in `routes` count as `other`."""
        self._app = app
        self._metrics = metrics
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.request(route, status, time.perf_counter() - start)


class Service:
    """Parts of the service: active model, limits, capacity, metrics and batches."""

    def __init__(self, manager: ModelManager, limits: Limits) -> None:
        """Make the parts around a model manager."""
        self.manager, self.limits = manager, limits
        self.capacity = Capacity(limits)
        self.metrics = Metrics(self.capacity, manager)
        self.batcher = Batcher(limits, on_batch=self.metrics.batch)


def build(service: Service, *, poll: float) -> FastAPI:
    """Make the application, which checks for another version every `poll` seconds."""
    manager, limits, capacity = service.manager, service.limits, service.capacity

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        polling = asyncio.create_task(manager.poll(poll))
        yield
        polling.cancel()
        with suppress(asyncio.CancelledError):
            await polling

    app = FastAPI(title="PromptKD", docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        """Classify one image: the body itself, or a form's field `file`."""
        top = _top(request)
        with capacity.admit() as reservation:
            image = await requests.read_image(request, limits, reservation)
            (ranking,) = await service.batcher.classify(manager.current, [image])
        return JSONResponse(_model_of(ranking) | {"predictions": ranking.best(top)})

    @app.post("/predict/batch")
    async def predict_batch(request: Request) -> Response:
        """Classify images: a form's fields `files`, or JSON `{"images": [base64, ...]}`."""
        top = _top(request)
        with capacity.admit() as reservation:
            images = await requests.read_images(request, limits, reservation)
            rankings = await service.batcher.classify(manager.current, images)
        best = [ranking.best(top) for ranking in rankings]
        return JSONResponse(_model_of(rankings[0]) | {"predictions": best})

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Liveness check."""
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Readiness check: 503 while the model's process is restarted."""
        if manager.current.worker.broken:
            raise process_ended()
        return {"status": "ready"}

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """Describe the active version."""
        return _describe(manager.current, limits)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(await asyncio.to_thread(service.metrics.text), media_type=CONTENT_TYPE)

    @app.get("/monitoring")
    async def monitoring() -> Response:
        """Drift of the received images against the training images."""
        monitor = manager.current.monitor
        if monitor is None:
            raise HTTPException(404, "this version has no reference to compare with")
        return JSONResponse(await asyncio.to_thread(monitor.report))

    @app.get("/", include_in_schema=False)
    async def upload_page() -> Response:
        """Upload page."""
        return HTMLResponse(TEXT, headers=HEADERS)

    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(
        MetricsMiddleware,
        metrics=service.metrics,
        routes=[getattr(route, "path", "") for route in app.routes],
    )
    return app


async def _disconnected(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _failed(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"detail": "the service failed; see its log"}, 500)


def _top(request: Request) -> int:
    text = request.query_params.get("top", str(_TOP))
    if not (text.isascii() and text.isdigit() and 0 < len(text) <= 6 and int(text) > 0):
        raise requests.bad_request(f"top = {text[:20]}; ask for at least one name")
    return int(text)


def _model_of(ranking: Ranking) -> dict[str, Any]:
    version = ranking.model.version
    return {"model": version.name, "version": version.number}


def _describe(model: ActiveModel, limits: Limits) -> dict[str, Any]:
    version, facts = model.version, model.worker.facts
    return {
        "name": version.name,
        "version": version.number,
        "aliases": list(version.aliases),
        "dataset": version.dataset,
        "image_size": facts.image_size,
        "clip": facts.info.get("model"),
        "facts": {key: version.tags[key] for key in _FACTS if key in version.tags},
        "max_upload_bytes": limits.image_bytes,
        "classes": list(facts.names),
    }


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
