"""Verbs of projects of the user's own: make one, add a data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pd_core.cli.common import Reporter, say
from pd_core.core.errors import BadData, BadParams, MissingFile, PdError, missing
from pd_core.data.catalog.catalogue import LISTS, OwnImages, is_list, own_spec
from pd_core.pipeline.settings import load_settings
from pd_core.pipeline.stages.params import PARAMS

if TYPE_CHECKING:
    from pd_core.data.acquire.overview import Overview
    from pd_core.data.acquire.sources import RemoteFile

Labelled = Annotated[
    Path,
    typer.Option(
        help="Folder with a folder of images for each class, or a list.", show_default=False
    ),
]
Unlabelled = Annotated[
    Path | None, typer.Option(help="Folder of images without labels.", show_default=False)
]
Test = Annotated[
    Path | None,
    typer.Option(help="Folder or list of labelled test images.", show_default=False),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="MODEL:TAG or MODEL:FILE, a model of open_clip; or an embedded model.",
        show_default=False,
    ),
]


def new(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="NAME", help="Folder to make; its name is the data set's.", show_default=False
        ),
    ],
    labelled: Labelled,
    unlabelled: Unlabelled = None,
    test: Test = None,
    teacher: Model = None,
    student: Model = None,
    small: Annotated[
        bool, typer.Option("--small", help="ViT-B/16 -> ViT-B/32 and fp32, for CPUs.")
    ] = False,
) -> None:
    """Make a project for your own images: a folder with git, DVC, parameters and links.

    The default is the paper's teacher, ViT-L/14, and student, ViT-B/16, with OpenAI's weights.
    """
    from pd_core.pipeline import project
    from pd_core.pipeline.clips import clip_of

    project.check_free(folder)
    if load_settings().data_root is not None:
        raise BadParams("PD_DATA_ROOT is set, and a project has data/raw of its own; unset it")
    images = images_of(labelled, unlabelled, test)
    overview = verified(folder.name, images)
    large, little = ("ViT-B-16", "ViT-B-32") if small else ("ViT-L-14", "ViT-B-16")
    clips = (
        clip_of("teacher", teacher or f"{large}:openai", _fetch),
        clip_of("student", student or f"{little}:openai", _fetch),
    )
    if clips[0].is_embedded != clips[1].is_embedded:
        raise BadParams("an embedded CLIP goes with an embedded one: give both, or none")
    project.create(folder, images, _largest(overview), *clips, small=small)
    _described(folder.name, overview, images, folder)
    say(f"project '{folder}': {clips[0].model} -> {clips[1].model}; next:")
    promote = f"promptkd registry promote {folder.name}" + " --accept-unknown" * (test is None)
    for command in (f"cd {folder}", "dvc repro", promote, f"promptkd serve {folder.name}"):
        say(f"  {command}")


def add(
    name: Annotated[str, typer.Argument(help="Name of the data set.", show_default=False)],
    labelled: Labelled,
    unlabelled: Unlabelled = None,
    test: Test = None,
) -> None:
    """Add your own images as a data set: row in params.yaml, links, fingerprint."""
    from pd_core.cli.data import places
    from pd_core.pipeline import project

    project.check_name(name)
    images = images_of(labelled, unlabelled, test)
    overview = verified(name, images)
    project.add_dataset(PARAMS, places(None)[1], name, images, _largest(overview))
    _described(name, overview, images, Path())
    say(f"added to {PARAMS}; commit it and fingerprints/{name}.json, then `dvc repro`")


def images_of(labelled: Path, unlabelled: Path | None, test: Path | None) -> OwnImages:
    """Return the locations of images, seen from the root of the file system.

    Raises:
        MissingFile: a folder or a list is missing.
        BadParams: a path is neither.
    """
    given = {"labelled": labelled, "unlabelled": unlabelled, "test": test}
    paths = {kind: _seen(path, f"--{kind}") for kind, path in given.items() if path is not None}
    return OwnImages.model_validate(paths)


def _seen(path: Path, option: str) -> str:
    """Return a path without links in it, seen from the root of the file system."""
    real = path.expanduser().resolve()
    if not real.exists():
        raise missing(f"images of {option}", path, "correct the path")
    if not real.is_dir() and not is_list(real.name):
        raise BadParams(f"{option} {path}: is neither a folder nor a list ({', '.join(LISTS)})")
    return os.path.relpath(real, "/")


def verified(name: str, images: OwnImages) -> Overview:
    """Verify images and print their numbers and the notes.

    Raises:
        BadData: there is a problem, of which the first is named.
    """
    from pd_core.cli.data import lines_of
    from pd_core.data.acquire.verify import verify

    with Reporter(f"verify {name}", "images") as progress:
        report = verify(own_spec(name, images), Path("/"), on_progress=progress.progress)
    if report.overview is None or not report.ok:
        first, *others = report.problems
        more = f" (and {len(others)} more problems)" if others else ""
        raise BadData(f"{name}: {first}{more}")
    for line in lines_of(report):
        say(line)
    return report.overview


def _largest(overview: Overview) -> int:
    return max(row.train for row in overview.classes)


def _described(name: str, overview: Overview, images: OwnImages, project: Path) -> None:
    """Print the classes, and write the contact sheet."""
    from pd_core.cli.own_images import describe

    for line in describe(name, overview, Path("/") / images.folder, project):
        say(line)


def _fetch(file: RemoteFile, data_root: Path) -> None:
    """Fetch weights from the mirror, if there is one, or their address.

    Raises:
        MissingFile: neither has them.
    """
    from pd_core.cli.data import fetcher, mirror

    try:
        if load_settings().mirror:
            fetcher(data_root).pull_weights(file, mirror())
        else:
            fetcher(data_root).fetch_weights(file)
    except PdError as error:
        raise MissingFile(
            f"weights '{file.name}' cannot be had ({str(error)[:200]}); give a file with "
            "--teacher or --student MODEL:FILE, set PD_MIRROR to a mirror that has them, or start "
            "again where there is a network"
        ) from None
