"""The service of a student, as a process, with one more route: it decodes and does nothing else."""

from __future__ import annotations
import sys, os
from functools import partial
from pd_core.settings import compute_with

compute_with(os.cpu_count() or 1)
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from load import students
from pd_core.registry.store import Version
from pd_core.service import app as service, champion, server, uploads
from pd_core.service.keeper import Keeper
from pd_core.service.limits import Limits
from pd_core.service.served import Served


def main(which: str, folder: str) -> None:
    student = students.large() if which == "large" else students.embedded(folder)
    version = Version("promptkd-x", 1, {}, (), 0.0)
    limits = Limits(answer_seconds=300)
    keeper = Keeper(Served(version, student), find=lambda: version, load=lambda _: keeper.current)
    parts = service.Service.of(
        keeper,
        limits,
        prepare=partial(
            champion.warm_up, student, int(os.environ.get("THREADS", "0")), os.cpu_count()
        ),
    )
    app = service.build(parts, poll=5)

    @app.post("/decode")
    async def decode(request: Request) -> Response:
        with parts.room.hold() as held:
            picture = await uploads.one_picture(request, limits, held)
            await parts.engine.decode(keeper.current, [picture])
        return JSONResponse({})

    if w := os.environ.get("SWITCH"):
        sys.setswitchinterval(float(w))
    sock = server.listen("127.0.0.1", 0)
    print(sock.getsockname()[1], flush=True)
    server.run(app, sock, drain_seconds=30)


main(*sys.argv[1:])
