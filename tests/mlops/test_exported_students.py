"""Students of towers that are no plain vision transformers are deployed with torch alone."""

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import onnxruntime
import open_clip
import pytest
import tiny
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from serving import new_project, serving
from torch import Tensor, nn
from torch.nn.functional import normalize
from tracked import store

from pd_core.core.errors import BadArtifact
from pd_core.core.options import Trained
from pd_core.mlops import bundle, registry
from pd_core.mlops.bulk.predict import classify
from pd_core.mlops.export.onnx import write_onnx
from pd_core.mlops.fold import fold
from pd_core.mlops.predictor import load_bundle, load_student
from pd_core.mlops.registry import CHAMPION, classes, find, set_alias, trial
from pd_core.mlops.registry.register import Origin, register
from pd_core.mlops.registry.trial import Task
from pd_core.models.class_vectors import ClassVectors
from pd_core.models.clip import freeze, load_clip
from pd_core.models.portable.network import ExportedNetwork, projector
from pd_core.models.portable.student import PortableStudent
from pd_core.models.portable.tower import ExportedTower, operation
from pd_core.models.student import Student
from pd_core.models.towers import trained_parts
from pd_core.reporting.page_models import cost_of, image_operations

__all__ = ["store"]  # a fixture

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's exporter, MLflow's search
]

QUICK = ("RN50", "convnext_base", "EVA02-B-16", "ViT-B-16-SigLIP")
PLAIN = ("ViT-B-16", "ViT-B-16-quickgelu", "ViT-H-14-worldwide")
EXPORTED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in architectures.VISION
    if name not in PLAIN
]


@cache
def trained(name: str) -> Student:
    """Make a student of random weights, with prompts where they are possible."""
    towers = architectures.towers(name)
    part = trained_parts(towers.visual)[0]
    student = Student.untrained(towers, feature_width=24, depth=2, length=3, trained=part)
    with torch.no_grad():  # its batch norms learn their statistics
        student.train()(towers.preprocess.normalise(torch.from_numpy(pixels(name, 8))))
    return student.eval()


@cache
def folded(name: str) -> PortableStudent:
    network = fold(trained(name), vectors())
    return PortableStudent(network, {"names": tiny.NAMES, "model": name, "vectors": "random"})


def vectors() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return normalize(torch.randn(len(tiny.NAMES), 24, generator=generator), dim=-1)


def pixels(name: str, count: int) -> NDArray[np.uint8]:
    size = architectures.towers(name).image_size
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def expected(name: str, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Return the trained student's probabilities and features."""
    student = trained(name)
    with torch.no_grad():
        features = student(student.towers.preprocess.normalise(torch.from_numpy(images)))
    return (student.logit_scale * features @ vectors().T).softmax(dim=-1), features


def agrees(probabilities: Any, features: Any, name: str, images: NDArray[np.uint8]) -> None:
    for actual, wanted in zip((probabilities, features), expected(name, images), strict=True):
        assert np.abs(np.asarray(actual) - wanted.numpy()).max() < 1e-5


@pytest.mark.parametrize("name", EXPORTED)
def test_a_bundle_gives_the_students_features_for_any_number_of_images(
    name: str, tmp_path: Path
) -> None:
    bundle.write_student(tmp_path, folded(name), {})

    loaded = load_bundle(tmp_path)

    assert isinstance(loaded.network, ExportedNetwork)
    for count in (1, 2, 5):
        images = pixels(name, count)
        made = loaded.answers(images)
        agrees(made.probabilities, made.features, name, images)


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_tower_is_not_exported(name: str) -> None:
    assert not isinstance(folded(name).network, ExportedNetwork)


def test_the_same_student_makes_the_same_bytes(tmp_path: Path) -> None:
    again = PortableStudent(fold(trained("EVA02-B-16"), vectors()), folded("EVA02-B-16").info)

    first = bundle.write_student(tmp_path / "first", folded("EVA02-B-16"), {})
    assert bundle.write_student(tmp_path / "second", again, {}) == first


def test_parallel_branches_of_a_mobileclip_become_one_convolution() -> None:
    visual = trained("MobileCLIP-S1").towers.visual
    network = folded("MobileCLIP-S1").network
    assert isinstance(network, ExportedNetwork)

    operations = [name for name, *_ in network.tower.graph["steps"]]

    layers = sum(isinstance(module, nn.Conv2d) for module in visual.modules())
    assert operations.count("aten.conv2d.default") < 0.8 * layers
    assert not any("reparam" in name for name, _ in visual.named_modules())  # its own stays


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("RN50", marks=pytest.mark.ci), *QUICK[1:]])
def test_onnx_gives_the_students_probabilities(name: str, tmp_path: Path) -> None:
    write_onnx(tmp_path / "student.onnx", folded(name).network)

    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    for count in (1, 4):
        images = pixels(name, count)
        probabilities, features = session.run(["probabilities", "features"], {"pixels": images})
        agrees(probabilities, features, name, images)


