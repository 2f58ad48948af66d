"""Verbs that run many stages: ablations, protocols, the embedded CLIPs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pd_core.cli.common import print_table
from pd_core.core.artifacts import read_json
from pd_core.core.errors import missing
from pd_core.data.catalog.catalogue import dataset_names, dataset_spec
from pd_core.pipeline import ablations, protocols
from pd_core.pipeline.ablations import AblationParams, load_ablations
from pd_core.pipeline.protocols import ProtocolsParams, load_protocols
from pd_core.pipeline.settings import compute_with, load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, Params

RECIPES = Path("recipes")

ablation = typer.Typer(help="Run and show the paper's ablations on the embedded benchmark.")
protocol = typer.Typer(
    help="Show the results of the four protocols (`make protocols` runs them).",
    no_args_is_help=True,
)
embedded = typer.Typer(
    help="Make the weights of the embedded CLIPs again (in a clone).", no_args_is_help=True
)
_FORWARDED: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "add_help_option": False,
}


@ablation.command()
def base(
    dataset: Annotated[
        str, typer.Argument(help="Data set in ablations/params.yaml.", show_default=False)
    ],
) -> None:
    """Stage: make the split, the teacher and the class vectors of a data set, for all seeds."""
    params, profile = _ablations()
    mine = params.for_dataset(profile, dataset)
    ablations.make_base(ablations.BASES / dataset, mine, **_computing(params, profile))


@ablation.command()
def variant(
    name: Annotated[
        str, typer.Argument(help="Variant in ablations/params.yaml.", show_default=False)
    ],
) -> None:
    """Stage: run a variant on all data sets with all seeds."""
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
    """Stage: compare all variants with the paper's numbers."""
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
    """Print the tables of the report."""
    from pd_core.reporting import ablation_report

    print_table(ablation_report.table(_summary(ablations.REPORT, "make ablations")))


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
    """Stage: write the summary, table and figure of all protocols, data sets and seeds."""
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
    """Print the tables of the report and the paths of its files."""
    params, _ = load_protocols(protocols.FOLDER)
    from pd_core.reporting import protocol_report as stage

    folder, console = protocols.REPORT, Console()
    console.print(stage.table(_summary(folder, "make protocols"), _titles(params)))
    console.print(f"Report   {folder / 'summary.md'}, {folder / 'summary.png'}")


def _titles(params: ProtocolsParams) -> dict[str, str]:
    """Return the catalogue's readable names; your own pictures have none."""
    listed = {name for names in params.datasets.values() for name in names}
    names = {params.source.dataset, *listed} & set(dataset_names())
    return {name: dataset_spec(name).title for name in names}


def _summary(report: Path, command: str) -> Any:
    return read_json(report / "summary.json", what="report", remedy=f"run `{command}`")


@embedded.command(**_FORWARDED)
def pretrain(context: typer.Context) -> None:
    """Pre-train an embedded CLIP on rendered characters (pd_core/models/weights/README.md)."""
    _recipe("pretrain", context.args)


@embedded.command("zero-shot", **_FORWARDED)
def zero_shot(context: typer.Context) -> None:
    """Evaluate both embedded CLIPs zero-shot on the prepared data sets."""
    _recipe("zero-shot", context.args)


def _recipe(name: str, arguments: Sequence[str]) -> None:
    """Run a program of the folder `recipes`, which is no part of the package."""
    if not RECIPES.is_dir():
        raise missing("recipes", RECIPES, "run this in a clone of the project")
    raise typer.Exit(subprocess.call([sys.executable, "-m", RECIPES.name, name, *arguments]))
