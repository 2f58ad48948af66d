"""Versions of `promptkd-tiny` for tests: light models in a registry, and a project behind them."""

import shutil
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import yaml
from git_repository import commit as commit
from git_repository import git as git
from promoting import NAME

from pd_core.core.artifacts import read_json, write_json, write_sums
from pd_core.mlops import registry, tracking
from pd_core.mlops.registry import Version, register, trial
from pd_core.mlops.registry.trial import Task, Trial
from pd_core.mlops.tracking import LINEAGE, write_lineage
from pd_core.pipeline import provenance
from pd_core.pipeline.provenance import Lineage

SCRIPT = Path(__file__).with_name("brightness_model.py")
OUTPUTS = (
    "data/prepare/tiny",
    "data/teacher/tiny/teacher.safetensors",
    "data/class_vectors/tiny",
    "data/student/tiny/student.safetensors",
)
LEVELS = {name: 63.5 + 25 * label for label, name in enumerate(tiny.NAMES)}
"""How bright the pictures of `tiny.prepared` are."""


def worse(*names: str) -> dict[str, float]:
    """Let the model know some classes by a wrong brightness."""
    return {**LEVELS, **dict.fromkeys(names, 500.0)}


def model(folder: Path, levels: Mapping[str, float] = LEVELS) -> Path:
    """Make a model's folder."""
    bundle = folder / "student"
    write_json(bundle / "model.json", {"names": list(levels), "levels": levels})
    write_sums(bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import pyfunc

        pyfunc.save_model(
            str(folder / "model"),
            python_model=str(SCRIPT),
            artifacts={"student": str(bundle)},
            signature=register.signature(),
            pip_requirements=[],
        )
    return folder / "model"


def publish(store: str, folder: Path, origin: Lineage | None = None, /, **tags: str) -> Version:
    """Store a model's folder and make it the newest version."""
    origin = origin or Lineage()
    mlflow = tracking.client(store)
    if NAME not in registry.models(store):
        mlflow.create_registered_model(NAME)
    run = mlflow.create_run(tracking.experiment_id(mlflow, store, "tests"))
    mlflow.log_artifacts(run.info.run_id, str(folder), "model")
    write_lineage(mlflow, run.info.run_id, origin, NAME)
    usual = {
        "kind": "distilled",
        "profile": "quickstart",
        "dataset": "tiny",
        registry.FILES: provenance.content_hash(folder),
        LINEAGE: origin.digest(),
    }
    mlflow.create_model_version(
        NAME,
        f"{run.info.artifact_uri}/model",
        run_id=run.info.run_id,
        tags={**usual, **tags},
    )
    return registry.versions(store, NAME)[-1]


def stored(store: str, version: Version) -> Path:
    """Return where a version's files lie, in a local store."""
    client = tracking.client(store)
    return Path(client.get_model_version_download_uri(version.name, str(version.number)))


def make_project(folder: Path) -> Path:
    """Make a project whose stages have run, and commit it."""
    folder.mkdir()
    shutil.copyfile(Path(__file__).parents[2] / "params.yaml", folder / "params.yaml")
    (folder / "train.py").write_text("print('trained')\n")
    tiny.prepared(folder / OUTPUTS[0])
    for path in (OUTPUTS[1], f"{OUTPUTS[2]}/class_vectors.safetensors", OUTPUTS[3]):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(path)
    git(folder, "init", "--quiet")
    (folder / ".gitignore").write_text("/data/\n")
    write_lock(folder)
    commit(folder)
    return folder


def write_lock(
    folder: Path,
    params: Mapping[str, Any] | None = None,
    code: Mapping[str, str] | None = None,
) -> None:
    """Write `dvc.lock` as DVC does after it has run the stages; `code` are hashes by file."""
    hashes = {path: provenance.content_hash(folder / path) for path in (*OUTPUTS, "train.py")}
    hashes |= code or {}
    used = {"params.yaml": {"run.seed": 1, "student.lr": 0.0006, **(params or {})}}
    stages: dict[str, Any] = {}
    for place, (stage, path) in enumerate(
        zip(("prepare", "teacher", "class_vectors", "student"), OUTPUTS, strict=True)
    ):
        stages[f"{stage}@tiny"] = {
            "deps": [_entry(hashes, dep) for dep in ("train.py", *(code or ()), *OUTPUTS[:place])],
            "params": used,
            "outs": [_entry(hashes, path)],
        }
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def _entry(hashes: Mapping[str, str], path: str) -> dict[str, str]:
    return {"path": path, "hash": "md5", "md5": hashes[path]}


def lineage(folder: Path) -> Lineage:
    """Return the lineage of a student that a project made."""
    outs = provenance.hashes([Path(path) for path in OUTPUTS], folder)
    return Lineage.of_commit(folder, outs=outs)


def dirty(folder: Path) -> Lineage:
    """Return the lineage of a student that a project made with uncommitted changes."""
    return replace(lineage(folder), git_dirty="true")


def older_tags(folder: Path) -> dict[str, str]:
    """Return the same as the tags of a version that was registered without `lineage.json`."""
    made = lineage(folder)
    return {
        "kind": "distilled",
        "profile": "quickstart",
        "dataset": "tiny",
        "git_commit": made.git_commit,
        "git_dirty": made.git_dirty,
        **{f"out:{path}": value for path, value in made.outs.items()},
    }


def champion(store: str) -> int | None:
    """Return who is champion; None if nobody is."""
    return next((v.number for v in registry.versions(store, NAME) if "champion" in v.aliases), None)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("registered") / "project")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("good"))


@pytest.fixture
def store(tmp_path: Path, empty_database: Path) -> str:
    shutil.copyfile(empty_database, tmp_path / tracking.DATABASE)
    return tracking.open_store(tmp_path)


@pytest.fixture
def tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try each model on the same pictures once, and here: a process of its own takes seconds."""
    run = trial.run
    monkeypatch.setattr(trial, "subprocess", SimpleNamespace(run=_run_here))
    monkeypatch.setattr(trial, "_end_with", lambda _: None)

    def run_or_recall(model: Path, task: Task, out: Path) -> Trial:
        pictures = provenance.content_hash(Path(task.images))
        key = (provenance.content_hash(model), pictures, replace(task, images=""))
        if key not in _TRIED:
            _TRIED[key] = run(model, task, out)
        return _TRIED[key]

    monkeypatch.setattr(trial, "run", run_or_recall)


_TRIED: dict[object, Trial] = {}


def _run_here(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
    """Do what the process of a trial does."""
    model, task, out = map(Path, command[-3:])
    given = read_json(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial.main(model, Task(**{**given, "paths": tuple(given["paths"])}), out)
    return subprocess.CompletedProcess(command, 0, b"", b"")


@pytest.fixture
def tried_in_a_process(tried_once: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """Try each model in a process of its own after all, as it is done in earnest."""
    monkeypatch.setattr(trial, "subprocess", subprocess)
    monkeypatch.setattr("registered._TRIED", {})


@pytest.fixture
def own_project(project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(project, tmp_path / "own", symlinks=True))
