"""The verb that builds the page of all results.

It is not the stage `report`, whose outputs DVC hashes: the page holds measured times, the commit
and versions, which would make other bytes of the same results.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pd_core.cli.common import open_store, say, settings_of
from pd_core.pipeline.protocols import REPORT
from pd_core.pipeline.settings import compute_with, load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, Params, load_params

if TYPE_CHECKING:
    from pd_core.mlops.tracking import StageRun

PAGES = Path("build") / "report"

app = typer.Typer()


@app.command()
def page(
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Take the time and memory of teacher and student first."),
    ] = False,
    record: Annotated[
        bool,
        typer.Option("--record", help="Keep the page and its calibration in MLflow as well."),
    ] = False,
) -> None:
    """Put all that is known of the results on one page: HTML, Markdown, JSON."""
    params = load_params(PARAMS)
    jobs = {name: one.job for name, one in settings_of(params, params.datasets).items()}
    folder = PAGES / params.profile.name
    compute_with(params.run.threads)
    from pd_core.reporting.page import build, figures, speed

    if measure:
        speed.measure(next(iter(build.run(jobs) or jobs.values())), folder)
    with _run(params, open_store() if record else None) as run:
        found = build.gather(
            jobs,
            folder,
            profile=params.profile.name,
            root=Path(params.profile.root),
            protocols=REPORT,
            baselines=list(params.tuned_student),
        )
        path = build.write(found, folder)
        for suffix in (".html", ".md", ".json"):
            run.log_file(path.with_suffix(suffix))
        run.add(figures.calibration_errors(found.pages))
        run.log_texts(lambda: figures.calibrations(found.pages))
    say(f"wrote {path}")


def _run(params: Params, store: str | None) -> AbstractContextManager[StageRun]:
    """Surround the building of the page with its run, in a store or nowhere."""
    from pd_core.mlops import tracking

    return tracking.stage_run(
        store,
        profile=params.profile.name,
        dataset="",
        stage="page",
        params={"datasets": list(params.datasets)},
        deps=[DATA / "evaluate"],
        outs=[],
        seed=params.run.seed,
        protocol=params.prepare.protocol,
        experiment=load_settings().mlflow_experiment,
    )
