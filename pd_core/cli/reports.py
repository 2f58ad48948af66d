"""Verbs that show results: the report, the page of everything, two states beside each other.

The page is not the stage `report`, whose outputs DVC hashes: it holds measured times, the commit
and versions, which would make other bytes of the same results.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pd_core.cli.common import AsJson, open_store, print_json, say, settings_of
from pd_core.pipeline import code_hash, protocols
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.settings import compute_with, load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, Params, load_params

if TYPE_CHECKING:
    from pd_core.mlops.tracking.recorder import StageRun

REPORTS = Path("reports")
PAGES = Path("build") / "report"

Reference = Annotated[
    str,
    typer.Argument(
        help="Git revision, DVC experiment, workspace, MLflow run ID, or model version "
        "(greek/3, greek@champion).",
    ),
]

_PIPED_WIDTH = 10_000  # columns: no line is broken where a program reads


def report() -> None:
    """Stage: write the summary, table and figure of all data sets."""
    params = load_params(PARAMS)
    from pd_core.reporting import report as stage

    folder = REPORTS / params.profile.name
    store, deps = open_store(), [DATA / "evaluate"]
    with _recorded("report", params, store, deps=deps, outs=[folder]) as run:
        stage.run(
            DATA / "evaluate",
            DATA / "prepare",
            folder,
            profile=params.profile.name,
            datasets=list(params.datasets),
            baselines=list(params.tuned_student),
            cross_validated=list(params.cross_validate),
        )
        run.log_metrics(stage.read_summary(folder)["average"])
        run.log_file(folder)


def show(as_json: AsJson = False) -> None:
    """Print the table of the report and the paths of its files.

    Data sets whose classes have unequal numbers of test images have further metrics.
    """
    params = load_params(PARAMS)
    from pd_core.reporting import report as stage
    from pd_core.reporting import unequal
    from pd_core.reporting.results import read_titles

    folder = REPORTS / params.profile.name
    summary = stage.read_summary(folder)
    measured = unequal.read(DATA / "evaluate", list(params.datasets))
    if as_json:
        classes = {
            name: {model: asdict(metrics) for model, metrics in models.items()}
            for name, models in measured.items()
        }
        print_json({**summary, "unequal_classes": classes})
        return
    console, titles = Console(), read_titles(DATA / "prepare")
    console.print(stage.table(summary, titles))
    if measured:
        console.print(unequal.table(measured, titles))
    console.print(f"Report   {folder / 'summary.md'}, {folder / 'summary.png'}")
    if sys.prefix not in (sys.base_prefix, os.environ.get("VIRTUAL_ENV")):
        prefix, here = Path(sys.prefix), Path.cwd()
        shown = prefix.relative_to(here) if prefix.is_relative_to(here) else prefix
        console.print(f"Shell    `source {shown}/bin/activate`, then")
    console.print("Page     `promptkd page`")
    console.print(f"MLflow   {_mlflow_page()}")


def _mlflow_page() -> str:
    from pd_core.mlops import tracking

    uri = load_settings().mlflow_tracking_uri
    if uri and uri.startswith("http"):
        return masked(uri)
    return f"`mlflow ui --backend-store-uri {masked(uri or 'sqlite:///' + tracking.DATABASE)}`"


def page(
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure time and memory of teacher and student first."),
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Log the page and its calibration to MLflow.")
    ] = False,
) -> None:
    """Write a page of all results, as HTML, Markdown and JSON."""
    params = load_params(PARAMS)
    jobs = {name: one.job for name, one in settings_of(params, params.datasets).items()}
    folder = PAGES / params.profile.name
    compute_with(params.run.threads)
    from pd_core.reporting import page as stage
    from pd_core.reporting import page_content, page_dataset, page_models

    if measure:
        job = next(iter(stage.evaluated_jobs(jobs) or jobs.values()))
        page_models.measure_speed(job, folder)
    store = open_store() if record else None
    with _recorded("page", params, store, deps=[DATA / "evaluate"], outs=[]) as run:
        content = stage.gather(
            jobs,
            folder,
            profile=params.profile.name,
            root=Path(params.profile.root),
            protocols=protocols.REPORT,
            baselines=list(params.tuned_student),
        )
        path = page_content.write(content, folder)
        for suffix in (".html", ".md", ".json"):
            run.log_file(path.with_suffix(suffix))
        run.add(page_dataset.calibration_errors(content.pages))
        run.log_texts(lambda: page_dataset.calibrations(content.pages))
    say(f"wrote {path}")


def _recorded(
    stage: str, params: Params, store: str | None, *, deps: Sequence[Path], outs: Sequence[Path]
) -> AbstractContextManager[StageRun]:
    """Surround work over all data sets with its run, in a store or nowhere."""
    from pd_core.mlops.tracking import recorder

    info = recorder.StageInfo(
        profile=params.profile.name,
        dataset="",
        stage=stage,
        params={"datasets": list(params.datasets)},
        deps=deps,
        outs=outs,
        code=code_hash.file_hashes("report", DATA / code_hash.CODE),
        seed=params.run.seed,
        protocol=params.prepare.protocol,
        experiment=load_settings().mlflow_experiment,
    )
    return recorder.stage_run(store, info)


def offline_plots() -> None:
    """Make `dvc plots` draw without a network, in the DVC project of this folder."""
    from pd_core.pipeline import dvc
    from pd_core.pipeline import offline_plots as template

    say(f"wrote {template.write(dvc.root())}; `dvc plots` uses it")


def compare(
    first: Reference = "HEAD", second: Reference = "workspace", as_json: AsJson = False
) -> None:
    """Compare the parameters and metrics of two states, with significance tests.

    Without arguments: the last commit and the workspace.
    """
    from pd_core.reporting.comparison import compare as compared
    from pd_core.reporting.comparison_sources import find_side

    sides = [find_side(given, Path.cwd(), open_store) for given in (first, second)]
    result = compared(*sides)
    if as_json:
        print_json(result.as_dict())
        return
    say(f"first   {result.first.title}")
    say(f"second  {result.second.title}")
    piped = not Console().is_terminal
    console = Console(width=_PIPED_WIDTH) if piped else Console()
    for table in result.tables():
        console.print(table.terminal(plain=piped))
    for line in result.remarks():
        say(line)
