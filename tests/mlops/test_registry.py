"""The registered student loads and predicts, is registered once, and has its metrics."""

import base64
import json
import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import alone
import numpy as np
import pandas as pd
import pytest
from conftest import TinyStudent
from PIL import Image
from tracked import load_model, stage, store

from pd_core.core.errors import PdError, UnknownName
from pd_core.mlops import predictor, registry, tracking
from pd_core.mlops.registry import fetch, find
from pd_core.mlops.registry.register import Origin, Registered, register
from pd_core.mlops.tracking import StoreRefuses, recorder
from pd_core.models.class_vectors import ClassVectors
from pd_core.pipeline.provenance import Lineage

__all__ = ["store"]  # a fixture

# MLflow's own: its type hints when it is imported, SQLAlchemy's deprecations when it searches.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]

METRICS = {
    "student": {"base": 80.123, "novel": 70.0, "hm": 74.72},
    "teacher": {"base": 82.0, "novel": 71.0, "hm": 76.1},
}


def _register(store: str, tiny: TinyStudent, picture: bytes, **changes: Any) -> Registered:
    student = predictor.stand_alone(
        tiny.folder / "student.safetensors", changes.pop("vectors", tiny.vectors), tiny.weights
    )
    usual: dict[str, Any] = {"profile": "quickstart", "dataset": "greek", "metrics": METRICS}
    return register(store, student, Origin(**{**usual, **changes}), example=picture)


def _load(store: str, registered: Registered) -> Any:
    return load_model(store, f"models:/{registered.name}/{registered.version}")


def test_a_model_without_versions_is_refused(store: str) -> None:
    tracking.client(store).create_registered_model("promptkd-greek")
    with pytest.raises(UnknownName, match="has no versions"):
        find(store, "greek")


@pytest.mark.usefixtures("no_onnx")
def test_a_registered_student_predicts_as_the_stages_student_does_from_any_kind_of_image(
    store: str, tiny_student: TinyStudent, picture: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(picture)
    text = base64.b64encode(picture).decode()
    with Image.open(BytesIO(picture)) as image:
        array = np.asarray(image.convert("RGB"))
    model = _load(store, _register(store, tiny_student, picture))
    student = predictor.load_student(tiny_student.folder, weights=tiny_student.weights)
    expected = student.classify(picture)
    for images in (
        pd.DataFrame({"image": [text, path]}),
        pd.Series([text, path], name="image"),
        {"image": [text, picture]},
        {"image": [text, f"data:image/png;base64,{text}"]},
        pd.DataFrame({"image": pd.Series([array, array.tolist()], dtype=object)}),
    ):
        frame = model.predict(images)
        for row in range(2):
            ranking = list(zip(frame["names"][row], frame["probabilities"][row], strict=True))
            assert [name for name, _ in ranking] == [name for name, _ in expected]
            assert dict(ranking) == pytest.approx(dict(expected), abs=1e-6)
    assert len(model.predict({"image": [text]}, params={"top": 1})["names"][0]) == 1

    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="cannot be read") as caught:
        model.predict({"image": [b"no picture"]})
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"  # MLflow's server answers 400


def test_the_model_describes_itself_and_holds_no_pickle_and_no_local_path(
    store: str, tiny_student: TinyStudent, picture: bytes, tmp_path: Path
) -> None:
    registered = _register(store, tiny_student, picture)
    client = tracking.client(store)
    version = client.get_model_version(registered.name, str(registered.version))
    folder = Path(client.get_logged_model(Path(str(version.source)).parts[-2]).artifact_location)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "MLmodel",
        "artifacts/student/README.md",
        "artifacts/student/SHA256SUMS",
        "artifacts/student/model.json",
        "artifacts/student/promptkd_student/network.py",
        "artifacts/student/student.onnx",
        "artifacts/student/student.safetensors",
        "input_example.json",
        "requirements.txt",
        "student_model.py",
    } <= files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pth"))]
    here = (str(tmp_path), str(Path(__file__).parents[2]), str(Path.home()), "/tmp/")
    for name in files:
        content = (folder / name).read_bytes()
        assert not [path for path in here if path.encode() in content], name
    from mlflow.models import Model

    described = Model.load(str(folder))
    assert described.signature.params.to_dict()[0]["name"] == "top"
    assert described.signature.inputs.to_dict() == [
        {"type": "string", "name": "image", "required": True}
    ]
    assert described.signature.outputs.input_names() == ["names", "probabilities"]


