"""Verb that estimates time and memory of a profile: `promptkd rehearse`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from pd_core.cli.common import AsJson, note, print_json, print_table
from pd_core.core.atomic import readable
from pd_core.data.catalog import fingerprint
from pd_core.pipeline.settings import compute_with, load_settings
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.params import DATA, PARAMS, Params, load_params

if TYPE_CHECKING:
    from pd_core.rehearsal.measure import Place
    from pd_core.rehearsal.record import EstimateRow, Record
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
    result = record.Record.of(estimates, place.device)
    if not names:
        record.write(result, Path())
    if as_json:
        print_json(result.model_dump())
    else:
        show(result)


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


def show(record: Record) -> None:
    """Print the estimates of a rehearsal as a table."""
    print_table(table(record))


def table(record: Record) -> Table:
    """Return the table of estimates and their sum."""
    from pd_core.reporting.tables import Kind, Row, Table

    rows = [Row(_cells(row)) for row in record.rows]
    if len(rows) > 1:
        rows.append(Row(("together", "", *_cells(record.total)[2:]), Kind.AVERAGE))
    heads = ["data set", "measured", "steps", "time", "±", "CPU time", "memory", "GPU", "disk"]
    notes = [
        f"steps of trainings that were measured, and to come, on {record.device}; time if stages"
        " run one after the other",
        f"slowest: {slowest(record.total)}",
    ]
    return Table(heads, rows, notes=notes)


def slowest(row: EstimateRow) -> str:
    """Return the parts of the time in percent, the slowest first."""
    shares = {kind: 100 * part / (row.seconds or 1) for kind, part in row.seconds_of.items()}
    return ", ".join(f"{kind} {share:.0f}%" for kind, share in shares.items() if share >= 1)


def _cells(row: EstimateRow) -> tuple[str, ...]:
    return (
        row.name,
        str(row.measured),
        f"{row.steps:,}",
        duration(row.seconds),
        "?" if row.error is None else duration(_SURE * row.error),
        duration(row.cpu_seconds),
        readable(row.memory),
        readable(row.gpu) if row.gpu else "none",
        readable(row.disk),
    )


def duration(seconds: float) -> str:
    """Format seconds, such as "40 s", "12 min" or "5.3 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"
