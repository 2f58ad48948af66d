"""An exported student predicts as its original does, in each format and precision."""

import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import exporting
import numpy as np
import pytest
import torch
from exporting import SIDE, pixels
from numpy.typing import NDArray
from onnx import load as load_onnx
from PIL import Image
from torch import nn

from pd_core.core.errors import BadArtifact, BadParams
from pd_core.data.loading.prepared import Prepared, read_prepared, write_prepared
from pd_core.mlops import bundle
from pd_core.mlops.export import measure, onnx
from pd_core.mlops.export.convert import calibration_of, convert
from pd_core.mlops.export.options import ExportFormat, ExportPrecision
from pd_core.mlops.predictor import load_bundle
from pd_core.models.portable import runtimes
from pd_core.models.portable.network import ExportedNetwork, HeadSizes
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.portable.runtimes import ExportedRuntime
from pd_core.models.portable.student import PortableStudent
from pd_core.models.portable.tower import ExportedTower

NAMES = ("dark", "grey", "light")
ALL = [(form, precision) for form in ExportFormat for precision in ExportPrecision]
SHARE = {ExportPrecision.FP32: 1.1, ExportPrecision.FP16: 0.6, ExportPrecision.INT8: 0.5}
"""Largest size of a file, relative to the weights; so small a network has much beside them."""

ERROR = {ExportPrecision.FP32: 1e-4, ExportPrecision.FP16: 0.01, ExportPrecision.INT8: 0.1}


@pytest.fixture(scope="module")
def student() -> PortableStudent:
    return exporting.student(NAMES)


