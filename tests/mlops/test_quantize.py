"""An int8 version of a registered student is a version of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import exporting
import pytest
import tiny
from PIL import Image
from serving import new_project, serving
from tracked import load_model

from pd_core.core.errors import BadData, BadParams, UnknownName
from pd_core.core.options import Metric
from pd_core.data.loading.prepared import read_prepared, read_split, write_prepared
from pd_core.mlops import registry
from pd_core.mlops.export import measure
from pd_core.mlops.predictor import load_bundle
from pd_core.mlops.registry import BUNDLE, CHAMPION, Version, classes, find, in_precision, set_alias
from pd_core.mlops.registry.gate import Exam
from pd_core.mlops.registry.quantize import Quantized, quantize
from pd_core.mlops.registry.register import Origin, register
from pd_core.pipeline.provenance import Lineage

# MLflow's own: its type hints when it is imported, SQLAlchemy's deprecations when it searches.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("onnx_once"),
]

LINEAGE = Lineage("abc", outs={"data/teacher/tiny/teacher.safetensors": "123"})


@pytest.fixture
def store(tmp_path: Path, empty_database: Path) -> str:
    """Return a registry with a student of 20 test images, version 1."""
    store = new_project(tmp_path, empty_database)
    prepared = tiny.prepared(tmp_path / "data" / "prepare" / "tiny")
    origin = Origin("quickstart", "tiny", LINEAGE, tags={"seed": "7"})
    student = exporting.taught_student(prepared)
    register(store, student, origin, example=picture(prepared), reference=None)
    return store


def picture(prepared: Path) -> bytes:
    split = read_prepared(prepared)
    return (split.images / split.test[0][0]).read_bytes()


@pytest.fixture
def exam(tmp_path: Path) -> Exam:
    return Exam(
        project=tmp_path, profile="quickstart", prepared=tmp_path / "data" / "prepare" / "tiny",
        data_root=tmp_path, model="embedded-student", weights=None, metric=Metric.ACCURACY,
        margin=0.03, quantized_margin=0.4, confidence=0.95, latency_ms=5000, megabytes=5,
        warm_ups=1, timed=3, seconds=60,
    )  # fmt: skip


def made(store: str, exam: Exam, reference: str = "tiny/1", **options: Any) -> Quantized:
    return quantize(store, find(store, reference), exam, experiment="tests", **options)


def versions(store: str) -> list[Version]:
    return registry.versions(store, "tiny")


def test_an_int8_version_has_its_parent_and_its_own_accuracy(
    store: str, exam: Exam, tmp_path: Path
) -> None:
    result = made(store, exam)

    parent, version = versions(store)
    assert result.version is not None
    assert result.accuracy is not None
    assert (result.version.version, result.version.created) == (2, True)
    accuracy = f"{100 * result.accuracy.hits.first:.2f}"
    expected = {
        "kind": "quantized", "precision": "int8", "parent": "1", "seed": "7",
        "student/all": accuracy,
    }  # fmt: skip
    assert expected.items() <= version.tags.items()
    assert registry.lineage(store, version) == registry.lineage(store, parent) == LINEAGE
    assert result.accuracy.hits.second > 0.6
    assert result.accuracy.agreement > 0.8

    folder = registry.fetch(store, version, tmp_path / "fetched")
    files = {file.name for file in (folder / BUNDLE).iterdir()}
    assert "student.onnx" in files
    assert "student.safetensors" not in files
    assert "onnxruntime==" in (folder / "requirements.txt").read_text()
    assert f"the export has {accuracy}% right" in (folder / BUNDLE / "README.md").read_text()
    prepared = read_prepared(exam.prepared)
    same = measure.accuracy(
        load_bundle(folder / BUNDLE), exporting.taught_student(exam.prepared), prepared
    )
    assert same is not None
    assert same.hits == result.accuracy.hits
    again = made(store, exam).version
    assert again is not None
    assert (again.version, again.created) == (2, False)


def test_mlflow_loads_an_int8_version(store: str, exam: Exam) -> None:
    made(store, exam)
    images = {"image": [picture(exam.prepared)]}

    first, second = (
        load_model(store, version.uri).predict(images, params={"top": 5})
        for version in versions(store)
    )

    names = sorted(first["names"][0])
    rows = [
        dict(zip(frame["names"][0], frame["probabilities"][0], strict=True))
        for frame in (first, second)
    ]
    errors = [abs(rows[0][name] - rows[1][name]) for name in names]
    assert sorted(second["names"][0]) == names
    assert 1e-6 < max(errors) < 0.05


def test_a_dry_run_measures_and_registers_nothing(store: str, exam: Exam) -> None:
    result = made(store, exam, dry_run=True)
    assert result.version is None
    assert result.accuracy is not None
    assert len(versions(store)) == 1


def test_an_int8_student_that_is_worse_than_its_original_is_not_registered(
    store: str, exam: Exam
) -> None:
    split = read_split(exam.prepared)
    black = Path(split["images"]) / "black.png"
    Image.new("RGB", (20, 20)).save(black)
    write_prepared(exam.prepared, split, [black.name])  # a range of activations for no other image

    with pytest.raises(
        BadData, match=r"may lose .* points .*, 40 are allowed by promotion.quantized"
    ):
        made(store, exam)

    assert len(versions(store)) == 1


def test_an_int8_version_is_neither_quantized_nor_given_other_classes(
    store: str, exam: Exam
) -> None:
    made(store, exam)
    with pytest.raises(BadParams, match="version 2 is in int8 already"):
        made(store, exam, "tiny/2")
    with pytest.raises(BadParams, match="change the classes of version 1, which it was made from"):
        classes.register_change(
            store,
            find(store, "tiny/2"),
            lambda student: classes.remove(student, tiny.NAMES[:1]),
            experiment="tests",
        )
    assert len(versions(store)) == 2


def test_a_version_is_found_in_the_other_precision(store: str, exam: Exam) -> None:
    first = find(store, "tiny/1")
    assert in_precision(store, first, "fp32") == first
    with pytest.raises(UnknownName, match="version 1 of 'promptkd-tiny' has no int8 .* tiny/1$"):
        in_precision(store, first, "int8")
    made(store, exam)
    second = find(store, "tiny/2")
    assert in_precision(store, first, "int8") == second
    assert in_precision(store, second, "int8") == second
    assert in_precision(store, second, "fp32").number == 1
    with pytest.raises(UnknownName, match="version 9 of 'promptkd-tiny' has no int8"):
        in_precision(store, replace(first, number=9), "int8")  # the int8 one is that of version 1


@pytest.mark.slow
@pytest.mark.ci
def test_the_service_serves_the_champion_in_int8_and_states_it(
    store: str, exam: Exam, tmp_path: Path
) -> None:
    made(store, exam)
    set_alias(store, find(store, "tiny/1"), CHAMPION)
    folder = registry.fetch(store, find(store, "tiny/2"), tmp_path / "fetched") / BUNDLE
    image = picture(exam.prepared)
    expected = load_bundle(folder).classify(image)

    with serving(tmp_path, "--precision", "int8", dataset="tiny") as running:
        model = running.get("/model").json()
        rows = running.post("/predict", image).json()["predictions"]

    assert (model["version"], model["precision"], model["aliases"]) == (2, "int8", [])
    assert [(row["name"], row["probability"]) for row in rows] == [
        (name, pytest.approx(value, abs=1e-5)) for name, value in expected
    ]
