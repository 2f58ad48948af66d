"""The verb that builds the page of all results.

It is not the stage `report`, whose outputs DVC hashes: the page holds measured times, the commit
and versions, which would make other bytes of the same results.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pd_core.cli_common import say, setting_of
from pd_core.params import PARAMS, load_params
from pd_core.settings import compute_with

PAGES = Path("build") / "report"

app = typer.Typer()


@app.command()
def page(
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Take the time and memory of teacher and student first."),
    ] = False,
) -> None:
    """Put all that is known of the results on one page: HTML, Markdown, JSON."""
    params = load_params(PARAMS)
    jobs = {name: setting_of(name).job for name in params.datasets}
    folder = PAGES / params.profile.name
    compute_with(params.run.threads)
    from pd_core.page import build, speed

    if measure:
        speed.measure(next(iter(build.run(jobs) or jobs.values())), folder)
    found = build.gather(
        jobs,
        folder,
        profile=params.profile.name,
        root=Path(params.profile.root),
        baselines=list(params.tuned_student),
    )
    say(f"wrote {build.write(found, folder)}")