@pytest.fixture(scope="module")
def source(student: PortableStudent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the student's ONNX file in fp32."""
    file = tmp_path_factory.mktemp("source") / "student.onnx"
    onnx.write_onnx(file, student.network)
    return file


def exported(
    student: PortableStudent, folder: Path, form: str, precision: str, source: Path, seed: int = 1
) -> PortableStudent:
    return convert(
        student, folder, ExportFormat(form), ExportPrecision(precision),
        calibration=pixels(40, seed=seed), source=source,
    )  # fmt: skip


def file_of(student: PortableStudent) -> Path:
    assert isinstance(student.runtime, ExportedRuntime)
    return student.runtime.files[0]


@pytest.mark.parametrize(("form", "precision"), ALL)
def test_its_outputs_are_the_originals_up_to_rounding_for_any_number_of_images(
    form: ExportFormat,
    precision: ExportPrecision,
    student: PortableStudent,
    source: Path,
    tmp_path: Path,
) -> None:
    made = exported(student, tmp_path, form, precision, source)

    for count in (1, 5):
        images = pixels(count, seed=count)
        outputs, expected = made.answers(images), student.answers(images)
        error = np.abs(outputs.features - expected.features).max()
        assert error < ERROR[precision]
        assert error > 1e-6 or precision is ExportPrecision.FP32  # it was converted
        assert np.abs(outputs.probabilities - expected.probabilities).max() < ERROR[precision]
    weights = sum(value.nbytes for value in student.network.state_dict().values())
    assert file_of(made).stat().st_size < SHARE[precision] * weights
    assert (made.precision, made.info["export"]["format"]) == (precision, form)


def test_int8_depends_on_the_calibration_images_and_on_nothing_else(
    student: PortableStudent, source: Path, tmp_path: Path
) -> None:
    first, again, other = (
        file_of(exported(student, tmp_path / name, "onnx", "int8", source, seed)).read_bytes()
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first == again
    assert first != other


def test_in_int8_the_comparison_with_the_class_vectors_stays_in_fp32(
    student: PortableStudent, source: Path, tmp_path: Path
) -> None:
    file = file_of(exported(student, tmp_path, "onnx", "int8", source))
    nodes = load_onnx(file).graph.node

    products = [node for node in nodes if node.op_type in ("Gemm", "MatMul")]
    in_fp32 = [node for node in products if "DequantizeLinear" not in "".join(node.input)]
    assert len(products) > len(in_fp32) == 1
    assert runtimes.FEATURES in in_fp32[0].input


@pytest.mark.parametrize("form", ExportFormat)
def test_int8_without_training_images_is_refused(
    form: ExportFormat, student: PortableStudent, tmp_path: Path
) -> None:
    with pytest.raises(BadParams, match="calibrated with training images, and there are none"):
        convert(
            student, tmp_path, form, ExportPrecision.INT8, calibration=calibration_of(student, ())
        )
    assert not list(tmp_path.iterdir())


def test_calibration_images_are_cropped_to_the_students_input(student: PortableStudent) -> None:
    images = [Image.new("RGB", (40, 20), (255, 0, 0)), Image.new("RGB", (20, 40), (0, 0, 255))]

    crops = calibration_of(student, images)

    assert crops.shape == (2, SIDE, SIDE, 3)
    assert crops[:, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]


def test_a_file_of_another_student_is_no_source(source: Path, tmp_path: Path) -> None:
    other = exporting.student(NAMES, seed=1)
    with pytest.raises(BadArtifact, match="differ by .* after the export to onnx; use another"):
        exported(other, tmp_path, "onnx", "fp32", source)


def test_a_student_beyond_the_range_of_fp16_is_refused(tmp_path: Path) -> None:
    student = exporting.student(NAMES)
    with torch.no_grad():
        student.network.get_parameter("projection").mul_(1e6)
    with pytest.raises(BadArtifact, match="not finite in fp16, whose range is too small"):
        exported(student, tmp_path, "torchscript", "fp16", Path())


def test_a_torchscript_file_has_no_path_of_this_machine(
    student: PortableStudent, source: Path, tmp_path: Path
) -> None:
    made = exported(student, tmp_path, "torchscript", "fp32", source)
    with zipfile.ZipFile(file_of(made)) as archive:
        content = b"".join(map(archive.read, archive.namelist()))
    assert b"promptkd" not in content.lower()
    assert str(Path(nn.__file__).parent).encode() not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_openvino_that_is_not_installed_is_named_with_the_command_that_installs_it(
    student: PortableStudent, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BadParams, match=r"needs .* openvino; install it: pip install 'promptkd\["):
        exported(student, tmp_path, "openvino", "fp32", source)
    assert not list(tmp_path.iterdir())


def test_importing_openvino_sends_nothing_and_writes_nothing(tmp_path: Path) -> None:
    code = "from pd_core.models.portable.runtimes import import_openvino; import_openvino()"
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.rglob("*openvino*"))


def other_tower() -> PortableStudent:
    """Make a student whose image tower is the mean of each channel, and a linear layer."""
    tower = ExportedTower({
        "weights": {"w": [8, 3]},
        "steps": [
            ["aten.mean.dim", [{"input": "images"}, [2, 3]], {}],
            ["aten.linear.default", [{"input": 0}, {"input": "w"}], {}],
        ],
        "features": 1,
    })  # fmt: skip
    made = ExportedNetwork(HeadSizes(8, 4, 1, len(NAMES)), tower, Preprocess(SIDE))
    with torch.no_grad():
        tower.load_state_dict({"w": torch.eye(8, 3)})
        made.class_vectors.copy_(torch.eye(3, 4))
        made.logit_scale.fill_(5)
    return PortableStudent(made, {"names": NAMES})


def test_towers_of_other_architectures_are_traced_but_not_in_int8(tmp_path: Path) -> None:
    student = other_tower()
    made = exported(student, tmp_path, "torchscript", "fp32", Path())
    outputs, expected = made.answers(pixels(3)), student.answers(pixels(3))
    assert np.abs(outputs.features - expected.features).max() < 1e-5
    with pytest.raises(BadParams, match="for CLIP's vision transformers.*use --format onnx"):
        exported(student, tmp_path, "torchscript", "int8", Path())


@pytest.mark.parametrize("form", ExportFormat)
def test_its_folder_classifies_without_the_project(
    form: ExportFormat, student: PortableStudent, source: Path, tmp_path: Path
) -> None:
    made = exported(student, tmp_path, form, "int8", source)
    assert isinstance(made.runtime, ExportedRuntime)
    folder = tmp_path / "folder"
    bundle.write_student(folder, made, {"dataset": "tiny"})
    bundle.complete(folder, made, card="# Card\n", reference=None)
    np.save(tmp_path / "images.npy", pixels(3))
    code = (
        "import sys, numpy; sys.modules['pd_core'] = None; sys.path.insert(0, sys.argv[1])\n"
        "from promptkd_student.student import PortableStudent\n"
        "student = PortableStudent.load(sys.argv[1])\n"
        "numpy.save('features.npy', student.answers(numpy.load('images.npy')).features)"
    )
    subprocess.run([sys.executable, "-P", "-c", code, folder], cwd=tmp_path, check=True)
    wanted = load_bundle(folder).answers(pixels(3)).features
    assert np.abs(np.load(tmp_path / "features.npy") - wanted).max() < 1e-5
    assert {file.name for file in folder.iterdir()} == {
        "README.md", "SHA256SUMS", "model.json", "promptkd_student", *type(made.runtime).FILES,
    }  # fmt: skip


def test_a_folder_whose_file_is_cut_short_or_missing_is_refused_in_one_line(
    student: PortableStudent, source: Path, tmp_path: Path
) -> None:
    made = exported(student, tmp_path, "torchscript", "int8", source)
    folder = tmp_path / "folder"
    bundle.write_student(folder, made, {})
    file = folder / file_of(made).name
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BadArtifact, match="holds no student") as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(BadArtifact, match="holds no student"):
        load_bundle(folder)


