"""The command line: errors that users can correct end in one line and exit status 2."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny
from command import promptkd
from said import lines_but_counts

ROOT = Path(__file__).parents[2]
NAME = "embedded_digits"


@pytest.fixture
def project(tmp_path: Path, empty_database: Path) -> Path:
    """Return a folder with the shipped parameters, tracking database and nothing else."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copy(empty_database, tmp_path / empty_database.name)
    (tmp_path / "pd_core").symlink_to(ROOT / "pd_core")
    return tmp_path


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Check the form of a refusal, and return its line."""
    lines = lines_but_counts(done.stderr)
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def edit(project: Path, old: str, new: str) -> None:
    path = project / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_an_unknown_data_set_is_refused_with_a_guess_and_the_valid_names(project: Path) -> None:
    line = refused(promptkd(project, "prepare", "embedded_digit"))
    assert "did you mean 'embedded_digits'?" in line
    assert "embedded_greek" in line


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  temperature:", "  temprature:", "'student.temprature'; did you mean 'temperature'?"),
        ("  shots: 16", "  shots: many", 'prepare.shots = "many"'),
        ("  shots: 16", "  shots: 1000", "shots = 1000: .* give a number from 1 to 90"),
    ],
)
def test_wrong_parameters_are_refused_with_key_and_value(
    project: Path, old: str, new: str, words: str
) -> None:
    edit(project, old, new)
    assert re.search(words, refused(promptkd(project, "prepare", NAME)))
    assert not (project / "data" / "prepare" / NAME).exists()


def test_missing_weights_are_named(project: Path) -> None:
    assert promptkd(project, "prepare", NAME).returncode == 0
    edit(project, "weights/embedded-teacher.safetensors", "weights/nothing.safetensors")
    line = refused(promptkd(project, "teacher", NAME))
    assert "pd_core/models/weights/nothing.safetensors" in line


def test_a_corrupt_image_is_named_and_nothing_is_left_behind(project: Path) -> None:
    assert promptkd(project, "prepare", NAME).returncode == 0
    archive = project / "data" / "prepare" / NAME / "images.zip"
    tiny.cut_short(archive)
    line = refused(promptkd(project, "teacher", NAME))
    assert "train/" in line
    assert "not a readable" in line
    assert not list((project / "data").glob("teacher/*"))


@pytest.mark.parametrize(
    ("verb", "remedy"),
    [
        ("teacher", f"run `dvc repro prepare@{NAME}`"),
        ("tuned-student", f"params.yaml: tuned_student has no '{NAME}'; add `{NAME}: {{}}` to it"),
    ],
)
def test_a_stage_that_lacks_something_says_what_to_do(
    project: Path, verb: str, remedy: str
) -> None:
    assert remedy in refused(promptkd(project, verb, NAME))


def test_an_output_that_cannot_be_written_is_named(project: Path) -> None:
    (project / "data").write_text("a file where a folder has to be")
    line = refused(promptkd(project, "prepare", NAME))
    assert "cannot write" in line
    assert "data" in line


def test_a_folder_without_parameters_is_named(tmp_path: Path) -> None:
    line = refused(promptkd(tmp_path, "prepare", NAME))
    assert "params.yaml" in line


def test_a_tracking_server_that_does_not_answer_is_refused_before_work_starts(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PD_MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    line = refused(promptkd(project, "prepare", NAME))
    assert "127.0.0.1:9" in line
    assert not (project / "data").exists()


def test_another_seed_writes_beside_the_default_one(project: Path) -> None:
    assert promptkd(project, "prepare", NAME, "--seed", "2").returncode == 0
    assert [path.name for path in (project / "data" / "prepare").iterdir()] == [f"{NAME}-2"]
