"""`promptkd data`: which data sets there are, whether they are whole, what they are made of."""

from __future__ import annotations

import json
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pd_core.cli import fetch
from pd_core.cli.fetch import Names, Root, places
from pd_core.data.catalog import fingerprint as prints
from pd_core.data.catalog.catalogue import (
    DatasetSpec,
    Layout,
    dataset_names,
    dataset_spec,
    own_spec,
)
from pd_core.data.catalog.custom import OwnImages
from pd_core.pipeline.progress import Reporter
from pd_core.pipeline.stages.params import PARAMS, load_params

if TYPE_CHECKING:
    from pd_core.data.acquire.verify import Verdict

app = typer.Typer(help="Data sets: list, fetch, check, fingerprint.", no_args_is_help=True)
app.add_typer(fetch.data)

AsJson = Annotated[bool, typer.Option("--json", help="JSON in place of text.")]


def spec_of(name: str) -> DatasetSpec:
    """Return the row of a data set: of the user's, if params.yaml has it, or of the catalogue.

    Raises:
        UnknownName: There is none.
    """
    own = _own_sets()
    return own_spec(name, own[name]) if name in own else dataset_spec(name)


def _own_sets() -> dict[str, OwnImages]:
    """Return the user's own data sets, those of params.yaml in the current folder."""
    if not PARAMS.is_file():
        return {}
    params = load_params(PARAMS)
    blocks = {name: params.for_dataset(name).prepare.own for name in params.datasets}
    return {name: OwnImages(**dict(block)) for name, block in blocks.items() if block}


@app.command("list")
def list_all(root: Root = None, as_json: AsJson = False) -> None:
    """List all data sets: classes, pictures, where they are and in what state."""
    from pd_core.data.acquire.verify import state_of

    project, data_root = places(root)
    rows = []
    for spec in map(spec_of, (*_own_sets(), *dataset_names())):
        sizes = [size for size in (spec.train, spec.val, spec.test) if size is not None]
        path = prints.path_of(spec.name, project)
        recorded = prints.read(path, spec.name).level if path.is_file() else None
        rows.append(
            {
                "name": spec.name,
                "classes": spec.num_classes or None,
                "images": sum(sizes) or None,
                "where": spec.folder or "embedded",
                "state": state_of(spec, data_root),
                "fingerprint": recorded,
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _print_table(rows, data_root)


@app.command()
def verify(
    names: Names,
    root: Root = None,
    full: Annotated[bool, typer.Option("--full", help="Decode every picture.")] = False,
    as_json: AsJson = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that decode; one a core by default."),
    ] = None,
) -> None:
    """Check data sets: counts, lists, class folders, pictures. Exit status 1 if one is not whole.

    Without --full only the first bytes of pictures are read: one that breaks off passes.
    """
    from pd_core.data.acquire import verify as checks

    project, data_root = places(root)
    verdicts = []
    for spec in [spec_of(name) for name in names]:
        path = prints.path_of(spec.name, project)
        with Reporter(f"verify {spec.name}", "pictures") as progress:
            verdict = checks.verify(
                spec,
                data_root,
                full=full,
                workers=workers,
                recorded=prints.read(path, spec.name) if path.is_file() else None,
                on_progress=progress.progress,
            )
        verdicts.append(verdict)
        if not as_json:
            typer.echo("\n".join(_lines(verdict)))
    if as_json:
        typer.echo(json.dumps([_as_json(verdict) for verdict in verdicts], indent=2))
    if not all(verdict.ok for verdict in verdicts):
        raise typer.Exit(1)


@app.command()
def fingerprint(
    names: Names,
    root: Root = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read every picture, not a sample of them.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; fingerprints/ by default.")
    ] = None,
) -> None:
    """Record what data sets are made of; commit the files, stages compare them with the pictures.

    Without --full an edit that leaves a picture's size as it was, outside the sample, is missed.
    """
    from pd_core.data.catalog.readers import image_root, read_splits, sources

    project, data_root = places(root)
    for spec in [spec_of(name) for name in names]:
        path = out / f"{spec.name}.json" if out else prints.path_of(spec.name, project)
        embedded = spec.layout is Layout.EMBEDDED
        with (
            tempfile.TemporaryDirectory() if embedded else nullcontext(data_root) as place,
            Reporter(f"fingerprint {spec.name}", "files") as progress,
        ):
            base = Path(place) / spec.folder
            if embedded:
                read_splits(spec, base)
            found = prints.fingerprint(
                [image_root(spec, base)] if embedded else sources(spec, data_root),
                base,
                level=prints.Level.FULL if full or embedded else prints.Level.SAMPLE,
                on_progress=progress.progress,
            )
        prints.write(path, found)
        typer.echo(_summary(spec.name, found, path))


def _lines(verdict: Verdict) -> list[str]:
    if not verdict.ok:
        return [f"{verdict.name}: {problem}" for problem in verdict.problems]
    counts = verdict.counts
    return [
        f"{verdict.name}: ok, {counts['classes']} classes, {counts['train']} train, "
        f"{counts['val']} validation and {counts['test']} test pictures ({verdict.road})"
    ]


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "name": verdict.name,
        "ok": verdict.ok,
        "road": verdict.road,
        "counts": dict(verdict.counts),
        "problems": list(verdict.problems),
    }


def _summary(name: str, found: prints.Fingerprint, path: Path) -> str:
    line = f"{name}: level {found.level}, {found.files} files, {found.bytes} bytes -> {path}"
    return line if found.hashed == found.files else f"{line}; {prints.MISSED}"


def _print_table(rows: list[dict[str, Any]], data_root: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")  # fits 80 columns
    state = "state,\nfingerprint"
    for column in ("name", "classes", "images", "where", state):
        numbers = column in ("classes", "images")
        table.add_column(column, justify="right" if numbers else "left", no_wrap=column != state)
    for row in rows:
        images = f"{row['images']:,}" if row["images"] else ""
        level = f"\n{row['fingerprint']}" if row["fingerprint"] else ""
        table.add_row(
            row["name"],
            str(row["classes"] or ""),
            images,
            row["where"],
            f"{row['state']}{level}",
        )
    Console().print(table)
    typer.echo(f"folders are below {data_root}")
