"""Projects of the user's own: a folder with git, DVC, parameters, and links to the images.

The files are made from those of this repository, which a wheel has in the folder `templates`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from pd_core.core.atomic import write_bytes, write_folder
from pd_core.core.errors import BadParams, PdError
from pd_core.core.options import Trained
from pd_core.data.acquire.sources import WEIGHTS
from pd_core.data.catalog import fingerprint as prints
from pd_core.data.catalog.catalogue import AddedLabels, OwnImages, dataset_names, is_list
from pd_core.data.catalog.own import own_sources
from pd_core.models.model_table import model_rows
from pd_core.pipeline.clips import Clip
from pd_core.pipeline.processes import DVC
from pd_core.pipeline.provenance import identity
from pd_core.pipeline.stages.params import DATA, PARAMS, TEMPLATES, is_own_name, load_params

RAW = DATA / "raw"
"""Folder of images and weights in a project, which git ignores."""

_MOST_THREADS = 8  # as in paper/params.yaml
_COLUMN = 30  # of comments
_IGNORED = """\
# Images, weights, checkpoints, cached features; and outputs of stages, which DVC stores
/data/
# Results page
/build/
# MLflow
/mlflow.db*
/mlruns/
/mlartifacts/
# Settings of this machine
.env
.venv/
dvc_plots/
__pycache__/
"""
_HEADER = """\
# Parameters of {name}, made by `promptkd new`; every number with its source.
#
# "paper" is PromptKD (CVPR 2024, arXiv 2403.02781), "PromptSRC" the teacher's method (ICCV 2023),
# "code" what the published code of PromptKD does; "tuned" means tuned on validation images of the
# embedded benchmark. A key may be overridden for one data set: datasets.<name>.<stage>.<key>; with
# DVC, `dvc exp run -S ++datasets.<name>.<stage>.<key>=<value>`. A key without a value is null.

"""


def create(
    folder: Path, images: OwnImages, largest: int, teacher: Clip, student: Clip, *, small: bool
) -> None:
    """Make a project with one data set, named as the folder, and commit it.

    Args:
        folder: to make.
        images: paths from the root of the file system.
        largest: number of labelled images of the largest class, the most `prepare.shots`.
        teacher: CLIP of the teacher.
        student: CLIP of the student.
        small: choose settings for a CPU.

    Raises:
        BadParams: the folder exists, or its name is no name of a data set.
        PdError: git is not installed, or images or weights are refused; there is no folder then.
    """
    check_free(folder)
    with write_folder(folder) as new:
        for clip in (teacher, student):
            clip.put(new / RAW)
        _write_files(new, folder.name)
        params = _params(folder.name, teacher, student, small=small)
        own = add_images(new, new / RAW, folder.name, images)
        _set_row(params, folder.name, own, largest)
        (new / PARAMS).write_text(_HEADER.format(name=folder.name) + text_of(params), "utf-8")
        load_params(new / PARAMS)
        _commit(new)


def check_free(folder: Path) -> None:
    """Refuse a folder that exists or cannot name a data set, and a machine without git.

    Raises:
        BadParams: the folder exists, or its name is no name of a data set.
        PdError: git is not installed.
    """
    check_name(folder.name)
    if folder.exists() or folder.is_symlink():
        raise BadParams(f"'{folder}' exists already; give another name, or remove it first")
    if shutil.which("git") is None:
        raise PdError("git is not installed, and a project needs it; install git first")


def check_name(name: str) -> None:
    """Raise BadParams unless a data set of the user's own may have this name."""
    if not is_own_name(name):
        raise BadParams(f"'{name}' names no data set; give letters, digits and underscores")
    if name in dataset_names():
        raise BadParams(f"'{name}' is a data set of the catalogue; give another name")


def add_dataset(file: Path, data_root: Path, name: str, images: OwnImages, largest: int) -> None:
    """Add a data set to a `params.yaml`, whose comments stay, and write its fingerprint.

    Args:
        file: the `params.yaml`.
        data_root: folder of all images, which gets links.
        name: of the data set.
        images: paths from the root of the file system.
        largest: as for `create`.

    Raises:
        BadParams: the name is no valid one, or there is such a data set.
    """
    check_name(name)
    params = load_params(file)
    if name in params.datasets:
        raise BadParams(f"{file} has a data set '{name}' already; give another name")
    content = content_of(file.read_text("utf-8"))
    own = add_images(file.parent / params.profile.root, data_root, name, images)
    _set_row(content, name, own, largest)
    write_bytes(file, text_of(content).encode())


