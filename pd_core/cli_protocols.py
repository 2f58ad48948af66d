"""`promptkd protocols`: what the stages of `protocols/` need besides the verbs of the stages."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from pd_core import lineage, provenance
from pd_core.artifacts import read_json, write_json
from pd_core.atomic import write_folder
from pd_core.data.catalogue import dataset_names, dataset_spec
from pd_core.protocols.layout import EVALUATIONS, REPORT, RESULTS
from pd_core.protocols.params import FOLDER, ProtocolsParams, load_protocols

STAGES = ("prepare", "teacher", "class_vectors", "student", "evaluate")

app = typer.Typer(
    help="The four protocols over several seeds: `make protocols`.", no_args_is_help=True
)


@app.command()
def code() -> None:
    """Stage: hash the modules that each stage is made of."""
    package = Path(lineage.__file__).parent.parent
    with write_folder(RESULTS / "code") as folder:
        for stage in STAGES:
            hashes = {
                path.relative_to(package).as_posix(): provenance.content_hash(path)
                for path in lineage.stage_code(stage)
            }
            write_json(folder / f"{stage}.json", hashes)


@app.command()
def report() -> None:
    """Stage: put all protocols, data sets and seeds into one summary, table and figure."""
    params, profile = load_protocols(FOLDER)
    from pd_core.protocols import report as stage

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
    from pd_core.protocols import report as stage

    summary = read_json(REPORT / "summary.json", what="report", remedy="run `make protocols`")
    console = Console()
    console.print(stage.table(summary, _titles(params)))
    console.print(f"Report   {REPORT / 'summary.md'}, {REPORT / 'summary.png'}")


def _titles(params: ProtocolsParams) -> dict[str, str]:
    """Return the catalogue's readable names; your own pictures have none."""
    listed = {name for names in params.datasets.values() for name in names}
    known = {params.source.dataset, *listed} & set(dataset_names())
    return {name: dataset_spec(name).title for name in known}
