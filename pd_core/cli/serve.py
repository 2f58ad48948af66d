"""`promptkd serve`: a registered student over HTTP."""

from __future__ import annotations

import logging
import os
from typing import Annotated

import typer

from pd_core.cli.common import open_store
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.settings import compute_with

app = typer.Typer()


@app.command()
def serve(
    model: Annotated[
        str,
        typer.Argument(
            help="A data set, for its champion, which may move; or greek@challenger, greek/3.",
            show_default=False,
        ),
    ],
    port: Annotated[int, typer.Option(help="0 for a free one.", min=0, max=65535)] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    batch: Annotated[int, typer.Option(help="Pictures that are classified together.", min=1)] = 32,
    waiting: Annotated[int, typer.Option(help="Pictures that may wait.", min=1)] = 256,
    threads: Annotated[
        int, typer.Option(help="Threads of the model; 0 for as many as it is worth.", min=0)
    ] = 0,
    most_bytes: Annotated[int, typer.Option(help="Of a picture.", min=1)] = 20 * 2**20,
    most_pixels: Annotated[int, typer.Option(help="Of a picture.", min=1)] = 50_000_000,
    most_pictures: Annotated[int, typer.Option(help="Of a request.", min=1)] = 64,
    upload_seconds: Annotated[float, typer.Option(help="For a request to come.", min=0.01)] = 30,
    answer_seconds: Annotated[float, typer.Option(help="For its answer.", min=0.01)] = 30,
    poll: Annotated[
        float, typer.Option(help="Seconds between looks whether the alias moved.", min=0.1)
    ] = 5,
) -> None:
    """Serve a registered student over HTTP, with a page to try pictures on.

    It ends with status 0 at SIGTERM or Ctrl-C, after it answered what had come.
    """
    from pd_core.mlops.serving import app as server

    cores = os.cpu_count() or 1
    listening = server.listen(host, port)
    compute_with(threads or cores)  # at most; before torch is imported
    from pd_core.mlops.serving import app as service
    from pd_core.mlops.serving import model_manager
    from pd_core.mlops.serving.errors import Limits
    from pd_core.mlops.serving.worker import Power

    keeper = model_manager.keep(open_store(), model, Power(most_pixels, cores, threads))
    limits = Limits(
        batch=batch,
        waiting=waiting,
        pictures=most_pictures,
        picture_bytes=most_bytes,
        upload_seconds=upload_seconds,
        answer_seconds=answer_seconds,
    )
    application = service.build(service.Service.of(keeper, limits), poll=poll)
    _log_to_stderr()
    version = keeper.current.version
    typer.echo(f"serving {version.name}, version {version.number}, at {server.address(listening)}")
    server.run(application, listening, drain_seconds=answer_seconds)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Masked("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("uvicorn", "python_multipart", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)  # not each bad request is worth a line


class _Masked(logging.Formatter):
    """Hides passwords, wherever they come from."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's lines."""
        return masked(super().format(record))
