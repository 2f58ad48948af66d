"""The pipeline file: what re-runs when, and that the same inputs give the same bytes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import command
import pytest
import yaml
from documents import block, commands
from git_repository import commit, git

ROOT = Path(__file__).parents[2]
STAGES = ("prepare", "teacher", "class_vectors", "student", "evaluate")
NAME, OTHER = "embedded_digits", "embedded_greek"

# What the registry says of the first student of one's own pictures.
TAGS = """
import json
from mlflow import MlflowClient
client = MlflowClient("sqlite:///mlflow.db")
print(json.dumps(client.get_model_version("promptkd-my_digits", "1").tags))
"""


def run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(folder: Path, *arguments: str, **environment: str) -> str:
    done = command.dvc(folder, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def clone(folder: Path) -> Path:
    """Copy the files that git would have, as a repository of its own with an empty cache."""
    listed = run(["git", "ls-files", "-co", "--exclude-standard"], ROOT).splitlines()
    for name in listed:
        if (ROOT / name).exists() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


@pytest.fixture(scope="module", name="shipped")
def _shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return such a repository, for those who only look at it."""
    return clone(tmp_path_factory.mktemp("shipped"))


@pytest.fixture
def project(shipped: Path, tmp_path: Path) -> Path:
    """Copy its pipeline and what the stages need, to be changed."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(shipped / name, tmp_path)
    for name in (".dvc", ".git"):
        shutil.copytree(shipped / name, tmp_path / name)
    return tmp_path


def shorten(folder: Path, *names: str) -> None:
    """Keep some data sets and train for a moment only."""
    path = folder / "params.yaml"
    params: dict[str, Any] = yaml.safe_load(path.read_text())
    params["datasets"] = {name: params["datasets"][name] for name in names}
    params["teacher"].update(epochs=2, gpa_mean=2, templates=2, warmup_lr=1e-5)
    params["student"].update(epochs=1, warmup_lr=1e-5)
    params["student"]["weight_decay"] = params["teacher"]["weight_decay"] = 5e-4
    path.write_text(yaml.safe_dump(params))


def output_hashes(folder: Path) -> dict[str, list[str]]:
    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return {stage: [out["md5"] for out in block.get("outs", [])] for stage, block in lock.items()}


def test_every_data_set_has_its_five_stages(shipped: Path) -> None:
    listed = dvc(shipped, "stage", "list", "--name-only").split()
    names = yaml.safe_load((ROOT / "params.yaml").read_text())["datasets"]
    assert set(listed) == {f"{stage}@{name}" for stage in STAGES for name in names} | {
        "code",
        "report",
    }


def test_the_baseline_of_a_data_set_is_one_more_stage(project: Path) -> None:
    path = project / "params.yaml"
    text = path.read_text()
    assert "tuned_student: {}" in text
    path.write_text(text.replace("tuned_student: {}", f"tuned_student: {{{NAME}: {{}}}}"))
    edges = re.findall(r'"(\S+)" -> "(\S+)"', dvc(project, "dag", "--dot"))
    assert [edge for edge in edges if f"tuned_student@{NAME}" in edge] == [
        ("code", f"tuned_student@{NAME}"),
        (f"prepare@{NAME}", f"tuned_student@{NAME}"),
        (f"tuned_student@{NAME}", "report"),
    ]


def test_the_papers_profile_validates_and_stops_where_data_are_missing(shipped: Path) -> None:
    paper = shipped / "paper"
    listed = dvc(paper, "stage", "list", "--name-only").split()
    names = yaml.safe_load((paper / "params.yaml").read_text())["datasets"]
    stages = (*STAGES, "tuned_student")
    assert len(names) == 11
    assert set(listed) == {f"{stage}@{name}" for stage in stages for name in names} | {
        "code",
        "report",
    }
    assert '"teacher@dtd" -> "class_vectors@dtd"' in dvc(paper, "dag", "--dot")
    done = command.dvc(paper, "repro", "prepare@dtd")
    assert done.returncode != 0
    assert "failed to reproduce 'prepare@dtd': " in done.stderr
    assert "fingerprints/dtd.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["the_professor", "vit_h_to_vit_b_32", "vit_h_to_mobileclip"])
def test_a_follow_up_is_the_same_pipeline_with_its_own_weights(shipped: Path, name: str) -> None:
    folder = shipped / "paper" / name
    params = yaml.safe_load((folder / "params.yaml").read_text())

    edges = dvc(folder, "dag", "--dot")

    for dataset in params["datasets"]:
        assert f'"teacher@{dataset}" -> "class_vectors@{dataset}"' in edges
    assert (folder / "dvc.yaml").resolve() == shipped / "dvc.yaml"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_elsewhere_gives_the_same_bytes_whatever_the_environment_says(
    tmp_path: Path,
) -> None:
    hashes = []
    for number, threads in enumerate(("1", "7")):
        folder = tmp_path / f"clone{number}"
        folder.mkdir()
        shorten(clone(folder), NAME, OTHER)
        dvc(folder, "repro", "--force", "--no-run-cache", OMP_NUM_THREADS=threads)
        hashes.append(output_hashes(folder))
    assert hashes[0] == hashes[1]
    assert set(hashes[0]) == {
        *(f"{stage}@{name}" for stage in STAGES for name in (NAME, OTHER)),
        "report",
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_override_reruns_its_own_data_set_only_and_the_readmes_lines_work(
    tmp_path: Path,
) -> None:
    folder = clone(tmp_path)
    shorten(folder, NAME, OTHER)
    dvc(folder, "repro")
    assert "up to date" in dvc(folder, "status")
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["datasets"][OTHER]["student"] = {"lr": 0.02}
    path.write_text(yaml.safe_dump(params))
    status = dvc(folder, "status")
    assert f"student@{OTHER}" in status
    assert NAME not in status
    assert f"teacher@{OTHER}" not in status
    assert "hm" in dvc(folder, "metrics", "show")
    assert "greek" in run([sys.executable, "-c", block("python", "load_student")], folder)
    dvc(folder, "plots", "show")
    assert "agreement" in (folder / "dvc_plots" / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_own_pictures_become_a_registered_student_with_the_readmes_lines(tmp_path: Path) -> None:
    folder = clone(tmp_path)
    shorten(folder, NAME)
    run([sys.executable, "-c", block("python", "load_digits")], folder)
    params = folder / "params.yaml"
    row = block("yaml", "my_digits").replace("\n  ", "\n").removeprefix("  ")
    shipped = yaml.safe_load(params.read_text())
    shipped["datasets"] |= yaml.safe_load(row)
    shipped["cross_validate"] = {"my_digits": {}}
    params.write_text(yaml.safe_dump(shipped))
    programs = str(Path(sys.executable).parent)
    typed = [line for line in commands("(?:promptkd|dvc)") if "my_digits" in line]
    assert len(typed) == 4
    for line in typed:
        run(["bash", "-c", line], folder, PATH=f"{programs}:{os.environ['PATH']}")

    metrics = json.loads((folder / "data/evaluate/my_digits/metrics.json").read_text())
    assert metrics["accuracy"] == "unknown"
    assert metrics["counts"] == {"unlabelled": 1797, "labels": 160}
    found = json.loads((folder / "data/evaluate/cross_validate/my_digits.json").read_text())
    assert found["counts"] == {"labels": 160, "folds": 4}
    assert found["cross_validated"]["student"] > 20
    tags = json.loads(run([sys.executable, "-W", "ignore", "-c", TAGS], folder))
    assert tags["accuracy"] == "unknown"
    assert not any(key.startswith("student.") for key in tags)

    shutil.rmtree(folder / "data" / "raw")  # a machine without the pictures gets the outputs
    shutil.rmtree(folder / "data" / "prepare")
    dvc(folder, "repro", "evaluate@my_digits")
    assert (folder / "data/prepare/my_digits/fingerprint.json").is_file()