def set_added(file: Path, name: str, added: AddedLabels) -> None:
    """Record a list of added labels in a data set's row of `params.yaml`, whose comments stay."""
    own = load_params(file).for_dataset(name).prepare.own
    content = content_of(file.read_text("utf-8"))
    if own is None:
        raise BadParams(f"{file}: data set '{name}' is none of your own; it takes no labels")
    prepare = content["datasets"][name].setdefault("prepare", CommentedMap())
    block = prepare.setdefault("own", CommentedMap(own.model_dump(exclude_none=True)))
    block["added"] = CommentedMap(added.model_dump())
    write_bytes(file, text_of(content).encode())


def add_images(project: Path, data_root: Path, name: str, images: OwnImages) -> OwnImages:
    """Link images below the data root, unless they are there, and write their fingerprint.

    Returns:
        The paths below the data root.

    Raises:
        BadParams: the data root has a folder of this name.
    """
    root = data_root.resolve()
    if all((Path("/") / path).is_relative_to(root) for path in images.given):
        own = _moved(images, lambda path: (Path("/") / path).relative_to(root))
        _write_fingerprint(project, name, own, root)
        return own
    folder = data_root / name
    if folder.exists() and not all(entry.is_symlink() for entry in folder.iterdir()):
        raise BadParams(f"'{folder}' has files already; give another name, or remove it first")
    targets = _targets(images)
    with write_folder(folder) as new:
        for link, target in targets.items():
            (new / link).symlink_to(target)
        _write_fingerprint(project, name, _linked(images, targets, new.name), new.parent)
    return _linked(images, targets, name)


def _targets(images: OwnImages) -> dict[str, Path]:
    """Return the folders to link, by the name of the link; one within another needs no link."""
    folders = {
        kind: Path("/") / (Path(path).parent if is_list(path) else path)
        for kind, path in images.model_dump().items()
        if path is not None
    }
    chosen: dict[str, Path] = {}
    for kind, folder in sorted(folders.items(), key=lambda item: len(item[1].parts)):
        if not any(folder.is_relative_to(above) for above in chosen.values()):
            chosen[kind] = folder
    return chosen


def _linked(images: OwnImages, targets: dict[str, Path], name: str) -> OwnImages:
    """Return the images' paths by way of the links in a folder."""

    def below(path: Path) -> Path:
        links = ((kind, above) for kind, above in targets.items() if path.is_relative_to(above))
        kind, above = next(links)
        return Path(name, kind) / path.relative_to(above)

    return _moved(images, lambda path: below(Path("/") / path))


def _moved(images: OwnImages, change: Callable[[str], Path]) -> OwnImages:
    paths = images.model_dump().items()
    moved = {kind: path and change(path).as_posix() for kind, path in paths}
    return OwnImages.model_validate(moved)


def _write_fingerprint(project: Path, name: str, own: OwnImages, data_root: Path) -> None:
    level = prints.Level.SAMPLE
    sources = own_sources(own, data_root)
    value = prints.fingerprint(sources, data_root / own.folder, level=level)
    prints.write(prints.path_of(name, project), value)


def _write_files(new: Path, name: str) -> None:
    """Write all files that hold no parameters."""
    pipeline = _template("dvc.yaml")
    deps = "    deps:\n      - pd_core\n"  # of the stage `code`; here the package is installed
    if deps not in pipeline:
        raise PdError("the template 'dvc.yaml' has another stage `code`; install the package again")
    (new / "dvc.yaml").write_text(pipeline.replace(deps, "    always_changed: true\n", 1), "utf-8")
    (new / ".gitignore").write_text(_IGNORED, "utf-8")
    (new / "constraints.txt").write_text(_template("constraints.txt"), "utf-8")
    settings = _template(".env.example").partition("\n# The rest is for compose.yaml only.")[0]
    (new / ".env.example").write_text(f"{settings.rstrip()}\n", "utf-8")
    (new / "prefect.yaml").write_text(_deployments(), "utf-8")
    readme = Path(__file__).with_name("project_readme.md").read_text("utf-8")
    (new / "README.md").write_text(readme.replace("NAME", name), "utf-8")


