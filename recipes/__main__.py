"""Command line of the recipes: `promptkd embedded`, or `python -m recipes` in a clone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pd_core.cli.common import Reporter
from pd_core.core.errors import PdError
from pd_core.pipeline.settings import compute_with
from pd_core.pipeline.stages.params import DATA, PARAMS, load_params

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def pretrain(
    name: Annotated[str, typer.Argument(help="embedded-teacher or embedded-student.")],
    out: Annotated[Path, typer.Option(help="Directory for the weights and the log.")],
    images: Annotated[int, typer.Option(help="Number of training images.")],
    seed: Annotated[int, typer.Option(help="Random seed.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads; they decide the last bits.")] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    start: Annotated[
        Path | None, typer.Option(help="Weights to start from.", show_default="random")
    ] = None,
) -> None:
    """Pre-train an embedded CLIP on rendered characters (pd_core/models/weights/README.md)."""
    compute_with(threads)
    from recipes.embedded_clips import Recipe, run

    recipe = Recipe(name, images=images, seed=seed, threads=threads, lr=lr, start=start)
    with Reporter(name) as progress:
        run(recipe, out, on_progress=progress.progress)


@app.command("zero-shot")
def zero_shot(
    out: Annotated[Path, typer.Option(help="Directory for zero_shot.json and zero_shot.md.")],
) -> None:
    """Evaluate both embedded CLIPs zero-shot on the prepared data sets."""
    params = load_params(PARAMS)
    compute_with(params.run.threads)
    from recipes.embedded_clips import zero_shot_table

    with Reporter("zero-shot") as progress:
        zero_shot_table(
            DATA / "prepare",
            out,
            datasets=list(params.datasets),
            models={block.model: block.weights for block in (params.teacher, params.student)},
            threads=params.run.threads,
            on_progress=progress.progress,
        )


if __name__ == "__main__":
    try:
        app(prog_name="promptkd embedded")
    except PdError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
