"""promptkd registry register, predict and classes: one command each."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from pd_core.cli import verbs
from pd_core.core.artifacts import write_json
from pd_core.core.errors import BadArtifact, BadParams, MissingFile, PdError, UnknownName
from pd_core.mlops import predictor, registry, tracking
from pd_core.mlops.predictor import Predictor, load_student
from pd_core.models.class_vectors import build
from pd_core.models.clip import load_clip
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("no_onnx"),
]

ROOT = Path(__file__).parents[2]
NAME = "embedded_greek"
FIRST, *_, LAST = tiny.NAMES


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay out what the stages write: a teacher without prompts, an untrained student."""
    data = tmp_path_factory.mktemp("outputs") / "data"
    tiny.prepared(data / "prepare" / NAME)
    large, small = load_clip("embedded-teacher", None), load_clip("embedded-student", None)
    teacher = Teacher(large).eval()
    teacher.save(data / "teacher" / NAME / "teacher.safetensors")
    vectors = build(teacher, tiny.NAMES)
    vectors.save(data / "class_vectors" / NAME / "class_vectors.safetensors")
    width = vectors.vectors.shape[1]
    student = Student.untrained(small, feature_width=width, depth=2)
    student.save(data / "student" / NAME / "student.safetensors")
    metrics = {"student": {"base": 80.0, "novel": 70.0, "hm": 74.67, "all": 60.0}}
    write_json(data / "evaluate" / NAME / "metrics.json", metrics)
    return data