@pytest.mark.usefixtures("no_onnx")
def test_metrics_and_provenance_are_on_the_version_its_model_and_its_run(
    store: str, tiny_student: TinyStudent, picture: bytes, tmp_path: Path
) -> None:
    (tmp_path / "prepared").mkdir()
    inputs = [recorder.DataInput("greek", tmp_path / "prepared", "evaluation")]
    with stage(store, "evaluate", inputs=inputs) as run:
        run.log_metrics(METRICS)
    lineage = Lineage("abc", "false", outs={"data/student": "123"})
    registered = _register(
        store, tiny_student, picture, run_id=run.run_id, tags={"seed": "1"}, lineage=lineage
    )
    client = tracking.client(store)
    version = client.get_model_version(registered.name, str(registered.version))
    assert version.run_id == run.run_id
    files = version.tags.pop("files")
    assert files.endswith(".dir")
    assert version.tags == {
        "kind": "distilled",
        "student/hm": "74.72",
        "dataset": "greek",
        "profile": "quickstart",
        "seed": "1",
        "weights": registered.weights,
        "lineage": lineage.digest(),
    }
    assert registry.lineage(store, find(store, "greek")) == lineage
    stored: Any = client.get_run(str(run.run_id))
    accuracies = {
        "student/base": 80.123, "student/novel": 70.0, "student/hm": 74.72,
        "teacher/base": 82.0, "teacher/novel": 71.0, "teacher/hm": 76.1,
    }  # fmt: skip
    assert accuracies.items() <= stored.data.metrics.items()
    assert not [name for name in stored.data.metrics if "." in name]
    assert stored.info.status == "FINISHED"
    model: Any = client.get_logged_model(Path(str(version.source)).parts[-2])
    assert [output.model_id for output in stored.outputs.model_outputs] == [model.model_id]
    assert (model.name, model.source_run_id) == ("greek", run.run_id)
    assert {metric.key: metric.value for metric in model.metrics} == accuracies
    assert {metric.dataset_name for metric in model.metrics} == {"greek"}
    assert model.params == {"seed": "1"}
    assert json.loads(model.tags["mlflow.modelVersions"]) == [
        {"name": "promptkd-greek", "version": "1"}
    ]


@pytest.mark.usefixtures("no_onnx")
def test_the_same_weights_are_registered_once_other_weights_anew(
    store: str, tiny_student: TinyStudent, picture: bytes, tmp_path: Path
) -> None:
    first = _register(store, tiny_student, picture)
    again = _register(store, tiny_student, picture)
    assert (first.name, first.version, first.created) == ("promptkd-greek", 1, True)
    assert (again.version, again.created) == (1, False)
    vectors = ClassVectors.load(tiny_student.vectors).select([0, 1])
    vectors.save(tmp_path / "two.safetensors")
    other = _register(store, tiny_student, picture, vectors=tmp_path / "two.safetensors")
    assert (other.version, other.created) == (2, True)
    assert _register(store, tiny_student, picture).version == 1
    latin = _register(store, tiny_student, picture, dataset="latin")
    assert (latin.name, latin.version, latin.created) == ("promptkd-latin", 1, True)


@pytest.mark.usefixtures("no_onnx")
def test_a_version_whose_files_are_damaged_or_gone_is_registered_anew(
    store: str, tiny_student: TinyStudent, picture: bytes
) -> None:
    client = tracking.client(store)

    def folder(version: int) -> Path:
        return Path(client.get_model_version_download_uri("promptkd-greek", str(version)))

    _register(store, tiny_student, picture)
    (folder(1) / "requirements.txt").write_text("")
    assert _register(store, tiny_student, picture).version == 2
    assert _register(store, tiny_student, picture).version == 2
    shutil.rmtree(folder(2))
    assert _register(store, tiny_student, picture).version == 3


