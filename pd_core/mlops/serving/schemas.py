"""OpenAPI description of the service: bodies, responses and errors.

Bodies are read by `requests`, within limits; here they are described only.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from pd_core.mlops.serving.requests import Limits

_BINARY = {"type": "string", "format": "binary", "minLength": 1}
_BASE64 = {"type": "string", "format": "byte", "minLength": 1, "description": "Or a data URL."}
_REFUSALS = {
    400: "The request or an image cannot be read.",
    401: "An API key is missing or unknown.",
    404: "The version has no reference.",
    408: "The upload did not arrive in time.",
    413: "The upload is too large.",
    415: "The content type or encoding is not supported.",
    429: "The client sends too many requests.",
    503: "Too many images are waiting, or the model is restarted.",
    504: "The classification took too long.",
}
_RETRY = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
_WITH_RETRY = (429, 503, 504)
UPLOAD = (400, 408, 413, 415, 503, 504)
"""Statuses of refused uploads."""

TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
}

Top = Annotated[
    int, Query(ge=1, le=999_999, description="Number of classes, from the most probable on.")
]


class Prediction(BaseModel):
    """A class and its probability."""

    name: str
    probability: float = Field(ge=0, le=1)


class _OfModel(BaseModel):
    model: str = Field(description="Name of the registered model.")
    version: int


class Predictions(_OfModel):
    """Classes of an image, by descending probability."""

    predictions: list[Prediction]


class BatchPredictions(_OfModel):
    """Classes of each image, in the order of the request."""

    predictions: list[list[Prediction]]


class Status(BaseModel):
    """State of the service."""

    status: Literal["alive", "ready"]


class Model(BaseModel):
    """The active version."""

    name: str
    version: int
    aliases: list[str]
    dataset: str
    image_size: int
    clip: str | None = Field(description="Model of open_clip.")
    precision: str = Field(description="Precision of the weights: fp32 or int8.")
    facts: dict[str, str] = Field(description="Tags of the version.")
    max_upload_bytes: int
    classes: list[str]


class Window(BaseModel):
    """Images that are compared with the training images."""

    size: int
    pictures: int
    different: int


class ClassShare(BaseModel):
    """Predictions of a class: their total, and their share in the window and the reference."""

    name: str
    total: int
    window: float
    reference: float


class Summary(BaseModel):
    """Distribution of the confidence."""

    mean: float
    quantiles: dict[str, float]


class Confidence(BaseModel):
    """Confidence in the window (null if it is empty) and in the reference."""

    window: Summary | None
    reference: Summary


class DriftTest(BaseModel):
    """Statistical test; null if there are too few images."""

    distance: float | None
    p: float | None


class Drift(BaseModel):
    """Tests of drift, and the verdict at a rate of false alarms."""

    verdict: Literal["too few", "same", "drifted"]
    level: float
    fewest: int
    tests: dict[str, DriftTest]


class DriftReport(BaseModel):
    """Drift of the received images against the training images."""

    pictures: int
    window: Window
    classes: list[ClassShare]
    confidence: Confidence
    drift: Drift


class Problem(BaseModel):
    """Reason of a refusal."""

    detail: str


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the errors of a route."""
    return {
        status: {"model": Problem, "description": _REFUSALS[status]}
        | ({"headers": _RETRY} if status in _WITH_RETRY else {})
        for status in statuses
    } | {"default": {"model": Problem, "description": "The request is refused, or failed."}}


def image_body() -> dict[str, Any]:
    """Describe the body of a request with one image."""
    form = {"type": "object", "properties": {"file": _BINARY}, "required": ["file"]}
    return _body(
        {"multipart/form-data": form, "application/octet-stream": _BINARY, "image/*": _BINARY}
    )


def images_body(limits: Limits) -> dict[str, Any]:
    """Describe the body of a request with several images."""
    return _body(
        {
            "multipart/form-data": _list_in("files", _BINARY, limits.images),
            "application/json": _list_in("images", _BASE64, limits.images),
        }
    )


def _list_in(name: str, items: dict[str, Any], length: int) -> dict[str, Any]:
    images = {"type": "array", "items": items, "minItems": 1, "maxItems": length}
    return {"type": "object", "properties": {name: images}, "required": [name]}


def _body(schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}
