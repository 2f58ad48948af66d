"""HTTP application: routes, their errors, and the upload page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from pd_core.mlops.serving import requests, schemas
from pd_core.mlops.serving.access import Access
from pd_core.mlops.serving.metrics import CONTENT_TYPE, Metrics, MetricsMiddleware
from pd_core.mlops.serving.model_manager import (
    ActiveModel,
    Batcher,
    ModelManager,
    Ranking,
    process_ended,
)
from pd_core.mlops.serving.requests import Capacity, Limits
from pd_core.mlops.serving.schemas import UPLOAD, Top, refusals

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

_TOP = 5
_FACTS = ("dataset", "profile", "protocol", "seed", "kind", "accuracy")  # tags of a version


class Service:
    """Parts of the service: active model, limits, capacity, metrics and batches."""

    def __init__(self, manager: ModelManager, limits: Limits) -> None:
        """Make the parts around a model manager."""
        self.manager, self.limits = manager, limits
        self.capacity = Capacity(limits)
        self.metrics = Metrics(self.capacity, manager)
        self.batcher = Batcher(limits, on_batch=self.metrics.batch)


def build(service: Service, *, poll: float, access: Access | None = None) -> FastAPI:
    """Make the application, which checks for another version every `poll` seconds."""
    access = access or Access()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        polling = asyncio.create_task(service.manager.poll(poll))
        yield
        polling.cancel()
        with suppress(asyncio.CancelledError):
            await polling

    app = FastAPI(
        title="PromptKD",
        summary="Classifies images with a registered student.",
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # function names of clients
        lifespan=lifespan,
    )
    app.include_router(_public(service))
    app.include_router(_predictions(service, access))
    app.include_router(_reports(service, access))
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(405, _other_method)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(HeadMiddleware)
    access.allow_origins(app)
    app.add_middleware(
        MetricsMiddleware,
        metrics=service.metrics,
        routes=["/", "/openapi.json", *app.openapi()["paths"]],
    )
    return app


def _predictions(service: Service, access: Access) -> APIRouter:
    """Make the routes that classify images."""
    manager, limits, capacity = service.manager, service.limits, service.capacity
    errors = refusals(*UPLOAD, *access.statuses())
    router = APIRouter(dependencies=access.dependencies(), responses=errors)

    @router.post("/predict", response_model=schemas.Predictions, openapi_extra=schemas.image_body())
    async def predict(request: Request, top: Top = _TOP) -> Response:
        """Classify one image: the body itself, or a form's field `file`."""
        with capacity.admit() as reservation:
            image = await requests.read_image(request, limits, reservation)
            (ranking,) = await service.batcher.classify(manager.current, [image])
        return JSONResponse(_model_of(ranking) | {"predictions": ranking.best(top)})

    @router.post(
        "/predict/batch",
        response_model=schemas.BatchPredictions,
        openapi_extra=schemas.images_body(limits),
    )
    async def predict_batch(request: Request, top: Top = _TOP) -> Response:
        """Classify images: a form's fields `files`, or JSON `{"images": [base64, ...]}`."""
        with capacity.admit() as reservation:
            images = await requests.read_images(request, limits, reservation)
            rankings = await service.batcher.classify(manager.current, images)
        best = [ranking.best(top) for ranking in rankings]
        return JSONResponse(_model_of(rankings[0]) | {"predictions": best})

    return router


def _reports(service: Service, access: Access) -> APIRouter:
    """Make the routes that describe the model and the received images."""
    manager = service.manager
    router = APIRouter(dependencies=access.dependencies(), responses=refusals(*access.statuses()))

    @router.get("/model")
    async def model() -> schemas.Model:
        """Describe the active version."""
        return _describe(manager.current, service.limits)

    @router.get("/metrics", response_class=Response, responses=schemas.TEXT)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(await asyncio.to_thread(service.metrics.text), media_type=CONTENT_TYPE)

    @router.get("/monitoring", response_model=schemas.DriftReport, responses=refusals(404))
    async def monitoring() -> Response:
        """Drift of the received images against the training images."""
        monitor = manager.current.monitor
        if monitor is None:
            raise HTTPException(404, "this version has no reference to compare with")
        return JSONResponse(await asyncio.to_thread(monitor.report))

    return router


def _public(service: Service) -> APIRouter:
    """Make the routes without restrictions: checks of the service, and the upload page."""
    router = APIRouter(responses=refusals())

    @router.get("/health")
    async def health() -> schemas.Status:
        """Liveness check."""
        return schemas.Status(status="alive")

    @router.get("/ready", responses=refusals(503))
    async def ready() -> schemas.Status:
        """Readiness check: 503 while the model's process is restarted."""
        if service.manager.current.worker.broken:
            raise process_ended()
        return schemas.Status(status="ready")

    @router.get("/", include_in_schema=False)
    async def upload_page() -> Response:
        """Upload page."""
        return HTMLResponse(TEXT, headers=HEADERS)

    return router


class HeadMiddleware:
    """ASGI middleware that handles HEAD like GET; the server sends no body then."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        head = scope["type"] == "http" and scope["method"] == "HEAD"
        await self._app({**scope, "method": "GET"} if head else scope, receive, send)


async def _disconnected(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _failed(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"detail": "the service failed; see its log"}, 500)


async def _invalid(_request: Request, error: Exception) -> Response:
    """Refuse a query parameter in one line, like all other errors."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    value = " ".join(str(first["input"])[:20].split())
    return JSONResponse({"detail": f"{first['loc'][-1]} = {value}: {first['msg']}"}, 400)


async def _other_method(request: Request, error: Exception) -> Response:
    """Name the methods of a path: in reply to OPTIONS, or to a method that is not one of them."""
    assert isinstance(error, HTTPException)
    methods = set((error.headers or {})["Allow"].split(", ")) | {"OPTIONS"}
    methods |= {"HEAD"} if "GET" in methods else set()
    headers = {"Allow": ", ".join(sorted(methods))}
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=headers)
    reason = f"{request.method[:20]} is not supported here; use {headers['Allow']}"
    return JSONResponse({"detail": reason}, 405, headers)


def _model_of(ranking: Ranking) -> dict[str, Any]:
    version = ranking.model.version
    return {"model": version.name, "version": version.number}


def _describe(model: ActiveModel, limits: Limits) -> schemas.Model:
    version, facts = model.version, model.worker.facts
    return schemas.Model(
        name=version.name,
        version=version.number,
        aliases=list(version.aliases),
        dataset=version.dataset,
        image_size=facts.image_size,
        clip=facts.info.get("model"),
        precision=facts.info.get("export", {}).get("precision", "fp32"),
        facts={key: version.tags[key] for key in _FACTS if key in version.tags},
        max_upload_bytes=limits.image_bytes,
        classes=list(facts.names),
    )
