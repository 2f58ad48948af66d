"""Verbs that show results: the report, the page of everything, two states beside each other.

The page is not the stage `report`, whose outputs DVC hashes: it holds measured times, the commit
and versions, which would make other bytes of the same results.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pd_core.cli.common import AsJson, open_store, print_json, say, settings_of
from pd_core.pipeline import code_hash, protocols
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.settings import compute_with, load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, Params, load_params

if TYPE_CHECKING:
    from pd_core.mlops.tracking.recorder import StageRun
    from pd_core.reporting.comparison import Comparison, MetricDifference, Side

REPORTS = Path("reports")
PAGES = Path("build") / "report"

Reference = Annotated[
    str,
    typer.Argument(
        help="A git revision, an MLflow run's id, or a model version: greek/3, greek@champion.",
        show_default=False,
    ),
]

_NONE = "–"
_TESTS = """\
p       of a data set: McNemar's test on its test pictures, for hm a permutation test;
        of the average: Wilcoxon's test over three data sets or more;
        not corrected for the many rows"""
_PIPED_WIDTH = 10_000  # columns: no line is broken where a program reads


def report() -> None:
    """Stage: put all data sets' results into one summary, table and figure."""
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


def show() -> None:
    """Print the result table, and where to look further."""
    params = load_params(PARAMS)
    from pd_core.reporting import report as stage
    from pd_core.reporting.results import read_titles

    folder = REPORTS / params.profile.name
    console = Console()
    console.print(stage.table(stage.read_summary(folder), read_titles(DATA / "prepare")))
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
        typer.Option("--measure", help="Take the time and memory of teacher and student first."),
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Keep the page and its calibration in MLflow as well.")
    ] = False,
) -> None:
    """Put all that is known of the results on one page: HTML, Markdown, JSON."""
    params = load_params(PARAMS)
    jobs = {name: one.job for name, one in settings_of(params, params.datasets).items()}
    folder = PAGES / params.profile.name
    compute_with(params.run.threads)
    from pd_core.reporting import page as stage
    from pd_core.reporting import page_dataset

    if measure:
        job = next(iter(stage.evaluated_jobs(jobs) or jobs.values()))
        page_dataset.measure_speed(job, folder)
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
        path = stage.write(content, folder)
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


def compare(first: Reference, second: Reference, as_json: AsJson = False) -> None:
    """Show the parameters and metrics that differ, and whether it is more than chance."""
    from pd_core.reporting import comparison, comparison_sources

    sides = [
        comparison_sources.find_side(given, Path.cwd(), open_store) for given in (first, second)
    ]
    found = comparison.compare(*sides)
    if as_json:
        print_json(_as_dict(found))
    else:
        _show(found)


def _show(found: Comparison) -> None:
    say(f"first   {found.first.title}")
    say(f"second  {found.second.title}")
    piped = not Console().is_terminal
    console = Console(width=_PIPED_WIDTH) if piped else Console()
    if found.params:
        console.print(_params_table(found, piped))
    else:
        say("no parameter that both know differs")
    if found.metrics or found.averages:
        console.print(_metrics_table([*found.metrics, *found.averages], piped))
        say(_TESTS)
    for note in found.notes:
        say(f"note    {note}")


def _params_table(found: Comparison, piped: bool) -> Table:
    table = _table("parameter", "first", "second", "data sets", piped=piped)
    for one in found.params:
        values = [_NONE if value is None else str(value) for value in (one.first, one.second)]
        _add(table, one.name, *values, _listed(one.datasets, found.datasets))
    return table


def _listed(some: Sequence[str], everybody: Sequence[str]) -> str:
    """Name some data sets, or those that are left out if these are fewer."""
    others = [name for name in everybody if name not in some]
    if not others:
        return "all"
    return f"all but {', '.join(others)}" if len(others) < len(some) else ", ".join(some)


def _metrics_table(rows: Iterable[MetricDifference], piped: bool) -> Table:
    table = _table("data set", "who", "metric", piped=piped)
    for head in ("first", "second", "difference", "p", "pairs"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in rows:
        numbers = f"{one.first:.2f}", f"{one.second:.2f}", f"{one.difference:+.2f}"
        pairs = _NONE if one.pairs is None else str(one.pairs)
        _add(table, one.dataset or "average", one.who, one.metric, *numbers, _p(one.p), pairs)
    return table


def _table(*heads: str, piped: bool) -> Table:
    """Make a table; one without lines where a program reads."""
    return Table(*heads, box=None, pad_edge=False) if piped else Table(*heads)


def _add(table: Table, *cells: str) -> None:
    """Add a row as it is: brackets are no markup."""
    table.add_row(*map(Text, cells))


def _p(value: float | None) -> str:
    if value is None:
        return _NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _as_dict(found: Comparison) -> dict[str, Any]:
    return {
        "first": _side(found.first),
        "second": _side(found.second),
        "datasets": found.datasets,
        "params": [
            {"name": one.name, "first": one.first, "second": one.second, "datasets": one.datasets}
            for one in found.params
        ],
        "metrics": [{"dataset": one.dataset, **_metric(one)} for one in found.metrics],
        "averages": [_metric(one) for one in found.averages],
        "notes": found.notes,
    }


def _side(side: Side) -> dict[str, str]:
    return {"given": side.given, "kind": side.kind, "name": side.name}


def _metric(one: MetricDifference) -> dict[str, Any]:
    return {
        "who": one.who, "metric": one.metric, "first": one.first, "second": one.second,
        "difference": one.difference, "p": one.p, "pairs": one.pairs,
    }  # fmt: skip
