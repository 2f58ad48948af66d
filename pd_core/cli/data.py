"""The verbs of data sets and CLIP's weights: list, get, check, fingerprint.

They come from their origins, or from our own mirror.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pd_core.cli.common import Reporter, say
from pd_core.core.errors import BadParams
from pd_core.data.acquire.sources import source_names, source_of, weight_names, weights_file
from pd_core.data.catalog import fingerprint as prints
from pd_core.data.catalog.catalogue import (
    DatasetSpec,
    Layout,
    OwnImages,
    dataset_names,
    dataset_spec,
    own_spec,
)
from pd_core.pipeline.settings import load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, load_params

if TYPE_CHECKING:
    from pd_core.core.hooks import OnProgress
    from pd_core.data.acquire.fetch import Fetcher
    from pd_core.data.acquire.mirror import Mirror
    from pd_core.data.acquire.sources import RemoteFile, Source
    from pd_core.data.acquire.verify import Verdict

app = typer.Typer(help="Data sets: list, fetch, check, fingerprint.", no_args_is_help=True)
weights = typer.Typer(help="CLIP's weights: get them, check them.", no_args_is_help=True)
_data_mirror = typer.Typer(help="Our own copy of the archives on S3 (PD_MIRROR).")
_weights_mirror = typer.Typer(help="Our own copy of the weights on S3 (PD_MIRROR).")
app.add_typer(_data_mirror, name="mirror")
weights.add_typer(_weights_mirror, name="mirror")

Names = Annotated[list[str], typer.Argument(help="Data sets.", show_default=False)]
Files = Annotated[
    list[str] | None,
    typer.Argument(help="Files; by default those that params.yaml uses.", show_default=False),
]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Folder of all data sets; PD_DATA_ROOT or data/raw by default.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON in place of text.")]

_MB = 2**20


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
    return {name: own for name, own in blocks.items() if own}


@app.command("list")
def list_all(root: Root = None, as_json: AsJson = False) -> None:
    """List all data sets: classes, pictures, where they are and in what state."""
    from pd_core.data.acquire.verify import state_of

    project, data_root = places(root)
    rows = []
    for spec in map(spec_of, (*_own_sets(), *dataset_names())):
        sizes = [size for size in (spec.train, spec.val, spec.test) if size is not None]
        recorded = _recorded(spec.name, project)
        row = {
            "name": spec.name,
            "classes": spec.num_classes or None,
            "images": sum(sizes) or None,
            "where": spec.folder or "embedded",
            "state": state_of(spec, data_root),
            "fingerprint": recorded and recorded.level,
        }
        rows.append(row)
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
        int | None, typer.Option(min=1, help="Processes that decode; one a core by default.")
    ] = None,
) -> None:
    """Check data sets: counts, lists, class folders, pictures. Exit status 1 if one is not whole.

    Without --full only the first bytes of pictures are read: one that breaks off passes.
    """
    from pd_core.data.acquire import verify as checks

    project, data_root = places(root)
    verdicts = []
    for spec in [spec_of(name) for name in names]:
        with Reporter(f"verify {spec.name}", "pictures") as progress:
            verdict = checks.verify(
                spec,
                data_root,
                full=full,
                workers=workers,
                recorded=_recorded(spec.name, project),
                on_progress=progress.progress,
            )
        verdicts.append(verdict)
        if not as_json:
            typer.echo("\n".join(_lines(verdict)))
    if as_json:
        rows = [
            {"name": one.name, "ok": one.ok, "road": one.road, "counts": dict(one.counts),
             "problems": one.problems} for one in verdicts
        ]  # fmt: skip
        typer.echo(json.dumps(rows, indent=2))
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
        line = f"level {found.level}, {found.files} files, {found.bytes} bytes -> {path}"
        missed = "" if found.hashed == found.files else f"; {prints.MISSED}"
        typer.echo(f"{spec.name}: {line}{missed}")


@app.command()
def fetch(
    names: Names,
    root: Root = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what would be fetched, and from where.")
    ] = False,
) -> None:
    """Download data sets and their split files, and unpack them; goes on where it stopped."""
    sources = _sources(names)
    if plan:
        for source in sources:
            _tell_plan(source)
        return
    for source in sources:
        _fetcher(root).fetch(source)


@_data_mirror.command("push")
def push_data(names: Names, root: Root = None) -> None:
    """Copy the archives that were fetched to the mirror; goes on where it stopped."""
    for source in _sources(names):
        _fetcher(root).push(source, _mirror())


@_data_mirror.command("pull")
def pull_data(names: Names, root: Root = None) -> None:
    """Get archives from the mirror, and unpack them; goes on where it stopped."""
    for source in _sources(names):
        _fetcher(root).pull(source, _mirror())


@weights.command("fetch")
def fetch_weights(files: Files = None, root: Root = None) -> None:
    """Download CLIP's weights; goes on where it stopped."""
    for file in _weights(files):
        _fetcher(root).fetch_weights(file)


