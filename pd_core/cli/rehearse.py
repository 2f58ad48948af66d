"""Verb that estimates time and memory of a profile: `promptkd rehearse`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from pd_core.cli.common import AsJson, note, print_json
from pd_core.core.atomic import readable
from pd_core.data.catalog import fingerprint
from pd_core.pipeline.settings import compute_with, load_settings
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.params import DATA, PARAMS, Params, load_params

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pd_core.rehearsal.estimate import Estimate
    from pd_core.rehearsal.measure import Place
    from pd_core.reporting.tables import Table

_SURE = 2.0  # standard errors: 95% if they are normally distributed


def rehearse(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Data sets in params.yaml (default: all).", show_default=False),
    ] = None,
    steps: Annotated[
        int,
        typer.Option(
            min=2, help="Steps an epoch to measure; below 10 few texts as well, for large models."
        ),
    ] = 40,
    as_json: AsJson = False,
) -> None:
    """Measure a few steps of every stage, and estimate time, memory and disk of the whole run."""
    from pd_core.rehearsal import record
    from pd_core.rehearsal.rehearse import profile_items
    from pd_core.rehearsal.rehearse import rehearse as measure

    params = load_params(PARAMS)
    compute_with(params.run.threads)
    items = profile_items(params, names or params.datasets)
    with TemporaryDirectory(prefix="promptkd-rehearsal-") as folder:
        place = place_of(Path(folder), params, steps)
        estimates = measure(items, place, note)
    if not names:
        record.write(Path(), estimates, place.device)
    if as_json:
        print_json([record.EstimateRow.of(each).model_dump() for each in estimates])
    else:
        show(estimates)


def place_of(folder: Path, params: Params, steps: int) -> Place:
    """Return the place of a rehearsal of the profile in this folder."""
    from pd_core.mlops import tracking
    from pd_core.rehearsal.measure import Place

    tracking.open_store(folder)  # made once, as it is in the project
    settings, root = load_settings(), Path(params.profile.root)
    files = {name: fingerprint.path_of(name, root).absolute() for name in params.datasets}
    return Place(
        folder=folder,
        data_root=(settings.data_root or root / DATA / "raw").absolute(),
        fingerprints=files,
        copies={},
        device=jobs.resolved(settings.device or params.run.device),
        seed=params.run.seed,
        steps=steps,
    )


def show(estimates: Sequence[Estimate]) -> None:
    """Print estimates as a table."""
    from rich.console import Console

    Console().print(table(estimates))


def table(estimates: Sequence[Estimate]) -> Table:
    """Return the table of estimates and their sum."""
    from pd_core.rehearsal.estimate import together
    from pd_core.reporting.tables import Kind, Row, Table

    total = together(estimates)
    rows: list[Row] = [Row(_cells(estimate)) for estimate in estimates]
    if len(estimates) > 1:
        rows.append(Row(("together", *_cells(total)[1:]), Kind.AVERAGE))
    heads = ["data set", "steps measured", "to come", "time", "CPU time", "memory", "GPU", "disk"]
    slowest = ", ".join(
        f"{kind} {100 * seconds / (total.cost.wall or 1):.0f}%"
        for kind, seconds in total.kinds().items()
    )
    notes = [f"time by part, the slowest first: {slowest}", "stages one after the other"]
    return Table(heads, rows, notes=notes)


def _cells(estimate: Estimate) -> tuple[str, ...]:
    trainings = [stage for stage in estimate.stages if stage.stage in _TRAININGS]
    sure = "" if estimate.error is None else f" ± {duration(_SURE * estimate.error)}"
    needs = estimate.needs
    return (
        estimate.name,
        str(sum(stage.measured for stage in trainings)),
        f"{estimate.repeats * sum(stage.steps for stage in trainings):,}",
        duration(estimate.cost.wall) + sure,
        duration(estimate.cost.cpu),
        readable(needs.memory),
        readable(needs.gpu) if needs.gpu else "none",
        readable(needs.disk),
    )


_TRAININGS = ("teacher", "student", "tuned_student")


def duration(seconds: float) -> str:
    """Format seconds, such as "40 s", "12 min" or "5.3 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"
