"""Images are preprocessed as the model was trained, which open_clip's configurations tell."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import open_clip
import pytest
import tiny
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from tracked import store

from pd_core.core.errors import BadArtifact, BadParams
from pd_core.core.options import Precision
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, eval_transform, train_transform
from pd_core.data.loading.prepared import read_prepared
from pd_core.mlops.bulk.predict import classify
from pd_core.mlops.bundle import write_student
from pd_core.mlops.export.onnx import write_onnx
from pd_core.mlops.fold import fold
from pd_core.mlops.predictor import load_bundle
from pd_core.mlops.registry import fetch, find, gate, load_model
from pd_core.mlops.registry.register import Origin, register
from pd_core.models.class_vectors import ClassVectors, distilled, logits_of
from pd_core.models.class_vectors import build as vectors_of
from pd_core.models.clip import ClipTowers, load_clip
from pd_core.models.portable.pictures import read
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.portable.student import PortableStudent
from pd_core.models.preprocessing import config_of_file, preprocess_of_file, preprocess_of_tag
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher

__all__ = ["store"]  # a fixture

SQUASH = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}

# torch's exporter, about its own parts
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def noise(*shape: int, dtype: Any = np.uint8) -> Any:
    high = int(np.iinfo(dtype).max) + 1
    return np.random.default_rng(len(shape)).integers(0, high, shape, dtype=dtype)


ODD: dict[str, Callable[[], Image.Image]] = {
    "portrait": lambda: Image.fromarray(noise(90, 61, 3)),
    "panorama": lambda: Image.fromarray(noise(40, 300, 3)),
    "grey": lambda: Image.fromarray(noise(70, 50)),
    "16-bit": lambda: Image.fromarray(noise(64, 80, dtype=np.uint16)),
    "with alpha": lambda: Image.fromarray(noise(55, 77, 4), "RGBA"),
}


def of_open_clip(name: str, tag: str) -> Any:
    """Return open_clip's own transform for evaluation."""
    size = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    config = merge_preprocess_dict(PreprocessCfg(size), open_clip.get_pretrained_cfg(name, tag))
    return image_transform_v2(PreprocessCfg(**config), is_train=False)


def test_every_tag_of_open_clip_has_its_own_preprocessing_pixel_for_pixel() -> None:
    images = {name: read(make()) for name, make in ODD.items()}  # decoded to RGB, see `pictures`
    tags: dict[Preprocess, set[tuple[str, str]]] = {}
    for name, tag in open_clip.list_pretrained():
        tags.setdefault(preprocess_of_tag(name, tag), set()).add((name, tag))

    assert sum(map(len, tags.values())) > 150
    assert {(each.mean[0], each.interpolation, each.resize_mode) for each in tags} >= {
        (0.48145466, "bicubic", "shortest"), (0.5, "bicubic", "squash"),
        (0.485, "bilinear", "squash"), (0.0, "bilinear", "shortest"),
    }  # fmt: skip
    for preprocess, models in tags.items():
        ours = eval_transform(preprocess)
        configurations = {repr(of_open_clip(*model)) for model in models}
        assert len(configurations) == 1
        theirs = of_open_clip(*min(models))
        for kind, image in images.items():
            assert torch.equal(ours(image), theirs(image)), (min(models), kind)


