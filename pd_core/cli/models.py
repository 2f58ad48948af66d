"""Verbs that use models: import published checkpoints, change the classes, serve."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pd_core.cli.common import note, open_store, say, setting_of, version_of
from pd_core.cli.registry import DryRun
from pd_core.core.config import ClipConfig
from pd_core.core.errors import BadArtifact, MissingFile
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.settings import compute_with, load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, DatasetParams, Params, load_params

if TYPE_CHECKING:
    from torch import Tensor

    from pd_core.mlops.registry import Version
    from pd_core.mlops.registry.classes import Change, Embed
    from pd_core.models.clip import ClipTowers
    from pd_core.models.portable.student import PortableStudent
    from pd_core.models.published_checkpoint import Imported

app = typer.Typer()
classes = typer.Typer(help="Change the classes of a registered student, without training.")
app.add_typer(classes, name="classes")

File = Annotated[Path, typer.Argument(help="Checkpoint of the published code.")]
Name = Annotated[
    str | None,
    typer.Option(help="Data set whose overrides in params.yaml apply.", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Output directory (default: data/<kind>/<file name>).", show_default=False),
]
Reference = Annotated[
    str, typer.Argument(help="Data set, data set/version or data set@alias (default: champion).")
]
Names = Annotated[list[str], typer.Argument(help="Class names.", show_default=False)]


@app.command("import-teacher")
def import_teacher(file: File, name: Name = None, out: Out = None) -> None:
    """Convert a teacher that the published code tuned.

    Model, weights, depths and lengths of the prompts are read from the block `teacher`.
    """
    block = _params(name).teacher
    towers = _towers(block)
    from pd_core.core.artifacts import file_hash
    from pd_core.models.published_checkpoint import import_teacher as read

    imported = read(
        file,
        towers,
        text_depth=block.text_depth,
        text_length=block.text_length,
        image_depth=block.image_depth,
        image_length=block.image_length,
        template=block.template,
    )
    _keep(imported, out or DATA / "teacher" / file.name, "teacher.safetensors")
    say(f"for the stage `teacher`: original: {{path: {file}, sha256: {file_hash(file)}}}")


@app.command("import-student")
def import_student(file: File, name: Name = None, out: Out = None) -> None:
    """Convert a student that the published code distilled.

    Model, weights, depth and length of the prompts are read from the block `student`.
    """
    block = _params(name).student
    towers = _towers(block)
    from pd_core.models.published_checkpoint import import_student as read

    imported = read(file, towers, image_depth=block.image_depth, image_length=block.image_length)
    _keep(imported, out or DATA / "student" / file.name, "student.safetensors")


def _params(name: str | None) -> Params | DatasetParams:
    params = load_params(PARAMS)
    compute_with(params.run.threads)
    return params if name is None else params.for_dataset(name)


def _towers(block: ClipConfig) -> ClipTowers:
    """Load the CLIP of a block, on the CPU."""
    from pd_core.models.clip import load_clip

    return load_clip(block.model, block.weights)


def _keep(imported: Imported[Any], folder: Path, name: str) -> None:
    imported.model.save(folder / name)
    for line in (*imported.notes, f"written to {folder}"):
        say(line)


@classes.command()
def add(model: Reference, names: Names, dry_run: DryRun = False) -> None:
    """Add classes; the teacher's text tower computes their vectors."""
    from pd_core.mlops.registry import classes

    def make(version: Version, student: PortableStudent) -> Change:
        return classes.add(student, names, _embed(version, student))

    _change(model, make, dry_run)


@classes.command()
def remove(model: Reference, names: Names, dry_run: DryRun = False) -> None:
    """Remove classes."""
    from pd_core.mlops.registry import classes

    _change(model, lambda _, student: classes.remove(student, names), dry_run)


