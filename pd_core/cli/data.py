"""Verbs of data sets and CLIP weights: list, fetch, mirror, verify, fingerprint."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from pd_core.cli.common import AsJson, Reporter, print_json, print_table, say
from pd_core.cli.own_images import SHEETS, describe
from pd_core.core.errors import BadParams
from pd_core.data.acquire.sources import (
    has_weights,
    source_names,
    source_of,
    weight_names,
    weights_file,
)
from pd_core.data.catalog import fingerprint as prints
from pd_core.data.catalog.catalogue import (
    DatasetSpec,
    Layout,
    OwnImages,
    dataset_names,
    dataset_spec,
    own_spec,
)
from pd_core.pipeline.settings import expanded, load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, load_params

if TYPE_CHECKING:
    from pd_core.core.hooks import OnProgress
    from pd_core.data.acquire.fetch import Fetcher
    from pd_core.data.acquire.mirror import Mirror
    from pd_core.data.acquire.sources import RemoteFile, Source
    from pd_core.data.acquire.verify import CheckClasses, Report

app = typer.Typer(help="List, fetch, verify and fingerprint data sets.", no_args_is_help=True)
weights = typer.Typer(help="Fetch and verify CLIP weights.", no_args_is_help=True)
_data_mirror = typer.Typer(help="Push archives to an S3 mirror (PD_MIRROR) or pull them.")
_weights_mirror = typer.Typer(help="Push weights to an S3 mirror (PD_MIRROR) or pull them.")
app.add_typer(_data_mirror, name="mirror")
weights.add_typer(_weights_mirror, name="mirror")

Names = Annotated[list[str], typer.Argument(help="Names of data sets.", show_default=False)]
Files = Annotated[
    list[str] | None,
    typer.Argument(help="Weight files (default: those in params.yaml).", show_default=False),
]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Directory of all data sets (default: PD_DATA_ROOT or data/raw).", show_default=False
    ),
]

_MB = 2**20


def spec_of(name: str) -> DatasetSpec:
    """Return the row of a data set, from params.yaml if it is the user's own, or the catalogue.

    Raises:
        UnknownName: There is no such data set.
    """
    own = _own_sets()
    return own_spec(name, own[name]) if name in own else dataset_spec(name)


def _own_sets() -> dict[str, OwnImages]:
    """Return the user's own data sets from params.yaml in the current folder."""
    if not PARAMS.is_file():
        return {}
    params = load_params(PARAMS)
    blocks = {name: params.for_dataset(name).prepare.own for name in params.datasets}
    return {name: own for name, own in blocks.items() if own}


@app.command("list")
def list_all(root: Root = None, as_json: AsJson = False) -> None:
    """List all data sets with their classes, images, location and state."""
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
        print_json(rows)
    else:
        _print_table(rows, data_root)


@app.command()
def verify(
    names: Names,
    root: Root = None,
    full: Annotated[bool, typer.Option("--full", help="Decode every image.")] = False,
    as_json: AsJson = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding processes (default: one per core).")
    ] = None,
) -> None:
    """Verify data sets: counts, lists, class folders and images. Exit status 1 on a problem.

    Without --full only the first bytes of images are read, which does not detect truncated ones.
    Own images are described by class, and shown on a contact sheet.
    """
    from pd_core.data.acquire import verify as checks

    project, data_root = places(root)
    reports = []
    for spec in [spec_of(name) for name in names]:
        with Reporter(f"verify {spec.name}", "images") as progress:
            report = checks.verify(
                spec,
                data_root,
                full=full,
                workers=workers,
                recorded=_recorded(spec.name, project),
                check_classes=_check_classes(spec.name) if spec.own else None,
                on_progress=progress.progress,
            )
        reports.append(report)
        described = []
        if report.overview is not None:
            described = describe(spec.name, report.overview, data_root / spec.folder)
        if not as_json:
            typer.echo("\n".join([*lines_of(report), *described]))
    if as_json:
        print_json([_as_dict(report) for report in reports])
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@app.command()
def fingerprint(
    names: Names,
    root: Root = None,
    full: Annotated[
        bool, typer.Option("--full", help="Hash every image, not a sample of them.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Output directory (default: fingerprints).", show_default=False),
    ] = None,
) -> None:
    """Record fingerprints of data sets. Commit the files: stages compare them with the images.

    Without --full an edit outside the sample that keeps an image's size is not detected.
    """
    from pd_core.data.catalog.readers import image_root, read_splits, sources

    project, data_root = places(root)
    for spec in [spec_of(name) for name in names]:
        path = out / f"{spec.name}.json" if out else prints.path_of(spec.name, project)
        embedded = spec.layout is Layout.EMBEDDED
        with (
            tempfile.TemporaryDirectory() if embedded else nullcontext(data_root) as folder,
            Reporter(f"fingerprint {spec.name}", "files") as progress,
        ):
            base = Path(folder) / spec.folder
            if embedded:
                read_splits(spec, base)
            value = prints.fingerprint(
                [image_root(spec, base)] if embedded else sources(spec, data_root),
                base,
                level=prints.Level.FULL if full or embedded else prints.Level.SAMPLE,
                on_progress=progress.progress,
            )
        prints.write(path, value)
        line = f"level {value.level}, {value.files} files, {value.bytes} bytes -> {path}"
        missed = "" if value.hashed == value.files else f"; {prints.MISSED}"
        typer.echo(f"{spec.name}: {line}{missed}")