WITHOUT = """
import sys, numpy
sys.modules.update(dict.fromkeys(("open_clip", "timm", "pd_core")))  # importing them fails
sys.path.insert(0, sys.argv[1])
from promptkd_student.student import PortableStudent
made = PortableStudent.load(sys.argv[1]).answers(numpy.load(sys.argv[1] + "/images.npy"))
numpy.save(sys.argv[1] + "/features.npy", made.features)
"""


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.usefixtures("no_onnx")
def test_it_is_loaded_without_open_clip_and_timm(tmp_path: Path) -> None:
    images = pixels("EVA02-B-16", 3)
    bundle.write_student(tmp_path, folded("EVA02-B-16"), {})
    bundle.complete(tmp_path, folded("EVA02-B-16"), card="# Card\n", reference=None)
    np.save(tmp_path / "images.npy", images)

    subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT, str(tmp_path)], cwd=tmp_path, check=True, env={}
    )

    features = np.load(tmp_path / "features.npy")
    assert np.abs(features - expected("EVA02-B-16", images)[1].numpy()).max() < 1e-5


def test_a_graph_has_no_constants_of_torch_but_types_and_layouts() -> None:
    steps = [["aten.relu.default", [{"torch": "load"}], {}]]
    with pytest.raises(ValueError, match="argument {'torch': 'load'} is not supported"):
        ExportedTower({"weights": {}, "steps": steps, "features": 0})


def test_the_features_are_kept_though_a_later_step_uses_them() -> None:
    steps = [
        ["aten.relu.default", [{"input": "images"}], {}],
        ["aten.neg.default", [{"input": 0}], {}],
    ]
    tower = ExportedTower({"weights": {}, "steps": steps, "features": 0})
    assert tower(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]


def step(number: int, *changed: Any) -> Callable[[dict[str, Any]], object]:
    """Change the first values of a step: operation, arguments, options."""

    def change(graph: dict[str, Any]) -> None:
        graph["steps"][number][: len(changed)] = changed

    return change


CORRUPT: dict[str, Callable[[dict[str, Any]], object]] = {
    "without steps": lambda graph: graph.pop("steps"),
    "an unknown operation": step(2, "aten.transmogrify.default"),
    "a later result": step(2, "aten.relu.default", [{"input": 9}]),
    "an unknown weight": step(2, "aten.relu.default", [{"input": "nowhere"}]),
    "another argument": step(2, "aten.relu.default", [{"input": {}}]),
    "fewer features": lambda graph: graph.update(features=3),
    "another shape": lambda graph: graph["weights"].update(dict.fromkeys(graph["weights"], [3])),
    "no graph": lambda graph: graph.clear(),
}


@pytest.mark.parametrize("kind", CORRUPT)
def test_a_corrupt_graph_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    bundle.write_student(tmp_path, folded("RN50"), {})
    file = tmp_path / "tower.json"
    graph = json.loads(file.read_text())
    CORRUPT[kind](graph)
    file.write_text(json.dumps(graph))

    with pytest.raises(BadArtifact, match="holds no student") as caught:
        load_bundle(tmp_path)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "builtins.exec", "operator.attrgetter", "operator.__builtins__", "torch.load",
        "aten.__class__.mro", "aten.relu.__init__", "aten.from_file.default", "aten.save.default",
    ],
)  # fmt: skip
def test_a_graph_runs_nothing_but_operations_on_tensors_and_sizes(name: str) -> None:
    with pytest.raises(ValueError, match=f"operation '{name}' is not supported"):
        operation(name)


