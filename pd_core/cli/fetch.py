"""The verbs that get data sets and weights: from their origins, or from our own mirror."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pd_core.core.errors import BadParams
from pd_core.data.acquire.sources import weight_names, weights_file
from pd_core.pipeline.progress import Reporter
from pd_core.pipeline.settings import Settings, load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, load_params

if TYPE_CHECKING:
    from pd_core.data.acquire.download import OnProgress
    from pd_core.data.acquire.mirror import Mirror
    from pd_core.data.acquire.sources import RemoteFile, Source

_MB = 2**20

data = typer.Typer()
_data_mirror = typer.Typer(help="Our own copy of the archives on S3 (PD_MIRROR).")
data.add_typer(_data_mirror, name="mirror")
weights = typer.Typer(help="CLIP's weights: get them, check them.", no_args_is_help=True)
_weights_mirror = typer.Typer(help="Our own copy of the weights on S3 (PD_MIRROR).")
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


@data.command()
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
    from pd_core.data.acquire import fetch as stage

    for source in sources:
        stage.fetch(source, places(root)[1], watch=_watch, on_note=_note)


@_data_mirror.command("push")
def push_data(names: Names, root: Root = None) -> None:
    """Copy the archives that were fetched to the mirror; goes on where it stopped."""
    from pd_core.data.acquire import fetch as stage

    settings = load_settings()
    for source in _sources(names):
        stage.push(source, places(root)[1], _mirror(settings), watch=_watch, on_note=_note)


@_data_mirror.command("pull")
def pull_data(names: Names, root: Root = None) -> None:
    """Get archives from the mirror, and unpack them; goes on where it stopped."""
    from pd_core.data.acquire import fetch as stage

    settings = load_settings()
    for source in _sources(names):
        stage.pull(source, places(root)[1], _mirror(settings), watch=_watch, on_note=_note)


@weights.command("fetch")
def fetch_weights(files: Files = None, root: Root = None) -> None:
    """Download CLIP's weights; goes on where it stopped."""
    from pd_core.data.acquire import fetch as stage

    for file in _weights(files):
        stage.fetch_weights(file, places(root)[1], watch=_watch, on_note=_note)


@weights.command()
def verify(
    files: Files = None,
    root: Root = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare CLIP's weights with their checksums; exit status 0, or 1 if something is wrong."""
    from pd_core.data.acquire import fetch as stage

    folder = places(root)[1]
    problems = {file.name: stage.check_weights(file, folder) for file in _weights(files)}
    if as_json:
        rows = [{"name": name, "ok": not why, "problem": why} for name, why in problems.items()]
        typer.echo(json.dumps(rows, indent=2))
    else:
        for name, why in problems.items():
            _note(f"{name}: {why or 'ok'}")
    if any(problems.values()):
        raise typer.Exit(1)


@_weights_mirror.command("push")
def push_weights(files: Files = None, root: Root = None) -> None:
    """Copy CLIP's weights to the mirror; goes on where it stopped."""
    from pd_core.data.acquire import fetch as stage

    settings = load_settings()
    for file in _weights(files):
        stage.push_weights(file, places(root)[1], _mirror(settings), watch=_watch, on_note=_note)


@_weights_mirror.command("pull")
def pull_weights(files: Files = None, root: Root = None) -> None:
    """Get CLIP's weights from the mirror; goes on where it stopped."""
    from pd_core.data.acquire import fetch as stage

    settings = load_settings()
    for file in _weights(files):
        stage.pull_weights(file, places(root)[1], _mirror(settings), watch=_watch, on_note=_note)


def places(root: Path | None) -> tuple[Path, Path]:
    """Return the repository's root, and the folder of all data sets.

    Args:
        root: The folder of all data sets, if the user named it.
    """
    project = Path(load_params(PARAMS).profile.root) if PARAMS.is_file() else Path()
    return project, root or load_settings().data_root or project / DATA / "raw"


def _sources(names: list[str]) -> list[Source]:
    from pd_core.data.acquire.sources import source_names, source_of
    from pd_core.data.catalog.catalogue import Layout, dataset_names, dataset_spec

    for name in names:
        if name not in source_names() and name in dataset_names():
            built = dataset_spec(name).layout is Layout.EMBEDDED
            why = "it is built from installed packages" if built else "it has no known source"
            raise BadParams(f"there is nothing to fetch for data set '{name}': {why}")
    return [source_of(name) for name in names]


def _weights(names: list[str] | None) -> list[RemoteFile]:
    return [weights_file(name) for name in names or _used_weights() or weight_names()]


def _used_weights() -> list[str]:
    """Return the known weights that the profile in the current folder uses."""
    if not PARAMS.is_file():
        return []
    params = load_params(PARAMS)
    used = {Path(block.weights or "").name for block in (params.teacher, params.student)}
    return [name for name in weight_names() if name in used]


def _mirror(settings: Settings) -> Mirror:
    from pd_core.data.acquire.mirror import open_mirror

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


def _note(text: str) -> None:
    Console().print(text, soft_wrap=True, markup=False, highlight=False)


def _tell_plan(source: Source) -> None:
    from pd_core.data.acquire.fetch import trust

    _note(f"{source.name}: to {source.folder}/")
    if source.by_hand:
        _note(f"  by hand: {source.by_hand.format(folder=source.folder)}")
    for number, route in enumerate(source.routes):
        _note("  from the origin" if number == 0 else "  or, if that fails")
        for file in route:
            _note(f"    {file.name}")
            for address in file.addresses:
                _note(f"      {address.url} ({trust(address)})")