@pytest.mark.usefixtures("no_onnx")
def test_what_was_deleted_in_the_ui_is_registered_anew_once_its_experiment_is_restored(
    store: str, tiny_student: TinyStudent, picture: bytes
) -> None:
    client = tracking.client(store)
    _register(store, tiny_student, picture)
    client.delete_registered_model("promptkd-greek")
    assert _register(store, tiny_student, picture).version == 1
    run = client.get_run(str(find(store, "greek").run_id)).info
    client.delete_run(run.run_id)
    assert not _register(store, tiny_student, picture).created
    client.delete_model_version("promptkd-greek", "1")
    client.delete_experiment(run.experiment_id)
    with pytest.raises(StoreRefuses, match="mlflow experiments restore --experiment-id"):
        _register(store, tiny_student, picture)
    client.restore_experiment(run.experiment_id)
    assert _register(store, tiny_student, picture).created


@pytest.mark.usefixtures("no_onnx")
def test_a_server_that_refuses_is_one_line(
    tiny_student: TinyStudent, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(PdError, match="cannot register 'promptkd-greek'") as caught:
        _register("http://127.0.0.1:9", tiny_student, picture)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_model_runs_where_there_is_nothing_but_its_requirements(
    store: str, tiny_student: TinyStudent, picture: bytes, tmp_path: Path
) -> None:
    registered = _register(store, tiny_student, picture)
    version = find(store, f"greek/{registered.version}")
    model = fetch(store, version, tmp_path / "model")
    python = alone.environment(
        tmp_path / "venv", (model / "requirements.txt").read_text().splitlines()
    )
    (tmp_path / "picture.png").write_bytes(picture)
    code = (
        "import importlib.util, pathlib, sys, mlflow\n"
        "assert not [name for name in ('pd_core', 'open_clip', 'torchvision')\n"
        "            if importlib.util.find_spec(name)]\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "image = pathlib.Path(sys.argv[2])\n"
        "answer = model.predict({'image': [image]}, params={'top': 1})\n"
        "print(answer['names'][0][0], answer['probabilities'][0][0])"
    )
    done = subprocess.run(
        [str(python), "-P", "-c", code, str(model), str(tmp_path / "picture.png")],
        cwd=tmp_path,
        env={"MLFLOW_DISABLE_TELEMETRY": "true", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    student = predictor.load_student(tiny_student.folder, weights=tiny_student.weights)
    ((name, probability),) = student.classify(picture, top=1)
    *words, value = done.stdout.split()
    assert " ".join(words) == name
    assert float(value) == pytest.approx(probability, abs=1e-6)


@pytest.mark.usefixtures("no_onnx")
def test_the_card_says_what_a_user_has_to_know(
    store: str, tiny_student: TinyStudent, picture: bytes
) -> None:
    counts = {"classes": 3, "taught": 2, "labels": 32, "unlabelled": 300}
    counts |= {"base": 100, "novel": 50, "all": 150}
    tags = {"protocol": "base_to_novel", "seed": "1", "selection": "last"}
    _register(store, tiny_student, picture, counts=counts, tags=tags, lineage=Lineage("abc"))
    text = tracking.client(store).get_model_version("promptkd-greek", "1").description
    assert text is not None
    for phrase in (
        "32 labelled images of 2 of 3 classes",
        "300 images without labels",
        "| distilled student | 80.1 ± 7.8 | 70.0 ± 12.3 | 74.7 |",  # Wilson
        "1 of the classes had no labels at all",
        "Apache-2.0",
        "`abc`",
        "0. alpha",
    ):
        assert phrase in text
    assert "\n\n\n" not in text


@pytest.mark.usefixtures("no_onnx")
def test_registering_again_brings_the_lineage_up_to_date(
    store: str, tiny_student: TinyStudent, picture: bytes
) -> None:
    for dirty in ("true", "false"):
        _register(store, tiny_student, picture, lineage=Lineage("abc", dirty))
        assert registry.lineage(store, find(store, "greek")).git_dirty == dirty
