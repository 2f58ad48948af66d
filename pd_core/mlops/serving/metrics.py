"""Prometheus metrics of the service."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pd_core.mlops.serving.model_manager import ModelManager
from pd_core.mlops.serving.requests import Capacity

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


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