def shaded(folder: Path) -> Prepared:
    """Write a prepared data set with an image of each brightness, one of them corrupt."""
    pictures = folder.parent / "pictures"
    pictures.mkdir()
    rows = [(f"{label}.png", label) for label in range(len(NAMES))]
    for (path, _), shade in zip(rows, (20, 120, 220), strict=True):
        Image.new("RGB", (SIDE, SIDE), (shade, shade, shade)).save(pictures / path)
    (pictures / "corrupt.png").write_bytes(b"no image")
    split = {
        "dataset": "shades", "classes": list(NAMES), "base_classes": 3, "protocol": "all_classes",
        "images": str(pictures), "few_shot": [], "few_shot_val": [], "val": [],
        "test": [*rows, ("corrupt.png", 0)],
    }  # fmt: skip
    write_prepared(folder, split, [])
    return read_prepared(folder)


class Fixed(ExportedRuntime):
    """A runtime with the same probabilities for every image."""

    FILES = ()

    def __init__(self, *probabilities: float) -> None:
        self.files = ()
        self._row = np.array([probabilities], np.float32)

    def run(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self._row.repeat(len(pixels), axis=0), np.ones((len(pixels), 1), np.float32)


def fixed(*probabilities: float) -> PortableStudent:
    info = {"names": NAMES, "preprocess": {"size": SIDE}}
    return PortableStudent(Fixed(*probabilities), info)


def test_accuracies_are_counted_on_the_intact_test_images(tmp_path: Path) -> None:
    prepared = shaded(tmp_path / "prepared")

    result = measure.accuracy(fixed(0.2, 0.5, 0.3), fixed(0.6, 0.3, 0.1), prepared)

    assert result is not None
    assert (result.hits.pictures, result.hits.gained, result.hits.lost) == (3, 1, 1)
    assert (result.difference, result.agreement) == (0, 0)
    same = measure.accuracy(fixed(0.1, 0.8, 0.1), fixed(0.2, 0.5, 0.3), prepared)
    assert same is not None
    assert (same.hits.both, same.agreement) == (1, 1)
    unlabelled = replace(prepared, test=())
    assert measure.accuracy(fixed(1, 0, 0), fixed(1, 0, 0), unlabelled) is None


def test_size_and_latency_are_those_of_the_export_and_of_the_original(
    student: PortableStudent, source: Path, tmp_path: Path
) -> None:
    made = exported(student, tmp_path, "onnx", "int8", source)
    cost = measure.cost(made, student)
    weights = sum(value.nbytes for value in student.network.state_dict().values())
    assert cost.megabytes == (file_of(made).stat().st_size / 1e6, weights / 1e6)
    assert all(value > 0 for value in cost.milliseconds)
    faster = measure.cost(fixed(1, 0, 0), student).milliseconds
    assert faster[0] < faster[1] / 2