@weights.command("verify")
def verify_weights(
    files: Files = None,
    root: Root = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare CLIP's weights with their checksums; exit status 0, or 1 if something is wrong."""
    from pd_core.data.acquire.fetch import check_weights

    folder = places(root)[1]
    problems = {file.name: check_weights(file, folder) for file in _weights(files)}
    if as_json:
        rows = [{"name": name, "ok": not why, "problem": why} for name, why in problems.items()]
        typer.echo(json.dumps(rows, indent=2))
    else:
        for name, why in problems.items():
            say(f"{name}: {why or 'ok'}")
    if any(problems.values()):
        raise typer.Exit(1)


@_weights_mirror.command("push")
def push_weights(files: Files = None, root: Root = None) -> None:
    """Copy CLIP's weights to the mirror; goes on where it stopped."""
    for file in _weights(files):
        _fetcher(root).push_weights(file, _mirror())


@_weights_mirror.command("pull")
def pull_weights(files: Files = None, root: Root = None) -> None:
    """Get CLIP's weights from the mirror; goes on where it stopped."""
    for file in _weights(files):
        _fetcher(root).pull_weights(file, _mirror())


def places(root: Path | None) -> tuple[Path, Path]:
    """Return the repository's root, and the folder of all data sets: `root`, if given."""
    project = Path(load_params(PARAMS).profile.root) if PARAMS.is_file() else Path()
    return project, root or load_settings().data_root or project / DATA / "raw"


def _sources(names: list[str]) -> list[Source]:
    for name in names:
        if name not in source_names() and name in dataset_names():
            built = dataset_spec(name).layout is Layout.EMBEDDED
            why = "it is built from installed packages" if built else "it has no known source"
            raise BadParams(f"there is nothing to fetch for data set '{name}': {why}")
    return [source_of(name) for name in names]


def _weights(names: list[str] | None) -> list[RemoteFile]:
    """Return the named files, or those that the profile in this folder uses, or all."""
    used = set()
    if PARAMS.is_file():
        params = load_params(PARAMS)
        used = {Path(block.weights or "").name for block in (params.teacher, params.student)}
    known = weight_names()
    return [weights_file(name) for name in names or [one for one in known if one in used] or known]


def _fetcher(root: Path | None) -> Fetcher:
    from pd_core.data.acquire.fetch import Fetcher

    return Fetcher(places(root)[1], _watch, say)


def _mirror() -> Mirror:
    from pd_core.data.acquire.mirror import open_mirror

    settings = load_settings()
    access, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    return open_mirror(
        settings.mirror,
        endpoint=settings.s3_endpoint_url,
        access_key=None if access is None else access.get_secret_value(),
        secret_key=None if secret is None else secret.get_secret_value(),
    )


@contextmanager
def _watch(title: str) -> Iterator[OnProgress]:
    with Reporter(title, "MB") as report:
        yield lambda done, total: report.progress(done // _MB, max(done, total) // _MB)


def _tell_plan(source: Source) -> None:
    from pd_core.data.acquire.fetch import trust

    say(f"{source.name}: to {source.folder}/")
    if source.by_hand:
        say(f"  by hand: {source.by_hand.format(folder=source.folder)}")
    for number, route in enumerate(source.routes):
        say("  from the origin" if number == 0 else "  or, if that fails")
        for file in route:
            say(f"    {file.name}")
            for address in file.addresses:
                say(f"      {address.url} ({trust(address)})")


def _recorded(name: str, project: Path) -> prints.Fingerprint | None:
    path = prints.path_of(name, project)
    return prints.read(path, name) if path.is_file() else None


def _lines(verdict: Verdict) -> list[str]:
    if not verdict.ok:
        return [f"{verdict.name}: {problem}" for problem in verdict.problems]
    counts = verdict.counts
    return [
        f"{verdict.name}: ok, {counts['classes']} classes, {counts['train']} train, "
        f"{counts['val']} validation and {counts['test']} test pictures ({verdict.road})"
    ]


def _print_table(rows: list[dict[str, Any]], data_root: Path) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")  # fits 80 columns
    state = "state,\nfingerprint"
    for column in ("name", "classes", "images", "where", state):
        numbers = column in ("classes", "images")
        table.add_column(column, justify="right" if numbers else "left", no_wrap=column != state)
    for row in rows:
        images = f"{row['images']:,}" if row["images"] else ""
        level = f"\n{row['fingerprint']}" if row["fingerprint"] else ""
        classes, state = str(row["classes"] or ""), f"{row['state']}{level}"
        table.add_row(row["name"], classes, images, row["where"], state)
    Console().print(table)
    typer.echo(f"folders are below {data_root}")
