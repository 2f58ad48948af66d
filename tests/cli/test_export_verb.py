"""`promptkd export` writes a student for another runtime, and compares it with its original."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from conftest import TinyStudent
from torch.nn.functional import normalize

from pd_core.cli import verbs
from pd_core.core.artifacts import read_json
from pd_core.core.errors import BadArtifact, BadParams, MissingFile
from pd_core.models.class_vectors import ClassVectors
from pd_core.models.clip import load_clip
from pd_core.models.student import Student

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parents[2]
STUDENT = "data/student/tiny"
TO_TORCHSCRIPT = ("--format", "torchscript")  # is quick


@pytest.fixture
def project(tmp_path: Path, tiny_student: TinyStudent, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a prepared data set of five classes, and its untrained student."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    tiny.prepared(tmp_path / "data" / "prepare" / "tiny")
    towers = load_clip("embedded-student", tiny_student.weights)
    student = Student.untrained(towers, feature_width=16, depth=2, length=2, seed=1)
    student.save(tmp_path / STUDENT / "student.safetensors")
    vectors = normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    file = tmp_path / "data" / "class_vectors" / "tiny" / "class_vectors.safetensors"
    ClassVectors(tiny.NAMES, vectors, 30.0, "random").save(file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PD_DATA_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def weights(tiny_student: TinyStudent) -> tuple[str, str]:
    return "--weights", str(tiny_student.weights)


def promptkd(*arguments: str) -> None:
    verbs.app(list(arguments), standalone_mode=False)


def test_a_student_is_exported_and_compared_on_the_test_images(
    project: Path, weights: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    promptkd("export", STUDENT, *weights, *TO_TORCHSCRIPT, "--precision", "int8")

    said = capsys.readouterr()
    folder = project / "data" / "export" / "tiny" / "torchscript-int8"
    assert "points on 20 test images" in said.out
    assert said.out.splitlines()[-1] == "written to data/export/tiny/torchscript-int8"
    info = read_json(folder / "model.json")
    assert info["export"] == {"format": "torchscript", "precision": "int8"}
    assert (info["dataset"], info["names"]) == ("tiny", list(tiny.NAMES))
    card = (folder / "README.md").read_text()
    assert "Exported to torchscript in int8" in card
    assert "On 20 test images, all classes at once, the export has" in card


def test_its_folder_is_used_by_predict_and_not_exported_again(
    project: Path, weights: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = sorted(map(str, (project / "data" / "prepare" / "pictures").glob("*.png")))[:3]
    promptkd("export", STUDENT, *weights, *TO_TORCHSCRIPT, "--out", "exported", "--json")
    promptkd("predict", "exported", *pictures, "--json", "--top", "1")
    promptkd("predict", STUDENT, *weights, *pictures, "--json", "--top", "1")

    decoder, text = json.JSONDecoder(), capsys.readouterr().out
    report, end = decoder.raw_decode(text)
    first, second = text[end:].strip().split("\n]\n")
    assert report["directory"] == "exported"
    accuracy = report["accuracy"]
    assert (accuracy["images"], accuracy["agreement"]) == (20, 1)
    assert accuracy["export"] == accuracy["original"]
    assert len(report["megabytes"]) == len(report["milliseconds"]) == 2
    assert [row.get("name") for row in json.loads(first + "]")] == [
        row.get("name") for row in json.loads(second)
    ]
    with pytest.raises(BadParams, match="'exported' is exported already; export the original"):
        promptkd("export", "exported", *TO_TORCHSCRIPT)


def test_without_the_data_set_the_accuracy_is_unknown_and_int8_is_refused(
    project: Path, weights: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(project / "data" / "prepare")
    promptkd("export", STUDENT, *weights, *TO_TORCHSCRIPT, "--precision", "fp16")

    said = capsys.readouterr()
    assert "the accuracy is not measured: prepared data set not found" in said.err
    folder = project / "data" / "export" / "tiny"
    assert "was not measured" in (folder / "torchscript-fp16" / "README.md").read_text()
    with pytest.raises(MissingFile, match="prepared data set not found.*dvc repro prepare@tiny"):
        promptkd("export", STUDENT, *weights, *TO_TORCHSCRIPT, "--precision", "int8")
    assert not (folder / "torchscript-int8").exists()


def test_an_export_that_fails_leaves_the_earlier_one(
    project: Path, weights: tuple[str, str]
) -> None:
    promptkd("export", STUDENT, *weights, *TO_TORCHSCRIPT)
    before = {
        file: file.read_bytes()
        for file in (project / "data" / "export").rglob("*")
        if file.is_file()
    }
    (project / STUDENT / "student.safetensors").write_bytes(b"corrupt")
    with pytest.raises(BadArtifact):
        promptkd("export", STUDENT, *weights, *TO_TORCHSCRIPT)
    assert {file: file.read_bytes() for file in before} == before
