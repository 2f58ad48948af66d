"""Refusals in a separate process, as users see them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import test_corrupted_params as params
from corruption import (
    OWN,
    PREPARED,
    ROOT,
    TEACHER,
    WRONG,
    Done,
    check_line,
    contents,
    copied,
    in_process,
    promptkd,
    turned,
)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("path", "data", "verb"),
    [
        (Path("params.yaml"), params.LAUGHS.encode(), "prepare"),
        (TEACHER, b"", "class-vectors"),
        (PREPARED / "split.json", WRONG["pickle"], "class-vectors"),
    ],
    ids=["params", "teacher", "prepared"],
)
def test_a_separate_process_refuses_corrupt_input(
    path: Path,
    data: bytes,
    verb: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    empty_database: Path,
) -> None:
    project = copied(tmp_path_factory.getbasetemp(), tmp_path)
    shutil.copy(empty_database, project / empty_database.name)
    clips = ROOT / "pd_core" / "models" / "weights"
    params_file = project / "params.yaml"
    text = (ROOT / "params.yaml").read_text().partition("datasets:")[0]
    own = f"{{labelled: {OWN}/labelled.csv}}"
    text += f"datasets:\n  {OWN}: {{prepare: {{own: {own}}}}}\n"
    params_file.write_text(text.replace("pd_core/models/weights", str(clips)))
    (project / path).write_bytes(data)

    before = contents(project.parent)
    done = subprocess.run(
        [sys.executable, "-m", "pd_core", verb, OWN],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    check_line(Done(done.returncode, done.stderr), path.name)
    after = contents(project.parent)
    # The record of a failed run is all that it leaves: MLflow's database, its lock, artifacts.
    left = {file for file in after if after[file] != before.get(file)}
    assert all(file.startswith(("project/mlflow.db", "project/mlruns")) for file in left)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("path", "verb"), [(TEACHER, "class-vectors"), (PREPARED / "split.json", "class-vectors")]
)
def test_a_file_corrupted_in_the_cache_of_dvc_is_refused_by_the_stage(
    path: Path, verb: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = copied(tmp_path_factory.getbasetemp(), tmp_path)

    def dvc(*arguments: str) -> int:
        command = [sys.executable, "-m", "dvc", *arguments, "-q"]
        return subprocess.run(command, cwd=project, capture_output=True, check=False).returncode

    assert dvc("init", "--no-scm") == 0
    assert dvc("add", str(path)) == 0
    (cached,) = [file for file in (project / ".dvc/cache/files/md5").rglob("*") if file.is_file()]
    (project / path).unlink()
    cached.chmod(0o644)
    cached.write_bytes(turned(0.7, 1)(cached.read_bytes()))
    cached.chmod(0o444)  # as DVC leaves it, which then takes it for whole

    restored = dvc("checkout")

    with in_process():
        done = promptkd(project, verb, OWN)
    check_line(done, path.name)
    assert (restored == 0) is (project / path).is_file()
