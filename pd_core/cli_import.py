"""The verbs that take up models of the paper's published code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pd_core.blocks import StudentParams, TeacherParams
from pd_core.params import DATA, PARAMS, DatasetParams, Params, load_params
from pd_core.settings import compute_with

if TYPE_CHECKING:
    from pd_core.models.clip import ClipTowers

app = typer.Typer()

File = Annotated[Path, typer.Argument(help="A checkpoint of the published code.")]
Name = Annotated[
    str | None,
    typer.Option(help="The data set whose overrides in params.yaml count.", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder to write; data/<kind>/<file's name> by default.", show_default=False),
]


@app.command("import-teacher")
def import_teacher(file: File, name: Name = None, out: Out = None) -> None:
    """Make our teacher out of one that the published code tuned.

    Model, weights, depths and lengths of the prompts are those of the block `teacher`.
    """
    block = _params(name).teacher
    towers = _towers(block)
    from pd_core.artifacts import file_hash
    from pd_core.models.original import import_teacher as read

    imported = read(
        file,
        towers,
        text_depth=block.text_depth,
        text_length=block.text_length,
        image_depth=block.image_depth,
        image_length=block.image_length,
        template=block.template,
    )
    folder = out or DATA / "teacher" / file.name
    imported.model.save(folder / "teacher.safetensors")
    _tell(folder, imported.notes)
    Console().print(
        f"for the stage `teacher`: original: {{path: {file}, sha256: {file_hash(file)}}}",
        soft_wrap=True,
        markup=False,
    )


@app.command("import-student")
def import_student(file: File, name: Name = None, out: Out = None) -> None:
    """Make our student out of one that the published code distilled.

    Model, weights, depth and length of the prompts are those of the block `student`.
    """
    block = _params(name).student
    towers = _towers(block)
    from pd_core.models.original import import_student as read

    imported = read(file, towers, image_depth=block.image_depth, image_length=block.image_length)
    folder = out or DATA / "student" / file.name
    imported.model.save(folder / "student.safetensors")
    _tell(folder, imported.notes)


def _params(name: str | None) -> Params | DatasetParams:
    params = load_params(PARAMS)
    compute_with(params.run.threads)
    return params if name is None else params.for_dataset(name)


def _towers(block: TeacherParams | StudentParams) -> ClipTowers:
    """Load the CLIP that a block names, on the CPU: nothing is computed with it."""
    from pd_core.models.clip import load_clip

    return load_clip(block.model, block.weights)


def _tell(folder: Path, notes: tuple[str, ...]) -> None:
    console = Console()
    for note in notes:
        console.print(note, soft_wrap=True, markup=False)
    console.print(f"written to {folder}", soft_wrap=True, markup=False)