@classes.command()
def rename(
    model: Reference,
    old: Annotated[str, typer.Argument(help="Class to rename.", show_default=False)],
    new: Annotated[str, typer.Argument(help="New name.", show_default=False)],
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute the new name's vector, by the teacher.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Rename a class; it keeps its vector, unless that is recomputed."""
    from pd_core.mlops.registry import classes

    def make(version: Version, student: PortableStudent) -> Change:
        return classes.rename(student, old, new, _embed(version, student) if recompute else None)

    _change(model, make, dry_run)


def _change(model: str, make: Callable[[Version, PortableStudent], Change], dry_run: bool) -> None:
    from pd_core.mlops.registry.classes import register_change

    store = open_store()
    version = version_of(store, model)
    change, registered = register_change(
        store,
        version,
        partial(make, version),
        experiment=load_settings().mlflow_experiment,
        dry_run=dry_run,
    )
    text = (
        f"version {version.number} of '{version.name}': {change.text}; {len(change.names)} classes"
    )
    if registered is None:
        say(f"{text}; nothing is registered")
        return
    existing = "" if registered.created else ", which was there already"
    say(
        f"{text}, version {registered.version}{existing}; `promptkd registry promote "
        f"{version.dataset}/{registered.version}` makes it champion"
    )


def _embed(version: Version, student: PortableStudent) -> Embed:
    """Return the function that computes class vectors like those of a version.

    Raises:
        MissingFile: the version's teacher or student is not here.
        BadArtifact: it is another one.
    """
    from pd_core.core.options import TextFeatures
    from pd_core.models.class_texts import check_classes
    from pd_core.models.class_vectors import build
    from pd_core.models.student import Student
    from pd_core.models.teacher import Teacher

    job = setting_of(version.dataset).job
    compute_with(job.params.run.threads)
    if student.info.get("text_features") == TextFeatures.STUDENT:
        file = _original(version, job.student, "student")
        source = Teacher(Student.load(file, _towers(job.params.student)).towers).eval()
    else:
        file = _original(version, job.teacher, "teacher")
        source = Teacher.load(file, _towers(job.params.teacher))

    def embed(names: Sequence[str], others: Sequence[str]) -> Tensor:
        for line in check_classes(
            (*others, *names), source.towers.name, source.towers.tokenize,
            template=source.template, prompt_length=source.text_length,
        ):  # fmt: skip
            note(line)
        return build(source, names).vectors

    return embed


def _original(version: Version, folder: Path, stage: str) -> Path:
    """Return the output of a stage that a version was made from."""
    from pd_core.mlops import registry
    from pd_core.pipeline.provenance import content_hash

    file, remedy = folder / f"{stage}.safetensors", f"dvc pull {stage}@{folder.name}"
    if not file.is_file():
        raise MissingFile(
            f"new class vectors need '{file}', which is missing; get it with `{remedy}`"
        )
    lineage = registry.lineage(open_store(), version)
    if lineage.outs.get(file.as_posix()) != content_hash(file):
        raise BadArtifact(
            f"'{file}' is not what version {version.number} of '{version.name}' was made with; get "
            f"it with `{remedy}` at commit {lineage.git_commit}"
        )
    return file


def serve(
    model: Annotated[
        str,
        typer.Argument(
            help="Data set, whose champion is served; or, as greek@challenger, greek/3.",
            show_default=False,
        ),
    ],
    precision: Annotated[
        Literal["fp32", "int8"] | None,
        typer.Option(help="Serve the version in another precision (default: as it is)."),
    ] = None,
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 for a free one.", min=0, max=65535)
    ] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    batch: Annotated[int, typer.Option(help="Maximum size of a batch.", min=1)] = 32,
    waiting: Annotated[
        int, typer.Option(help="Maximum number of images in the queue.", min=1)
    ] = 256,
    threads: Annotated[
        int, typer.Option(help="Threads of the model; 0 to choose by its speed.", min=0)
    ] = 0,
    most_bytes: Annotated[int, typer.Option(help="Maximum bytes of an image.", min=1)] = 20 * 2**20,
    most_pixels: Annotated[
        int, typer.Option(help="Maximum pixels of an image.", min=1)
    ] = 50_000_000,
    most_pictures: Annotated[int, typer.Option(help="Maximum images of a request.", min=1)] = 64,
    upload_seconds: Annotated[float, typer.Option(help="Upload timeout (s).", min=0.01)] = 30,
    answer_seconds: Annotated[
        float, typer.Option(help="Classification timeout (s).", min=0.01)
    ] = 30,
    poll: Annotated[
        float, typer.Option(help="Interval of checks for a moved alias (s).", min=0.1)
    ] = 5,
    per_minute: Annotated[
        int, typer.Option(help="Maximum requests of a client in a minute; 0 for any number.", min=0)
    ] = 0,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin of web pages that may send requests, or *; repeatable.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve a registered student over HTTP, with an upload page.

    PD_SERVE_API_KEYS sets API keys, one of which is then required. Ends with status 0 on SIGTERM
    or Ctrl-C, after open requests are finished.
    """
    cores = os.cpu_count() or 1
    compute_with(threads or cores)  # before torch is imported
    from pd_core.mlops.serving import app as application
    from pd_core.mlops.serving import model_manager, server
    from pd_core.mlops.serving.access import Access
    from pd_core.mlops.serving.requests import Limits
    from pd_core.mlops.serving.worker import Resources

    access = Access(load_settings().api_keys, per_minute, cors_origin or ())
    listening = server.listen(host, port)
    resources = Resources(most_pixels, cores, threads)
    _log_to_stderr()
    manager = model_manager.open_model(open_store(), model, resources, precision)
    limits = Limits(
        batch=batch,
        waiting=waiting,
        images=most_pictures,
        image_bytes=most_bytes,
        upload_seconds=upload_seconds,
        answer_seconds=answer_seconds,
    )
    service = application.build(application.Service(manager, limits), poll=poll, access=access)
    version = manager.current.version
    typer.echo(f"serving {version.name}, version {version.number}, at {server.address(listening)}")
    server.run(service, listening, drain_seconds=answer_seconds)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Masked("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("uvicorn", "python_multipart", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)  # no line for each bad request


class _Masked(logging.Formatter):
    """Formatter that hides passwords."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return masked(super().format(record))
