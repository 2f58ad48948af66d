"""Numbers about the service, for Prometheus."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pd_core.mlops.serving.model_manager import Keeper

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PICTURES = (1, 2, 4, 8, 16, 32, 64, 128)


class Telemetry:
    """Counts requests and batches, in a registry of its own."""

    def __init__(self) -> None:
        """Start at zero."""
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

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, size: int) -> None:
        """Count a batch."""
        self._batches.observe(size)

    def watch(self, waiting: Callable[[], int], keeper: Keeper) -> None:
        """Add what is looked up whenever it is asked for: the queue, the version, the monitor."""
        self._registry.register(_Present(waiting, keeper))

    def text(self) -> bytes:
        """Return all numbers, in Prometheus's format."""
        return generate_latest(self._registry)


class _Present:
    """Numbers of this moment."""

    def __init__(self, waiting: Callable[[], int], keeper: Keeper) -> None:
        self._waiting = waiting
        self._keeper = keeper

    def collect(self) -> Iterable[Metric]:
        served = self._keeper.current
        yield GaugeMetricFamily(
            "promptkd_waiting_pictures", "Pictures that wait for an answer.", self._waiting()
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
        """Surround an application.

        Args:
            app: what answers.
            telemetry: where to count.
            routes: the known paths; all others are counted as one.
        """
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
