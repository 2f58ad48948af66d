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
from pd_core.mlops.serving import app as server
from pd_core.mlops.serving import app as service
from pd_core.mlops.serving import requests, worker
from pd_core.mlops.serving.model_manager import Keeper, Served
from pd_core.mlops.serving.requests import Limits
from pd_core.mlops.serving.worker import Judged, Power, Worker
from pd_core.pipeline.settings import compute_with

VERSION = Version("promptkd-load", 1, {}, (), 0.0)
_PATIENT = Limits(answer_seconds=300)  # a large student takes seconds for those who wait


class Decoding:
    """Worker that decodes images only."""

    def __init__(self, real: Worker) -> None:
        self._real = real
        self.facts = real.facts

    async def judge(self, pictures: Sequence[bytes]) -> Judged:
        return await self._real.call(decode, pictures)


def decode(pictures: Sequence[bytes]) -> Judged:
    reasons, crops = worker.decoded(pictures)
    nothing = np.zeros((len(crops), 0), np.float32)
    return Judged(reasons, nothing, nothing)


def main(model: str) -> None:
    cores = os.cpu_count() or 1
    compute_with(cores)
    served = Served(VERSION, Worker(partial(students.student, model), Power(cores=cores)))
    keeper = Keeper(served, find=lambda: VERSION, load=lambda _: served)
    parts = service.Service(keeper, _PATIENT)
    app = service.build(parts, poll=5)
    decoding: Any = replace(served, worker=Decoding(served.worker))  # type: ignore[arg-type]

    @app.post("/decode")
    async def decode(request: Request) -> Response:
        with parts.room.hold() as held:
            picture = await requests.one_picture(request, parts.limits, held)
            await parts.engine.answer(decoding, [picture])
        return JSONResponse({})

    listening = server.listen("127.0.0.1", 0)
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    server.run(app, listening, drain_seconds=30)


if __name__ == "__main__":
    main(sys.argv[1])
