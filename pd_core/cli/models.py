"""Verbs that use models: import published checkpoints, predict, change the classes, serve."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pd_core.cli.common import AsJson, note, open_store, print_json, say, setting_of
from pd_core.cli.registry import DryRun
from pd_core.core.config import ClipConfig
from pd_core.core.errors import BadArtifact, MissingFile, UnknownName, missing
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.settings import compute_with, load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, DatasetParams, Params, load_params

if TYPE_CHECKING:
    from pd_core.mlops.predictor import Predictor
    from pd_core.mlops.registry import Version
    from pd_core.mlops.registry.classes import Change, Embed
    from pd_core.models.clip import ClipTowers
    from pd_core.models.portable.student import PortableStudent
    from pd_core.models.published_checkpoint import Imported

app = typer.Typer()
classes = typer.Typer(help="Other classes for a registered student, without training.")
app.add_typer(classes, name="classes")

File = Annotated[Path, typer.Argument(help="A checkpoint of the published code.")]
Name = Annotated[
    str | None,
    typer.Option(help="The data set whose overrides in params.yaml count.", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder to write; data/<kind>/<file's name> by default.", show_default=False),
]
Model = Annotated[
    str, typer.Argument(help="A data set, with /<version> or @<alias> or not.", show_default=False)
]
Names = Annotated[list[str], typer.Argument(help="Class names.", show_default=False)]


@app.command("import-teacher")
def import_teacher(file: File, name: Name = None, out: Out = None) -> None:
    """Make our teacher out of one that the published code tuned.

    Model, weights, depths and lengths of the prompts are those of the block `teacher`.
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
    """Make our student out of one that the published code distilled.

    Model, weights, depth and length of the prompts are those of the block `student`.
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
    """Load the CLIP that a block names, on the CPU: nothing is computed with it."""
    from pd_core.models.clip import load_clip

    return load_clip(block.model, block.weights)


def _keep(imported: Imported[Any], folder: Path, name: str) -> None:
    imported.model.save(folder / name)
    for line in (*imported.notes, f"written to {folder}"):
        say(line)


@app.command()
def predict(
    model: Annotated[
        str,
        typer.Argument(
            help="A data set, with /<version> or @<alias> or not, or a student's folder.",
            show_default=False,
        ),
    ],
    images: Annotated[list[Path], typer.Argument(help="Picture files.", show_default=False)],
    top: Annotated[int, typer.Option(help="How many names at most.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Name what is in pictures; of a data set alone, with its champion."""
    for image in images:
        if not image.is_file():
            raise missing("picture", image, "check the path")
    rankings = _load(model).classify_many(images, top=top)
    if as_json:
        rows = []
        for image, ranking in zip(images, rankings, strict=True):
            named = [{"name": name, "probability": value} for name, value in ranking]
            rows.append({"image": str(image), "predictions": named})
        print_json(rows)
        return
    for image, ranking in zip(images, rankings, strict=True):
        say(str(image))
        for name, probability in ranking:
            say(f"  {probability:6.1%}  {name}")


@classes.command()
def add(model: Model, names: Names, dry_run: DryRun = False) -> None:
    """Add classes: the teacher's text tower makes their vectors."""
    from pd_core.mlops.registry.classes import add as added

    _change(model, lambda made, student: added(student, names, _embed(made, student)), dry_run)


@classes.command()
def remove(model: Model, names: Names, dry_run: DryRun = False) -> None:
    """Take classes away."""
    from pd_core.mlops.registry.classes import remove as removed

    _change(model, lambda _, student: removed(student, names), dry_run)


