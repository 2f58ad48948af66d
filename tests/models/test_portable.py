"""The standalone student computes what the trained one does, in torch and in ONNX."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tiny
import torch
from conftest import TinyStudent
from PIL import Image
from torch.nn.functional import normalize
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from pd_core.core.artifacts import SUMS
from pd_core.core.errors import BadArtifact
from pd_core.core.options import Trained
from pd_core.mlops import bundle, predictor
from pd_core.mlops.fold import fold
from pd_core.models.class_vectors import ClassVectors
from pd_core.models.clip import load_clip
from pd_core.models.portable.network import ExportedNetwork
from pd_core.models.portable.pictures import BadPicture
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.portable.runtimes import INPUT
from pd_core.models.portable.student import PortableStudent
from pd_core.models.student import Student

# torch's exporter, about its own parts
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


PREPROCESS = Preprocess(16)


def _pixels(count: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def _vectors(classes: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return normalize(torch.randn(classes, width, generator=generator), dim=-1)


def _trained(name: str, folder: Path, **choices: object) -> Student:
    """Make a student of random weights whose batch norms have seen something."""
    tiny.register()
    towers = load_clip(name, tiny.weights(folder))
    student = Student.untrained(towers, feature_width=12, length=2, **choices)  # type: ignore[arg-type]
    student.train()
    with torch.no_grad():
        student(PREPROCESS.normalise(_pixels(8, 16, seed=9)))
    return student.eval()


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("tiny", {"depth": 2}),
        ("tiny", {"depth": 9, "layers": 3}),
        ("tiny-quickgelu", {"depth": 1, "layers": 1}),
        ("tiny", {"trained": Trained.PROJECTOR_ONLY}),
        ("tiny", {"trained": Trained.FULL_FINETUNE}),
    ],
    ids=["two layers", "all layers", "quick gelu", "no prompts", "a tower of its own"],
)
def test_the_network_computes_what_the_student_does_that_it_was_folded_from(
    name: str, choices: dict[str, object], tmp_path: Path
) -> None:
    student = _trained(name, tmp_path, **choices)
    vectors = _vectors(5, 12)
    network = fold(student, vectors)
    pixels = _pixels(7, 16)
    with torch.no_grad():
        features = student(PREPROCESS.normalise(pixels))
        expected = (student.logit_scale * features @ vectors.T).softmax(dim=-1)
        probabilities, actual = network(pixels)
    torch.testing.assert_close(actual, features, rtol=0, atol=1e-6)
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("", {"ls_1": torch.nn.Hardtanh(-0.01, 0.01)}),
        ("", {"ln_1": torch.nn.LayerNorm(32, eps=0.1)}),
        ("mlp", {"gelu": torch.nn.SiLU()}),
    ],
    ids=["layer scale", "another epsilon", "another activation"],
)
def test_a_tower_with_other_parts_is_exported_with_them(
    path: str, part: dict[str, torch.nn.Module], tmp_path: Path
) -> None:
    student = _trained("tiny", tmp_path)
    module = student.towers.visual.transformer.resblocks[0].get_submodule(path)
    for name, replacement in part.items():
        setattr(module, name, replacement.requires_grad_(requires_grad=False))
    network = fold(student, _vectors(5, 12))
    pixels = _pixels(7, 16)
    with torch.no_grad():
        features = student(PREPROCESS.normalise(pixels))
    assert isinstance(network, ExportedNetwork)
    torch.testing.assert_close(network(pixels)[1], features, rtol=0, atol=1e-6)


def test_a_network_with_other_features_than_the_students_is_refused(tmp_path: Path) -> None:
    student = _trained("tiny", tmp_path)
    student.towers.visual.ln_post.register_forward_hook(lambda _, __, output: output.sin())
    with pytest.raises(BadArtifact, match="model 'tiny' cannot be deployed: its features differ"):
        fold(student, _vectors(5, 12))


@pytest.mark.parametrize("size", [(16, 16), (40, 30), (31, 77), (500, 17), (18, 18), (9, 5)])
def test_pictures_are_cut_as_torchvision_cuts_them(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    resize = Resize(16, interpolation=InterpolationMode.BICUBIC)
    expected = np.asarray(Compose([resize, CenterCrop(16)])(image))
    assert np.array_equal(np.asarray(PREPROCESS.crop(image)), expected)


@pytest.fixture(scope="module")
def student(tiny_student: TinyStudent) -> PortableStudent:
    return predictor.load_student(tiny_student.folder, weights=tiny_student.weights).student


@pytest.fixture(scope="module")
def folder(student: PortableStudent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle")
    bundle.write_student(path, student, {"dataset": "greek"})
    pictures = [Image.new("RGB", (20, 20), (shade, 0, 0)) for shade in range(5)]
    reference = bundle.reference_of(student, pictures)
    bundle.complete(path, student, card="# Card\n", reference=reference)
    return path


def test_onnx_computes_what_torch_does_for_any_batch(
    student: PortableStudent, folder: Path
) -> None:
    session = onnxruntime.InferenceSession(
        str(folder / bundle.ONNX), providers=["CPUExecutionProvider"]
    )
    for count in (1, 2, 5, 64):
        pixels = _pixels(count, student.image_size, seed=count).numpy()
        probabilities, features = session.run(None, {INPUT: pixels})
        expected = student.answers(pixels)
        assert np.abs(probabilities - expected.probabilities).max() < 1e-4
        assert np.abs(features - expected.features).max() < 1e-4


def test_a_bundle_holds_hashes_of_all_its_files_and_no_pickle(folder: Path) -> None:
    listed = {line.split("  ")[1] for line in (folder / SUMS).read_text().splitlines()}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert listed == files - {SUMS}
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {
        "", ".json", ".md", ".onnx", ".py", ".safetensors",
    }  # fmt: skip
    done = subprocess.run(["sha256sum", "--quiet", "-c", SUMS], cwd=folder, check=False)
    assert done.returncode == 0


def test_the_bundles_own_code_classifies_without_the_project(
    student: PortableStudent, folder: Path, picture: bytes, tmp_path: Path
) -> None:
    (tmp_path / "picture.png").write_bytes(picture)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from promptkd_student.student import PortableStudent\n"
        "student = PortableStudent.load(sys.argv[1])\n"
        "print(student.classify(sys.argv[2], top=1)[0][0])\n"
        "sys.exit(any(name.split('.')[0] in ('pd_core', 'open_clip') for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(folder), str(tmp_path / "picture.png")],
        cwd=tmp_path,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == student.classify(picture, top=1)[0][0]


def test_a_student_with_its_own_text_features_brings_their_vectors(
    tiny_student: TinyStudent,
) -> None:
    stored = ClassVectors.load(tiny_student.vectors)
    student = predictor.stand_alone(
        tiny_student.folder / "student.safetensors", tiny_student.vectors, tiny_student.weights
    )
    assert torch.equal(student.network.class_vectors, stored.vectors)
    assert student.info["text_features"] == "teacher"


def test_a_larger_picture_than_allowed_is_refused_before_it_is_decoded(
    student: PortableStudent,
) -> None:
    picture = Image.new("L", (40, 40))
    with pytest.raises(BadPicture, match="more than 1599"):
        student.crop(picture, most_pixels=1599)
    assert student.crop(picture, most_pixels=1600).shape == (32, 32, 3)
    with pytest.raises(BadPicture, match="too long for its other side"):
        student.crop(Image.new("L", (1, 1600)), most_pixels=1600)


def test_a_corrupt_bundle_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes((folder / "model.json").read_bytes())
    weights = (folder / "student.safetensors").read_bytes()
    (tmp_path / "student.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(BadArtifact, match="holds no student") as caught:
        predictor.load_bundle(tmp_path)
    assert "\n" not in str(caught.value)
