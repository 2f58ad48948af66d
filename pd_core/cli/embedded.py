"""`promptkd embedded`: how the weights of the embedded CLIPs were made and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pd_core.pipeline.progress import Reporter
from pd_core.pipeline.settings import compute_with
from pd_core.pipeline.stages.params import DATA, PARAMS, load_params

app = typer.Typer(help="The embedded CLIPs: how their weights were made.", no_args_is_help=True)


@app.command("pretrain")
def pretrain(
    name: Annotated[str, typer.Argument(help="embedded-teacher or embedded-student.")],
    out: Annotated[Path, typer.Option(help="Folder for weights and log.")],
    images: Annotated[int, typer.Option(help="Pictures to see in all.")],
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads; they decide the last bits.")] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    start: Annotated[
        Path | None, typer.Option(help="Weights to go on from.", show_default=False)
    ] = None,
) -> None:
    """Pre-train an embedded CLIP on drawn characters (see weights/README.md)."""
    compute_with(threads)
    from pd_core.recipes import embedded_clips

    with Reporter(name) as progress:
        embedded_clips.run(
            name,
            out,
            images=images,
            seed=seed,
            threads=threads,
            lr=lr,
            start=start,
            on_progress=progress.progress,
        )


@app.command("zero-shot")
def zero_shot(
    out: Annotated[Path, typer.Option(help="Folder for zero_shot.json and zero_shot.md.")],
) -> None:
    """Measure both embedded CLIPs zero-shot on the prepared data sets."""
    params = load_params(PARAMS)
    compute_with(params.run.threads)
    from pd_core.evaluation import zero_shot as measure

    with Reporter("zero-shot") as progress:
        measure.run(
            DATA / "prepare",
            out,
            datasets=list(params.datasets),
            models={
                params.teacher.model: params.teacher.weights,
                params.student.model: params.student.weights,
            },
            threads=params.run.threads,
            on_progress=progress.progress,
        )
