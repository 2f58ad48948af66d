"""A project that is moved, copied or restored has its runs and models in its own folder."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from conftest import TinyStudent
from serving import champion, portable
from tracked import load_model, ran, stage, store

from pd_core.cli.doctor import Status
from pd_core.cli.doctor_servers import mlflow as check_mlflow
from pd_core.mlops import registry, tracking
from pd_core.mlops.registry.register import Origin, register
from pd_core.mlops.tracking.moved import former_folders

__all__ = ["store"]  # a fixture

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("no_onnx"),
]


@pytest.fixture
def project(store: str, tmp_path: Path, tiny_student: TinyStudent, picture: bytes) -> Path:
    """Make a project with a run and a registered student, whose folder is not the store's."""
    folder = tmp_path / "first project"
    folder.mkdir()
    shutil.move(store.removeprefix(tracking.SQLITE), folder)
    store = tracking.open_store(folder)
    ran(store)
    champion(store, portable(tiny_student), picture)
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in (folder / "mlruns").rglob("*")}


def test_a_copy_reads_and_writes_its_own_files_only(project: Path, tmp_path: Path) -> None:
    before = files(project)
    copy = Path(shutil.copytree(project, tmp_path / "second"))
    doctor = check_mlflow(copy, None)
    assert doctor.status is Status.WARNING
    assert "moved or copied" in doctor.message
    assert "promptkd registry list" in doctor.remedy

    store = tracking.open_store(copy)
    assert "moved or copied" not in check_mlflow(copy, None).message
    with stage(store, "student") as run:
        run.log_file(copy / "mlflow.db")
    assert any(run.run_id in name for name in files(copy))
    assert files(project) == before
    load_model(store, "models:/promptkd-greek@champion")
    assert files(project) == before
    assert any(name.endswith("registered_model_meta") for name in files(copy))
    with closing(sqlite3.connect(copy / tracking.DATABASE)) as database:
        assert f"{project}/" not in "\n".join(database.iterdump())


def test_a_moved_project_still_has_its_champion(project: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(project, tmp_path / "elsewhere"))
    store = tracking.open_store(moved)
    model = registry.fetch(store, registry.find(store, "greek@champion"), tmp_path / "fetched")
    assert (model / "MLmodel").is_file()
    assert not project.exists()


def test_a_database_without_its_files_is_noticed_and_its_student_is_registered_anew(
    project: Path, tmp_path: Path, tiny_student: TinyStudent, picture: bytes
) -> None:
    restored = tmp_path / "restored"
    restored.mkdir()
    shutil.copy(project / tracking.DATABASE, restored)
    shutil.rmtree(project)
    store = tracking.open_store(restored)
    doctor = check_mlflow(restored, None)
    assert doctor.status is Status.WARNING
    assert "1 registered versions have no files, as promptkd-greek/1" in doctor.message
    origin = Origin(profile="quickstart", dataset="greek")
    assert register(store, portable(tiny_student), origin, example=picture).version == 2


def test_files_that_were_left_behind_or_were_elsewhere_anyway_stay_where_they_are(
    project: Path, tmp_path: Path
) -> None:
    client = tracking.client(tracking.open_store(project))
    client.create_experiment("notebook", artifact_location=str(tmp_path / "mlruns" / "7"))
    client.create_experiment("cloud", artifact_location="s3://bucket/mlruns/cloud")
    alone = tmp_path / "database alone"
    alone.mkdir()
    shutil.copy(project / tracking.DATABASE, alone)
    client = tracking.client(tracking.open_store(alone))
    experiment = client.get_experiment_by_name("promptkd-quickstart")
    assert experiment is not None
    assert experiment.artifact_location == str(project / "mlruns" / "promptkd-quickstart")

    (alone / "mlruns").mkdir()
    client = tracking.client(tracking.open_store(alone))
    places = {entry.name: entry.artifact_location for entry in client.search_experiments()}
    assert places["promptkd-quickstart"] == str(alone / "mlruns" / "promptkd-quickstart")
    assert places["notebook"] == str(tmp_path / "mlruns" / "7")
    assert places["cloud"] == "s3://bucket/mlruns/cloud"


KILLED = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA cache_size = 1")  # so that changes reach the file before the commit
database.execute("UPDATE experiments SET artifact_location = 'half'")
database.execute("CREATE TABLE half AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL"
                 " SELECT i + 1 FROM n LIMIT 5000) SELECT i, hex(randomblob(100)) FROM n")
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_was_writing_is_rolled_back(project: Path) -> None:
    database = project / tracking.DATABASE
    before = former_folders(database)
    subprocess.run([sys.executable, "-c", KILLED, str(database)], check=False)
    assert database.with_name(f"{database.name}-journal").stat().st_size

    assert former_folders(database) == before
    tracking.open_store(project)
    assert not database.with_name(f"{database.name}-journal").exists()