@classes.command()
def rename(
    model: Model,
    old: Annotated[str, typer.Argument(help="Its name.", show_default=False)],
    new: Annotated[str, typer.Argument(help="What it shall be called.", show_default=False)],
    recompute: Annotated[
        bool, typer.Option("--recompute", help="With the teacher's vector of the new name.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Give a class another name; the same pictures belong to it, unless its vector is computed."""
    from pd_core.mlops.registry.classes import rename as renamed

    def make(version: Version, student: PortableStudent) -> Change:
        return renamed(student, old, new, _embed(version, student) if recompute else None)

    _change(model, make, dry_run)


def _change(model: str, make: Callable[[Version, PortableStudent], Change], dry_run: bool) -> None:
    from pd_core.mlops import registry
    from pd_core.mlops.registry.classes import register_change

    store = open_store()
    version = registry.find(store, model)
    change, made = register_change(
        store,
        version,
        partial(make, version),
        experiment=load_settings().mlflow_experiment,
        dry_run=dry_run,
    )
    start = f"version {version.number} of '{version.name}': {change.text}"
    if made is None:
        say(f"{start}; {len(change.names)} classes; nothing is registered")
    else:
        known = "" if made.created else ", which was there already"
        say(
            f"{start}; {len(change.names)} classes, version {made.version}{known}; "
            f"`promptkd registry promote {version.dataset}/{made.version}` makes it champion"
        )


def _load(model: str) -> Predictor:
    """Load a student from a folder, or the registry: its champion, or else its newest."""
    from pd_core.mlops.predictor import load_student

    if Path(model).is_dir():
        return load_student(model)
    from pd_core.mlops import registry

    store = open_store()
    try:
        version = registry.find(store, model, default=registry.CHAMPION)
    except UnknownName:
        version = registry.find(store, model)  # what is not there at all is refused here
        note(f"'{version.name}' has no champion; version {version.number} answers, its newest")
    with TemporaryDirectory() as folder:
        return load_student(registry.fetch(store, version, Path(folder)) / registry.BUNDLE)


def _embed(version: Version, student: PortableStudent) -> Embed:
    """Load what made the class vectors of a version.

    Raises:
        MissingFile: it is not at hand.
        BadArtifact: it is not the one that the version was distilled from.
    """
    from pd_core.core.options import TextFeatures
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
    return lambda names: build(source, names).vectors


def _original(version: Version, folder: Path, stage: str) -> Path:
    """Return the file of a stage that a version was made with."""
    from pd_core.mlops import registry
    from pd_core.pipeline.provenance import content_hash

    file, remedy = folder / f"{stage}.safetensors", f"dvc pull {stage}@{folder.name}"
    if not file.is_file():
        raise MissingFile(
            f"new class vectors need '{file}', which is not here; get it with `{remedy}`"
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
            help="A data set, for its champion, which may move; or greek@challenger, greek/3.",
            show_default=False,
        ),
    ],
    port: Annotated[int, typer.Option(help="0 for a free one.", min=0, max=65535)] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    batch: Annotated[int, typer.Option(help="Pictures that are classified together.", min=1)] = 32,
    waiting: Annotated[int, typer.Option(help="Pictures that may wait.", min=1)] = 256,
    threads: Annotated[
        int, typer.Option(help="Threads of the model; 0 for as many as it is worth.", min=0)
    ] = 0,
    most_bytes: Annotated[int, typer.Option(help="Of a picture.", min=1)] = 20 * 2**20,
    most_pixels: Annotated[int, typer.Option(help="Of a picture.", min=1)] = 50_000_000,
    most_pictures: Annotated[int, typer.Option(help="Of a request.", min=1)] = 64,
    upload_seconds: Annotated[float, typer.Option(help="For a request to come.", min=0.01)] = 30,
    answer_seconds: Annotated[float, typer.Option(help="For its answer.", min=0.01)] = 30,
    poll: Annotated[
        float, typer.Option(help="Seconds between looks whether the alias moved.", min=0.1)
    ] = 5,
) -> None:
    """Serve a registered student over HTTP, with a page to try pictures on.

    It ends with status 0 at SIGTERM or Ctrl-C, after it answered what had come.
    """
    cores = os.cpu_count() or 1
    compute_with(threads or cores)  # at most; before torch is imported
    from pd_core.mlops.serving import app as server
    from pd_core.mlops.serving import model_manager
    from pd_core.mlops.serving.requests import Limits
    from pd_core.mlops.serving.worker import Power

    listening = server.listen(host, port)
    keeper = model_manager.keep(open_store(), model, Power(most_pixels, cores, threads))
    limits = Limits(
        batch=batch,
        waiting=waiting,
        pictures=most_pictures,
        picture_bytes=most_bytes,
        upload_seconds=upload_seconds,
        answer_seconds=answer_seconds,
    )
    application = server.build(server.Service(keeper, limits), poll=poll)
    _log_to_stderr()
    version = keeper.current.version
    typer.echo(f"serving {version.name}, version {version.number}, at {server.address(listening)}")
    server.run(application, listening, drain_seconds=answer_seconds)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Masked("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("uvicorn", "python_multipart", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)  # not each bad request is worth a line


class _Masked(logging.Formatter):
    """Hides passwords, wherever they come from."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's lines."""
        return masked(super().format(record))