def _deployments() -> str:
    """Return the deployments of a project: those of the profile in its own folder."""
    head, *blocks = re.split(r"(?=^  - name: )", _template("prefect.yaml"), flags=re.MULTILINE)
    own = "".join(block for block in blocks if "flows.benchmark.paper" not in block)
    return head + own.replace("- name: quickstart", "- name: all")


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text("utf-8")


def _params(name: str, teacher: Clip, student: Clip, *, small: bool) -> Any:
    """Return the parameters of a project without data sets, from those of this repository."""
    file = "params.yaml" if teacher.is_embedded else "paper/params.yaml"
    params = content_of(_template(file))
    params.ca.comment = None  # describes this repository
    set_value(params["profile"], "name", name, f"reports go to reports/{name}")
    set_value(params["profile"], "root", ".", "the project's root, seen from this file")
    set_value(
        params["run"], "device", "auto", "cuda if there is a GPU, else cpu; or one of these, mps"
    )
    if not teacher.is_embedded:
        cores = min(_MOST_THREADS, os.cpu_count() or 1)
        set_value(params["run"], "threads", cores, "CPU cores here, at most 8; part of the result")
        set_value(params["run"], "workers", cores, "processes that decode images; CPU cores here")
    if small:
        set_value(params["run"], "precision", "fp32", "bf16 needs AMX, AVX512-BF16 or a GPU")
    for stage, clip in (("teacher", teacher), ("student", student)):
        name = "pd_core/models/embedded.py" if clip.is_embedded else "name in open_clip"
        set_value(params[stage], "model", clip.model, name)
        set_value(params[stage], "weights", f"{RAW}/{WEIGHTS}/{clip.file}", clip.comment)
    _set_roles(params, teacher.model, student.model)
    params["tuned_student"] = {}
    params["datasets"] = CommentedMap()
    return params


def _set_roles(params: Any, teacher: str, student: str) -> None:
    """Set the teacher's method and the student's trained parts where prompts are not possible."""
    rows, comment = model_rows(), "{} cannot have all prompts, see `promptkd models show`"
    if teacher in rows and params["teacher"]["method"] not in rows[teacher].teacher:
        set_value(params["teacher"], "method", rows[teacher].teacher[0], comment.format(teacher))
    if student in rows and params["student"]["trained"] not in rows[student].student:
        part = str(Trained.NORM_AND_PROJECTOR)
        set_value(params["student"], "trained", part, comment.format(student))


def set_value(block: Any, key: str, value: object, comment: str) -> None:
    """Set a value and the comment behind it; an empty line after it stays."""
    block[key] = value
    if key not in block.ca.items:
        block.yaml_add_eol_comment(comment, key, column=_COLUMN)
        return
    token = block.ca.items[key][2]
    token.value = f"# {comment}\n{token.value.partition(chr(10))[2]}"


def _set_row(params: Any, name: str, own: OwnImages, largest: int) -> None:
    """Add a data set's row to the parameters."""
    prepare = CommentedMap(own=CommentedMap(own.model_dump(exclude_none=True)))
    for key in ("shots", "val_shots"):
        if params["prepare"][key] > largest:
            set_value(prepare, key, largest, "labelled images of the largest class")
    params["datasets"][name] = CommentedMap(prepare=prepare, teacher={}, student={})


def content_of(text: str) -> Any:
    """Return the content of a YAML file with its comments."""
    from dvc.utils.serialize import parse_yaml_for_update

    return parse_yaml_for_update(text, PARAMS)


def text_of(content: Any) -> str:
    """Return YAML in DVC's layout, so that `dvc exp run -S` changes no other lines."""
    from dvc.utils.serialize import dumps_yaml

    return str(dumps_yaml(content))


def _commit(new: Path) -> None:
    """Make a git repository and a DVC project of a folder, and commit all files.

    Raises:
        PdError: a command failed.
    """
    _run(new, "git", "init", "--quiet")
    _run(new, *DVC, "init", "--quiet")
    shutil.copytree(TEMPLATES / ".dvc" / "plots", new / ".dvc" / "plots", dirs_exist_ok=True)
    (new / ".dvc" / "config").write_text("[core]\n    analytics = false\n", "utf-8")
    _run(new, "git", "add", "--all")
    commit = ("commit", "--quiet", "--message", "A project of PromptKD")
    _run(new, "git", *identity(new), *commit)


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it printed nothing"]
        raise PdError(f"`{' '.join(command[-3:])}` failed: {lines[-1]}; see what it needs")
