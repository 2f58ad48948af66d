"""`promptkd serve`: a registered student over HTTP."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pd_core.masking import masked
from pd_core.params import PARAMS, load_params
from pd_core.settings import compute_with, load_settings

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
    from pd_core.service import server
    from pd_core.service.limits import Limits

    limits = Limits(
        batch=batch,
        waiting=waiting,
        pictures=most_pictures,
        picture_bytes=most_bytes,
        pixels=most_pixels,
        upload_seconds=upload_seconds,
        answer_seconds=answer_seconds,
    )
    listening = server.listen(host, port)
    ...
