"""`promptkd protocols`: what the stages of `protocols/` need besides the verbs of the stages."""

from __future__ import annotations

import typer
from rich.console import Console

from pd_core.core.artifacts import read_json
from pd_core.data.catalog.catalogue import dataset_names, dataset_spec
from pd_core.pipeline.protocols import (
    EVALUATIONS,
    FOLDER,
    REPORT,
    ProtocolsParams,
    load_protocols,
)

app = typer.Typer(
    help="The four protocols over several seeds: `make protocols`.", no_args_is_help=True
)


@app.command()
def report() -> None:
    """Stage: put all protocols, data sets and seeds into one summary, table and figure."""
    params, profile = load_protocols(FOLDER)
    from pd_core.reporting import protocol_report as stage

    stage.run(
        EVALUATIONS,
        REPORT,
        profile=profile.profile.name,
        datasets=params.datasets,
        seeds=params.seeds,
        source=params.source.dataset,
        titles=_titles(params),
    )


@app.command()
def show() -> None:
    """Print the tables, and where to look further."""
    params, _ = load_protocols(FOLDER)
    from pd_core.reporting import protocol_report as stage

    summary = read_json(REPORT / "summary.json", what="report", remedy="run `make protocols`")
    console = Console()
    console.print(stage.table(summary, _titles(params)))
    console.print(f"Report   {REPORT / 'summary.md'}, {REPORT / 'summary.png'}")


def _titles(params: ProtocolsParams) -> dict[str, str]:
    """Return the catalogue's readable names; your own pictures have none."""
    listed = {name for names in params.datasets.values() for name in names}
    known = {params.source.dataset, *listed} & set(dataset_names())
    return {name: dataset_spec(name).title for name in known}