def test_a_file_has_the_preprocessing_of_the_configuration_beside_it(tmp_path: Path) -> None:
    path = tiny.weights(tmp_path)
    assert load_clip("tiny", path).preprocess == Preprocess(16)

    config_of_file(path).write_text(json.dumps({"preprocess_cfg": SQUASH}))

    half = (0.5, 0.5, 0.5)
    assert load_clip("tiny", path).preprocess == Preprocess(16, half, half, "bicubic", "squash")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{}", BadArtifact, "has no preprocess_cfg"),
        ("[", BadArtifact, "has no preprocess_cfg"),
        ('{"preprocess_cfg": []}', BadArtifact, "no mapping"),
        ('{"preprocess_cfg": {"resize_mode": "longest"}}', BadParams, "resize_mode 'longest'"),
        ('{"preprocess_cfg": {"interpolation": 3}}', BadParams, "interpolation '3'"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(
    content: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tiny.weights(tmp_path)
    config_of_file(path).write_text(content)

    with pytest.raises(error, match=message):
        load_clip("tiny", path)


def test_weights_as_on_the_hub_have_their_configuration_by_its_name_there() -> None:
    folder = Path("weights").resolve()

    hub = folder / "open_clip_config.json"
    assert config_of_file(folder / "open_clip_model.safetensors") == hub
    assert config_of_file(folder / "open_clip_pytorch_model.bin") == hub
    assert config_of_file(folder / "student.pt") == folder / "student.json"


def test_a_file_of_a_model_whose_tags_differ_needs_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "ViT-L-14.safetensors"

    assert preprocess_of_file("ViT-L-14", file, is_openai=True) == Preprocess(224)
    with pytest.raises(BadParams, match=r"different preprocessing; put .* as 'ViT-L-14\.json'"):
        preprocess_of_file("ViT-L-14", file)
    assert preprocess_of_file("ViT-B-16", file) == Preprocess(224)
    fetched = tmp_path / "ViT-L-14.laion2b_s32b_b82k.safetensors"
    half = (0.5, 0.5, 0.5)
    assert preprocess_of_file("ViT-L-14", fetched) == Preprocess(224, half, half)


@pytest.fixture
def towers(tmp_path: Path) -> ClipTowers:
    """Load a CLIP that was trained with mean 0.5 on squashed images."""
    path = tiny.weights(tmp_path)
    config_of_file(path).write_text(json.dumps({"preprocess_cfg": SQUASH}))
    return load_clip("tiny", path)


def test_teacher_and_student_are_refused_by_a_model_of_other_preprocessing(
    towers: ClipTowers, tmp_path: Path
) -> None:
    plain = load_clip("tiny", tiny.weights(_folder(tmp_path)))
    Teacher(towers).save(tmp_path / "teacher.safetensors")
    Student.untrained(towers, feature_width=8).save(tmp_path / "student.safetensors")

    assert Teacher.load(tmp_path / "teacher.safetensors", towers).towers is towers
    with pytest.raises(BadArtifact, match="'tiny' with images of other preprocessing"):
        Teacher.load(tmp_path / "teacher.safetensors", plain)
    with pytest.raises(BadArtifact, match="'tiny' with images of other preprocessing"):
        Student.load(tmp_path / "student.safetensors", plain)


def _folder(path: Path) -> Path:
    (path / "plain").mkdir()
    return path / "plain"


SQUASHED = image_transform_v2(
    PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(16), SQUASH)), is_train=False
)
"""open_clip's own transform."""


def expected_features(student: Student, image: Image.Image) -> Tensor:
    """Preprocess an image as open_clip does, and encode it."""
    with torch.no_grad():
        features: Tensor = student(SQUASHED(image)[None])[0]
    return features


@dataclass(frozen=True)
class Squashed:
    """A student of squashed images, and what open_clip and it make of one image."""

    student: Student
    vectors: ClassVectors
    image: Path
    features: Tensor  # (D,)
    scores: Tensor  # logits, (C,)

    @property
    def probabilities(self) -> dict[str, float]:
        values = self.scores.softmax(0).tolist()
        return dict(zip(tiny.NAMES, values, strict=True))

    def folded(self) -> PortableStudent:
        network = fold(self.student, self.vectors.vectors)
        info = {"names": tiny.NAMES, "model": "tiny", "vectors": "test"}
        return PortableStudent(network, info)


@pytest.fixture
def squashed(towers: ClipTowers, tmp_path: Path) -> Squashed:
    student = Student.untrained(towers, feature_width=8).eval()
    vectors = ClassVectors(
        tiny.NAMES, normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0))), 9.0,
        "test",
    )  # fmt: skip
    image = ODD["panorama"]()
    image.save(tmp_path / "image.png")
    features = expected_features(student, image)
    scores = student.logit_scale * features @ vectors.vectors.T
    return Squashed(student, vectors, tmp_path / "image.png", features, scores)