def test_a_graph_that_is_cut_short_or_missing_is_refused_in_one_line(tmp_path: Path) -> None:
    bundle.write_student(tmp_path, folded("RN50"), {})
    file = tmp_path / "tower.json"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BadArtifact, match="holds no student"):
        load_bundle(tmp_path)
    file.unlink()
    with pytest.raises(BadArtifact, match=r"holds no student \(.*tower\.json"):
        load_bundle(tmp_path)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Make an open_clip model with a small ResNet; return its name and the file of its weights."""
    folder = tmp_path_factory.mktemp("resnet")
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16}
    config = {**tiny.CONFIG, "vision_cfg": vision}
    (folder / "tiny-resnet.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-resnet.json")
    save_file(open_clip.CustomTextCLIP(**config).state_dict(), folder / "weights.safetensors")
    return "tiny-resnet", folder / "weights.safetensors"


@pytest.mark.parametrize("part", [part for part in Trained if "prompts" not in part])
def test_the_stages_outputs_are_classified_with_by_what_was_trained(
    part: Trained, resnet: tuple[str, Path], picture: bytes, tmp_path: Path
) -> None:
    name, weights = resnet
    student = Student.untrained(load_clip(name, weights), feature_width=24, trained=part)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    student.eval().save(tmp_path / "student.safetensors")
    classes = ClassVectors(tiny.NAMES, vectors(), 9.0, "random")
    classes.save(tmp_path / "class_vectors.safetensors")

    predictor = load_student(tmp_path, weights=weights)

    assert isinstance(predictor.student.network, ExportedNetwork)
    image = torch.from_numpy(np.stack([predictor.student.crop(picture)]))
    with torch.no_grad():
        features = student(student.towers.preprocess.normalise(image))
    wanted = (student.logit_scale * features @ vectors().T).softmax(-1)[0].tolist()
    made = dict(predictor.classify(picture))
    assert [made[label] for label in tiny.NAMES] == pytest.approx(wanted, abs=1e-5)


class Odd(nn.Module):
    """A tower with constants on a device, an infinity, and features that are changed in place."""

    output_dim = 32

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 32)

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean(dim=(2, 3))  # (B, 3)
        order = torch.arange(3, dtype=torch.float64, device=images.device)
        scores = order.where(order < 2, -math.inf)
        features: Tensor = self.layer(means * scores.softmax(0).float())
        features[:, 0].add_(1)
        return features


def test_constants_and_changes_in_place_are_exported(tmp_path: Path) -> None:
    student = copy.copy(trained("RN50"))
    student.towers = replace(student.towers, visual=Odd().requires_grad_(requires_grad=False))
    student.projector = projector(32, 24, 2).eval()
    made = PortableStudent(fold(student, vectors()), {"names": tiny.NAMES})
    bundle.write_student(tmp_path, made, {})
    images = pixels("RN50", 3)

    features = load_bundle(tmp_path).answers(images).features

    with torch.no_grad():
        wanted = student(student.towers.preprocess.normalise(torch.from_numpy(images)))
    assert np.abs(features - wanted.numpy()).max() < 1e-5


def test_a_transformer_with_layer_scales_is_exported() -> None:
    config = tiny.CONFIG | {"vision_cfg": tiny.CONFIG["vision_cfg"] | {"ls_init_value": 0.5}}
    base = freeze("scaled", open_clip.CustomTextCLIP(**config), tiny.towers().tokenize)
    student = Student.untrained(base, feature_width=24, depth=2, length=3).eval()

    assert isinstance(fold(student, vectors()), ExportedNetwork)


def test_a_result_is_kept_until_an_option_has_used_it() -> None:
    steps = [
        ["aten.sym_size.int", [{"input": "images"}, 0], {}],
        ["operator.mul", [{"input": 0}, 2], {}],
        ["aten.add.Tensor", [{"input": "images"}, {"input": "images"}], {"alpha": {"input": 0}}],
    ]
    images = torch.ones(3, 1)

    features = ExportedTower({"weights": {}, "steps": steps, "features": 2})(images)

    assert torch.equal(features, torch.full((3, 1), 4.0))  # image + number of images * image


class Conditional(nn.Module):
    """A tower that computes something else for dark images."""

    output_dim = 32

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 32)

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean(dim=(2, 3))
        features: Tensor = self.layer(means if means.sum() > 0 else -means)
        return features


def test_a_tower_that_cannot_be_exported_is_refused_by_its_models_name() -> None:
    student = copy.copy(trained("RN50"))
    student.towers = replace(student.towers, visual=Conditional().requires_grad_(False))

    with pytest.raises(BadArtifact, match="^model 'RN50' cannot be deployed: .* another") as caught:
        fold(student, vectors())

    assert "\n" not in str(caught.value)


def test_its_classes_are_changed_without_training(tmp_path: Path) -> None:
    student = folded("ViT-B-16-SigLIP")
    changed = classes.apply(student, classes.remove(student, tiny.NAMES[:2]))
    bundle.write_student(tmp_path, changed, {})

    made = load_bundle(tmp_path).answers(images := pixels("ViT-B-16-SigLIP", 3))

    kept = expected("ViT-B-16-SigLIP", images)[0][:, 2:]
    assert np.abs(made.probabilities - (kept / kept.sum(1, keepdim=True)).numpy()).max() < 1e-5


def test_a_tower_of_its_own_is_deployed_as_it_was_trained() -> None:
    towers = architectures.towers("convnext_base")
    student = Student.untrained(towers, feature_width=24, trained=Trained.FULL_FINETUNE).eval()
    images = torch.from_numpy(pixels("convnext_base", 2))
    with torch.no_grad():
        for parameter in student.tower.parameters():
            parameter += 0.01
        features = student(towers.preprocess.normalise(images))
        untouched = trained("convnext_base").encode(towers.preprocess.normalise(images))

        network = fold(student, vectors())

        assert torch.allclose(network(images)[1], features, atol=1e-5)
        assert not torch.allclose(network.encode(towers.preprocess.normalise(images)), untouched)


@pytest.mark.parametrize("name", QUICK)
def test_the_page_counts_its_operations(name: str) -> None:
    student = trained(name)
    alone = image_operations(student.towers.visual, None, student.towers.image_size)
    cost = cost_of(student, classes=5)

    layers = [part for part in student.projector if isinstance(part, nn.Linear)]
    rest = sum(2 * part.weight.numel() for part in layers) + 2 * 5 * 24
    assert cost.operations >= alone + rest
    assert (cost.operations > alone + rest) == (student.image_prompts is not None)


def image_files(folder: Path, name: str) -> list[str]:
    folder.mkdir()
    for number, array in enumerate(pixels(name, 3)):
        Image.fromarray(array).save(folder / f"{number}.png")
    return sorted(map(str, folder.iterdir()))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.usefixtures("no_onnx")
def test_a_registered_version_and_the_gates_trial_give_the_students_probabilities(
    store: str, picture: bytes, tmp_path: Path
) -> None:
    name = "EVA02-B-16"
    probabilities = expected(name, pixels(name, 3))[0].numpy()
    files = image_files(tmp_path / "images", name)
    register(store, folded(name), Origin("quickstart", "greek"), example=picture)
    model = registry.fetch(store, find(store, "greek"), tmp_path / "fetched")

    loaded = registry.load_model(model)
    (rows,) = classify(loaded, files, top=5, workers=1)
    tried = trial.run(
        model,
        Task(str(tmp_path / "images"), ("0.png", "1.png", "2.png"), 2, 1, 1, 60),
        tmp_path / "trial",
    )

    for row, wanted in zip(rows, probabilities, strict=True):
        assert dict(row.ranking) == pytest.approx(
            dict(zip(tiny.NAMES, wanted, strict=True)), abs=1e-5
        )
    assert tried.predictions is not None
    order = [tiny.NAMES.index(label) for label in tried.predictions.names]
    assert np.abs(tried.predictions.scores - probabilities[:, order]).max() < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("no_onnx")
@pytest.mark.parametrize("name", QUICK)
def test_the_service_gives_the_students_probabilities(
    name: str, tmp_path: Path, empty_database: Path, picture: bytes
) -> None:
    files = image_files(tmp_path / "images", name)
    store = new_project(tmp_path / "project", empty_database)
    register(store, folded(name), Origin("quickstart", "greek"), example=picture)
    set_alias(store, find(store, "greek"), CHAMPION)

    with serving(tmp_path / "project") as running:
        for file, wanted in zip(files, expected(name, pixels(name, 3))[0], strict=True):
            answer = running.post("/predict?top=5", Path(file).read_bytes()).json()["predictions"]
            by_name = {row["name"]: row["probability"] for row in answer}
            assert [by_name[label] for label in tiny.NAMES] == pytest.approx(
                wanted.tolist(), abs=1e-5
            )
