"""Server of a student with a further route, `/decode`, which decodes only.

`python -m benchmarks.load.service MODEL` prints its port.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from fastapi import Request, Response
from fastapi.responses import JSONResponse

from benchmarks.load import students
from pd_core.mlops.registry import Version
from pd_core.mlops.serving import app as application
from pd_core.mlops.serving import requests, server, worker
from pd_core.mlops.serving.model_manager import ActiveModel, ModelManager
from pd_core.mlops.serving.requests import Limits
from pd_core.mlops.serving.worker import Predictions, Resources, Worker
from pd_core.pipeline.settings import compute_with

VERSION = Version("promptkd-load", 1, {}, (), 0.0)
_PATIENT = Limits(answer_seconds=300)  # a large student takes seconds for those who wait


class Decoding:
    """Worker that decodes images only."""

    def __init__(self, real: Worker) -> None:
        self._real = real
        self.facts = real.facts

    async def predict(self, images: Sequence[bytes]) -> Predictions:
        return await self._real.call(decode, images)


def decode(images: Sequence[bytes]) -> Predictions:
    reasons, crops = worker.decode(images)
    nothing = np.zeros((len(crops), 0), np.float32)
    return Predictions(reasons, nothing, nothing)


def main(model: str) -> None:
    cores = os.cpu_count() or 1
    compute_with(cores)
    active = ActiveModel(VERSION, Worker(partial(students.student, model), Resources(cores=cores)))
    manager = ModelManager(active, find=lambda: VERSION, load=lambda _: active)
    parts = application.Service(manager, _PATIENT)
    app = application.build(parts, poll=5)
    decoding: Any = replace(active, worker=Decoding(active.worker))  # type: ignore[arg-type]

    @app.post("/decode")
    async def decode(request: Request) -> Response:
        with parts.capacity.admit() as reservation:
            image = await requests.read_image(request, parts.limits, reservation)
            await parts.batcher.classify(decoding, [image])
        return JSONResponse({})

    listening = server.listen("127.0.0.1", 0)
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    server.run(app, listening, drain_seconds=30)


if __name__ == "__main__":
    main(sys.argv[1])