@app.command()
def fetch(
    names: Names,
    root: Root = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only print the files and their addresses.")
    ] = False,
) -> None:
    """Download and unpack data sets and their split files; resumes partial downloads."""
    sources = _sources(names)
    if plan:
        for source in sources:
            _print_plan(source)
        return
    for source in sources:
        fetcher(root).fetch(source)


@_data_mirror.command("push")
def push_data(names: Names, root: Root = None) -> None:
    """Upload fetched archives to the mirror; skips those that it has."""
    for source in _sources(names):
        fetcher(root).push(source, mirror())


@_data_mirror.command("pull")
def pull_data(names: Names, root: Root = None) -> None:
    """Download archives from the mirror and unpack them; resumes partial downloads."""
    for source in _sources(names):
        fetcher(root).pull(source, mirror())


@weights.command("fetch")
def fetch_weights(files: Files = None, root: Root = None) -> None:
    """Download CLIP weights; resumes partial downloads."""
    for file in _weights(files):
        fetcher(root).fetch_weights(file)


@weights.command("verify")
def verify_weights(files: Files = None, root: Root = None, as_json: AsJson = False) -> None:
    """Compare CLIP weights with their checksums. Exit status 1 on a mismatch."""
    from pd_core.data.acquire.fetch import check_weights

    folder = places(root)[1]
    rows = _weights(files)
    problems = {file.name: check_weights(file, folder) for file in rows}
    if as_json:
        print_json(
            [{"name": name, "ok": not text, "problem": text} for name, text in problems.items()]
        )
    else:
        for file in rows:
            right = "ok" if file.checksums else "is there, and no checksum is known"
            say(f"{file.name}: {problems[file.name] or right}")
    if any(problems.values()):
        raise typer.Exit(1)


@_weights_mirror.command("push")
def push_weights(files: Files = None, root: Root = None) -> None:
    """Upload CLIP weights to the mirror; skips those that it has."""
    for file in _weights(files):
        fetcher(root).push_weights(file, mirror())


@_weights_mirror.command("pull")
def pull_weights(files: Files = None, root: Root = None) -> None:
    """Download CLIP weights from the mirror; resumes partial downloads."""
    for file in _weights(files):
        fetcher(root).pull_weights(file, mirror())


def places(root: Path | None) -> tuple[Path, Path]:
    """Return the repository's root and the data root, which is `root` if given."""
    project = Path(load_params(PARAMS).profile.root) if PARAMS.is_file() else Path()
    given = Path(expanded(str(root))) if root else load_settings().data_root
    return project, given or project / DATA / "raw"


def _sources(names: list[str]) -> list[Source]:
    for name in names:
        if name not in source_names() and name in dataset_names():
            built = dataset_spec(name).layout is Layout.EMBEDDED
            reason = "it is built from installed packages" if built else "it has no known source"
            raise BadParams(f"there is nothing to fetch for data set '{name}': {reason}")
    return [source_of(name) for name in names]


def _weights(names: list[str] | None) -> list[RemoteFile]:
    """Return the named weight files, or those that params.yaml uses, or all."""
    used = set()
    if PARAMS.is_file():
        params = load_params(PARAMS)
        files = [params.teacher.weights, params.student.weights]
        files += [teacher.weights for teacher in params.student.further_teachers]
        used = {Path(file or "").name for file in files}
    default = sorted(filter(has_weights, used))
    return [weights_file(name) for name in names or default or weight_names()]


def fetcher(root: Path | None) -> Fetcher:
    """Return the fetcher for a data root (default: that of `places`)."""
    from pd_core.data.acquire.fetch import Fetcher

    return Fetcher(places(root)[1], _watch, say)


def mirror() -> Mirror:
    """Return the mirror of the settings; raises BadParams if there is none."""
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


def _print_plan(source: Source) -> None:
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


def _check_classes(name: str) -> CheckClasses:
    from pd_core.pipeline.stages.class_check import check_classes

    return partial(check_classes, load_params(PARAMS).for_dataset(name))


def _recorded(name: str, project: Path) -> prints.Fingerprint | None:
    path = prints.path_of(name, project)
    return prints.read(path, name) if path.is_file() else None


def lines_of(report: Report) -> list[str]:
    """Return the counts of a data set, or its problems, and the notes."""
    notes = [f"{report.name}: note: {line}" for line in report.notes]
    if not report.ok:
        return [*(f"{report.name}: {problem}" for problem in report.problems), *notes]
    counts = report.counts
    summary = (
        f"{report.name}: ok, {counts['classes']} classes, {counts['train']} train, "
        f"{counts['val']} validation and {counts['test']} test images ({report.source})"
    )
    return [summary, *notes]


def _as_dict(report: Report) -> dict[str, Any]:
    """Return a report for JSON; own images have notes and an overview besides."""
    content = {
        "name": report.name, "ok": report.ok, "road": report.source,
        "counts": dict(report.counts), "problems": report.problems,
    }  # fmt: skip
    if report.overview is not None:
        sheet = (SHEETS / f"{report.name}.jpg").as_posix()
        content |= {"notes": report.notes, "contact_sheet": sheet, **asdict(report.overview)}
    return content


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
    print_table(table)
    typer.echo(f"folders are below {data_root}")
