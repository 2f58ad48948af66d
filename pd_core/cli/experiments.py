"""Verbs of `make ablations`, `make protocols` and the embedded CLIPs' weights.

They run in the repository's root, as all others do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pd_core.cli.common import Reporter
from pd_core.core.artifacts import read_json
from pd_core.data.catalog.catalogue import dataset_names, dataset_spec
from pd_core.pipeline import ablations, protocols
from pd_core.pipeline.ablations import AblationParams, load_ablations
from pd_core.pipeline.protocols import ProtocolsParams, load_protocols
from pd_core.pipeline.settings import compute_with, load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, Params, load_params

ablation = typer.Typer(help="The paper's ablations on the embedded benchmark.")
protocol = typer.Typer(
    help="The four protocols over several seeds: `make protocols`.", no_args_is_help=True
)
embedded = typer.Typer(
    help="The embedded CLIPs: how their weights were made.", no_args_is_help=True
)


@ablation.command()
def base(dataset: Annotated[str, typer.Argument(show_default=False)]) -> None:
    """Stage: few-shot lists, tuned teacher and class vectors of a data set, for every seed."""
    params, profile = _ablations()
    mine = params.for_dataset(profile, dataset)
    ablations.make_base(ablations.BASES / dataset, mine, **_computing(params, profile))


@ablation.command()
def variant(name: Annotated[str, typer.Argument(show_default=False)]) -> None:
    """Stage: run a variant on every data set with every seed."""
    params, profile = _ablations()
    changed = params.variant(name).changed
    console = Console(stderr=True)
    ablations.run_variant(
        ablations.BASES,
        ablations.RESULTS / name,
        [params.for_dataset(profile, dataset, name) for dataset in params.datasets],
        changed=changed,
        on_run=lambda dataset, seed: console.print(f"{name}: {dataset}, seed {seed}"),
        **_computing(params, profile),
    )


@ablation.command("report")
def report_ablations() -> None:
    """Stage: put all variants beside the paper's figures."""
    params, _ = _ablations()
    from pd_core.reporting import ablation_report

    ablation_report.run(
        ablations.RESULTS,
        ablations.REPORT,
        tables=params.tables,
        datasets=params.datasets,
        seeds=params.seeds,
    )


@ablation.command("show")
def show_ablations() -> None:
    """Print the tables."""
    from pd_core.reporting import ablation_report

    Console().print(ablation_report.table(_summary(ablations.REPORT, "make ablations")))


def _ablations() -> tuple[AblationParams, Params]:
    params, profile = load_ablations(ablations.FOLDER / PARAMS)
    compute_with(profile.run.threads)
    return params, profile


def _computing(params: AblationParams, profile: Params) -> dict[str, Any]:
    """Return seeds, device and folders, for the functions that run stages."""
    settings = load_settings()
    return {
        "seeds": params.seeds,
        "device": settings.device or profile.run.device,
        "data_root": settings.data_root or DATA / "raw",
        "features": DATA / "features",
    }


@protocol.command("report")
def report_protocols() -> None:
    """Stage: put all protocols, data sets and seeds into one summary, table and figure."""
    params, profile = load_protocols(protocols.FOLDER)
    from pd_core.reporting import protocol_report as stage

    stage.run(
        protocols.EVALUATIONS,
        protocols.REPORT,
        profile=profile.profile.name,
        datasets=params.datasets,
        seeds=params.seeds,
        source=params.source.dataset,
        titles=_titles(params),
    )


@protocol.command("show")
def show_protocols() -> None:
    """Print the tables, and where to look further."""
    params, _ = load_protocols(protocols.FOLDER)
    from pd_core.reporting import protocol_report as stage

    folder, console = protocols.REPORT, Console()
    console.print(stage.table(_summary(folder, "make protocols"), _titles(params)))
    console.print(f"Report   {folder / 'summary.md'}, {folder / 'summary.png'}")


def _titles(params: ProtocolsParams) -> dict[str, str]:
    """Return the catalogue's readable names; your own pictures have none."""
    listed = {name for names in params.datasets.values() for name in names}
    known = {params.source.dataset, *listed} & set(dataset_names())
    return {name: dataset_spec(name).title for name in known}


def _summary(report: Path, command: str) -> Any:
    return read_json(report / "summary.json", what="report", remedy=f"run `{command}`")


@embedded.command()
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
    from pd_core.recipes.embedded_clips import Recipe, run

    recipe = Recipe(name, images=images, seed=seed, threads=threads, lr=lr, start=start)
    with Reporter(name) as progress:
        run(recipe, out, on_progress=progress.progress)


@embedded.command("zero-shot")
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
            models={block.model: block.weights for block in (params.teacher, params.student)},
            threads=params.run.threads,
            on_progress=progress.progress,
        )
