"""The application around a fake model that is slow, busy or broken."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import httpx
import numpy as np

from pd_core.mlops.registry import Version
from pd_core.mlops.serving import app as service
from pd_core.mlops.serving.access import Access
from pd_core.mlops.serving.model_manager import ActiveModel, ModelManager
from pd_core.mlops.serving.requests import Limits
from pd_core.mlops.serving.worker import Predictions, StudentInfo

Client = httpx.AsyncClient


class Model:
    """Fake worker that predicts "first" for everything, after a while, or fails."""

    def __init__(self, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.facts = StudentInfo(("first", "second"), 8, {})
        self.broken = False
        self.batches: list[int] = []
        self._seconds, self._error = seconds, error

    async def predict(self, images: Sequence[bytes]) -> Predictions:
        self.batches.append(len(images))
        await asyncio.sleep(self._seconds)
        if self._error:
            raise self._error
        rows = np.tile(np.array([[0.75, 0.25]], np.float32), (len(images), 1))
        return Predictions(("",) * len(images), rows, rows)


def version(number: int = 1, *aliases: str) -> Version:
    return Version("promptkd-greek", number, {}, aliases, 0.0)


def active(model: Model, number: int = 1) -> ActiveModel:
    worker: Any = model
    return ActiveModel(version(number), worker)


def run(
    model: Model,
    do: Callable[[Client], Coroutine[Any, Any, Any]],
    limits: Limits | None = None,
    access: Access | None = None,
) -> Any:
    """Build the application and call a function with a client of it."""
    manager = ModelManager(active(model), find=version, load=lambda _: active(model))
    app = service.build(service.Service(manager, limits or Limits()), poll=60, access=access)

    async def within_loop() -> Any:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with Client(transport=transport, base_url="http://service") as client:
            return await do(client)

    return asyncio.run(within_loop())