def test_a_training_view_of_the_whole_image_is_the_image_as_open_clip_sees_it(
    towers: ClipTowers, tmp_path: Path
) -> None:
    image = Image.fromarray(noise(36, 40, 3))
    image.save(tmp_path / "image.png")
    whole = train_transform(towers.preprocess, scale=(1, 1), flip=False)

    (batch,) = ImageBatches(ImageStore(tmp_path), ["image.png"], whole, batch_size=1).epoch(0)

    assert torch.equal(batch.images, SQUASHED(image)[None])


def test_evaluation_service_and_onnx_see_the_image_as_open_clip_does(
    squashed: Squashed, tmp_path: Path
) -> None:
    preprocess = squashed.student.towers.preprocess
    batches = ImageBatches(
        ImageStore(tmp_path), ["image.png"], eval_transform(preprocess), batch_size=1
    )
    classifiers = {"student": distilled(squashed.student, squashed.vectors)}
    logits = logits_of(classifiers, batches, torch.device("cpu"), Precision.FP32)
    torch.testing.assert_close(torch.from_numpy(logits["student"][0]), squashed.scores)

    write_student(tmp_path / "bundle", squashed.folded(), {})
    served = load_bundle(tmp_path / "bundle")
    assert served.preprocess == preprocess
    pixels = np.stack([served.crop(squashed.image)])
    features = torch.from_numpy(served.answers(pixels).features[0])
    torch.testing.assert_close(features, squashed.features)

    write_onnx(tmp_path / "student.onnx", served.network)
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    probabilities, outputs = session.run(["probabilities", "features"], {"pixels": pixels})
    torch.testing.assert_close(torch.from_numpy(outputs[0]), squashed.features, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.from_numpy(probabilities[0]), squashed.scores.softmax(0))


@pytest.mark.usefixtures("no_onnx")
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
def test_mlflow_and_bulk_prediction_see_the_image_as_open_clip_does(
    squashed: Squashed, store: str, tmp_path: Path
) -> None:
    import mlflow

    image = squashed.image.read_bytes()
    register(store, squashed.folded(), Origin("quickstart", "greek"), example=image)
    model = fetch(store, find(store, "greek"), tmp_path / "fetched")

    (row,) = mlflow.pyfunc.load_model(str(model)).predict({"image": [image]}).itertuples()
    (bulk,) = next(classify(load_model(model), [str(squashed.image)], top=5, workers=1))

    expected = pytest.approx(squashed.probabilities, abs=1e-6)
    assert dict(zip(row.names, row.probabilities, strict=True)) == expected
    assert dict(bulk.ranking) == expected


def test_the_gate_measures_the_zero_shot_student_on_images_as_open_clip_sees_them(
    towers: ClipTowers, tmp_path: Path
) -> None:
    prepared = read_prepared(tiny.prepared(tmp_path / "prepared" / "tiny"))

    scores = gate.zero_shot(prepared, "tiny", str(tmp_path / "tiny-0.safetensors")).scores

    texts = vectors_of(Teacher(towers), prepared.classes).vectors
    for (path, _), row in list(zip(prepared.test, scores, strict=True))[:4]:
        with Image.open(prepared.images / path) as image, torch.no_grad():
            pixels = SQUASHED(image.convert("RGB"))
            features = normalize(tiny.model().encode_image(pixels[None]), dim=-1)[0]
        expected = towers.logit_scale * features @ texts.T
        torch.testing.assert_close(torch.from_numpy(row), expected, atol=1e-4, rtol=0)


def test_models_of_other_sizes_see_the_same_crop_and_flip() -> None:
    small, large = Preprocess(16), Preprocess(48, (0.5,) * 3, (0.5,) * 3, "bilinear")
    ramp = np.linspace(0, 255, 200).astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(ramp, (100, 1))] * 3, axis=-1))

    def view(*models: Preprocess) -> list[Image.Image]:
        torch.manual_seed(3)
        return list(train_transform(*models, scale=(0.1, 0.5), flip=True).crop(image))

    with torch.random.fork_rng(devices=[]):
        first, second = view(small, large)
        assert [np.asarray(each).tolist() for each in view(small)] == [np.asarray(first).tolist()]
    assert (first.size, second.size) == ((16, 16), (48, 48))
    same = np.asarray(second.resize((16, 16)), np.int16) - np.asarray(first, np.int16)
    assert np.abs(same).max() <= 8  # of 255; another crop or flip of the ramp differs by more