@pytest.fixture
def project(
    tmp_path: Path, outputs: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a folder where the stages have run and nothing is registered; it is entered."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copy(empty_database, tmp_path / tracking.DATABASE)
    shutil.copytree(outputs, tmp_path / "data")
    (tmp_path / "pd_core").symlink_to(ROOT / "pd_core")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def picture(project: Path) -> str:
    pixels = np.random.default_rng(1).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(project / "picture.png")
    return "picture.png"


def promptkd(*arguments: str) -> None:
    verbs.app(list(arguments), standalone_mode=False)


def numbers(project: Path) -> list[int]:
    return [version.number for version in registry.versions(tracking.open_store(project), NAME)]


def test_register_fills_an_empty_store_once(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promptkd("registry", "register", "--dry-run")
    assert registry.models(tracking.open_store(project)) == []
    promptkd("registry", "register")
    promptkd("registry", "register", NAME)
    said = capsys.readouterr()
    assert f"promptkd-{NAME}  version 1, new" in said.out
    assert f"promptkd-{NAME}  version 1, there already" in said.out
    assert "10 data sets have no evaluated student here" in said.err
    (version,) = registry.versions(tracking.open_store(project), NAME)
    assert version.tags["student/hm"] == "74.67"
    assert version.tags["kind"] == "distilled"
    lineage = registry.lineage(tracking.open_store(project), version)
    assert f"data/teacher/{NAME}/teacher.safetensors" in lineage.outs


def test_a_machine_without_the_pictures_can_register_too(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = json.loads((project / "data" / "prepare" / NAME / "split.json").read_text())
    pictures = Path(split["images"])
    away = pictures.rename(pictures.with_name("away"))
    try:
        promptkd("registry", "register", NAME)
    finally:
        away.rename(pictures)
    said = capsys.readouterr()
    assert "version 1, new" in said.out
    assert "without a reference for drift" in said.err


def test_register_before_anything_was_evaluated_says_what_to_run(project: Path) -> None:
    shutil.rmtree(project / "data" / "evaluate")
    with pytest.raises(MissingFile, match="dvc repro"):
        promptkd("registry", "register")


def test_predict_names_pictures_with_a_version_the_champion_or_a_folder(
    picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    promptkd("registry", "register", NAME)
    capsys.readouterr()
    promptkd("predict", NAME, picture, picture, "--top", "2", "--json")
    said = capsys.readouterr()
    assert "has no champion" in said.err
    first, second = json.loads(said.out)
    assert first == second
    assert first["image"] == picture
    assert [row["name"] in tiny.NAMES for row in first["predictions"]] == [True, True]
    promptkd("predict", f"data/student/{NAME}", picture, "--top", "2", "--json")
    (staged,) = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in staged["predictions"]] == [
        row["name"] for row in first["predictions"]
    ]
    promptkd("predict", f"{NAME}/1", picture, "--top", "1")
    _, line = capsys.readouterr().out.splitlines()
    assert line.split() == [picture, line.split()[1], *first["predictions"][0]["name"].split()]


def test_predict_takes_a_device_and_refuses_one_that_is_not_there(
    picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("predict", f"data/student/{NAME}", picture, "--out", "rows.csv")
    devices = []

    def load(folder: str, *, weights: str | None, device: str) -> Predictor:
        assert weights is None
        devices.append(device)
        return load_student(folder, device="cpu")

    monkeypatch.setattr(predictor, "load_student", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in ((), ("--device", "auto"), ("--device", "cpu")):
        promptkd(*command, *arguments)
    monkeypatch.setenv("PD_DEVICE", "meta")
    with pytest.raises(PdError, match="PD_DEVICE"):
        promptkd(*command)
    promptkd(*command, "--device", "cpu")
    assert devices == ["cpu"] * 4
    Path("rows.csv").unlink()
    for device, message in (
        ("gpu", "device 'gpu' is unknown; give auto, cpu, mps, cuda or cuda:<number>"),
        ("cuda:99", r"device 'cuda:99' is not there \(.*\); give auto or cpu"),
    ):
        with pytest.raises(BadParams, match=message):
            promptkd(*command, "--device", device)
    assert not Path("rows.csv").exists()


def test_predict_writes_a_row_for_what_is_no_picture_and_fails_at_the_end(
    project: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    student = f"data/student/{NAME}"
    (project / "text.png").write_text("no picture")
    with pytest.raises(PdError, match=r"2 of 3 images .* 'text\.png' \(cannot identify"):
        promptkd("predict", student, "text.png", "gone.png", picture, "--out", "rows.csv")
    first, second, third = (project / "rows.csv").read_text().splitlines()[1:]
    assert first == f"text.png{',' * 11}cannot identify image file"
    assert second == f"gone.png{',' * 11}No such file or directory"
    assert third.startswith(f"{picture},")
    (project / "folder").mkdir()
    (project / "folder" / "a.pdf").write_text("")
    capsys.readouterr()
    with pytest.raises(PdError, match="no image found"):
        promptkd("predict", student, "folder", "--out", "none.csv")
    assert "left out, without an image's suffix: 1 .pdf" in capsys.readouterr().err
    assert not (project / "none.csv").exists()
    with pytest.raises(PdError, match="no image is named"):
        promptkd("predict", student)


def test_predict_refuses_what_is_no_model(picture: str) -> None:
    promptkd("registry", "register", NAME)
    with pytest.raises(UnknownName, match="did you mean"):
        promptkd("predict", "embedded_gree", picture)
    with pytest.raises(UnknownName, match="known: 1"):
        promptkd("predict", f"{NAME}/7", picture)


def test_a_name_alone_is_the_champion_for_all_verbs(
    project: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    promptkd("registry", "register", NAME)
    promptkd("classes", "rename", NAME, FIRST, "first")
    assert "has no champion; the newest version is used, 1" in capsys.readouterr().err
    store = tracking.open_store(project)
    registry.set_alias(store, registry.find(store, f"{NAME}/1"), "champion")
    promptkd("classes", "rename", NAME, FIRST, "other name")
    assert f"version 1 of 'promptkd-{NAME}'" in capsys.readouterr().out
    assert registry.find(store, f"{NAME}/3").tags["parent"] == "1"
    promptkd("predict", NAME, picture, "--json", "--top", "20")
    (row,) = json.loads(capsys.readouterr().out)
    assert FIRST in [entry["name"] for entry in row["predictions"]]


def test_a_class_is_added_with_the_teachers_vector_then_renamed_and_removed(
    project: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    promptkd("registry", "register", NAME)
    promptkd("classes", "add", NAME, "steam locomotive", "--dry-run")
    assert numbers(project) == [1]
    promptkd("classes", "add", NAME, "steam locomotive")
    assert numbers(project) == [1, 2]
    assert f"promptkd registry promote {NAME}/2" in capsys.readouterr().out
    promptkd("classes", "rename", f"{NAME}/2", "steam locomotive", "engine", "--recompute")
    promptkd("classes", "remove", NAME, FIRST)
    promptkd("predict", NAME, picture, "--top", "9", "--json")
    (row,) = json.loads(capsys.readouterr().out.partition("[")[2].join(["[", ""]))
    names = {guess["name"] for guess in row["predictions"]}
    assert names == {*tiny.NAMES, "engine"} - {FIRST}
    version = registry.find(tracking.open_store(project), NAME)
    assert (version.number, version.tags["parent"]) == (4, "3")
    assert version.tags["change"] == f"removed '{FIRST}'"


def test_the_added_vector_is_what_the_stage_would_have_computed(
    project: Path, tmp_path: Path
) -> None:
    promptkd("registry", "register", NAME)
    promptkd("classes", "add", NAME, "steam locomotive")
    store = tracking.open_store(project)
    folder = registry.fetch(store, registry.find(store, NAME), tmp_path / "model")
    from pd_core.mlops.predictor import load_bundle

    teacher = Teacher(load_clip("embedded-teacher", None)).eval()
    wanted = build(teacher, [*tiny.NAMES, "steam locomotive"]).vectors
    found = load_bundle(folder / registry.BUNDLE).network.class_vectors
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_without_the_teacher_or_with_another_no_class_is_added(project: Path) -> None:
    promptkd("registry", "register", NAME)
    file = project / "data" / "teacher" / NAME / "teacher.safetensors"
    Teacher(load_clip("embedded-teacher", None), template="a picture of {}.").save(file)
    with pytest.raises(BadArtifact, match="not what version 1 .* was made with"):
        promptkd("classes", "add", NAME, "steam locomotive")
    file.unlink()
    with pytest.raises(MissingFile, match=r"need .*teacher\.safetensors.*dvc pull teacher@"):
        promptkd("classes", "add", NAME, "steam locomotive")
    assert numbers(project) == [1]
    promptkd("classes", "rename", NAME, FIRST, "another name")  # which needs no teacher
    assert numbers(project) == [1, 2]
