"""Every method of making a teacher: its prompts, its loss, and its artifact."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
import trainings
from tiny import NAMES, images, towers
from torch import Tensor, nn

from pd_core.core.artifacts import read_tensors
from pd_core.core.errors import BadArtifact, BadParams
from pd_core.core.options import TeacherMethod
from pd_core.data.loading.prepared import write_prepared
from pd_core.models import class_vectors
from pd_core.models.clip import ClipTowers
from pd_core.models.prompts import CoupledPrompts, DeepPrompts
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.training.teacher import class_vectors as vectors_stage

TRAINED = [method for method in TeacherMethod if method is not TeacherMethod.CLIP]
CROSS_ENTROPY_ONLY = [method for method in TRAINED if method is not TeacherMethod.PROMPTSRC]
BOTH_TOWERS = {"text_prompts.tokens", "image_prompts.tokens"}
COUPLINGS = {f"image_prompts.couplings.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
PARAMETERS = {
    TeacherMethod.PROMPTSRC: BOTH_TOWERS,
    TeacherMethod.IVLP: BOTH_TOWERS,
    TeacherMethod.MAPLE: {"text_prompts.tokens"} | COUPLINGS,
    TeacherMethod.COOP: {"text_prompts.tokens"},
}
SIZES: dict[str, Any] = {"text_depth": 2, "image_depth": 2}
LABELS = torch.arange(10) % len(NAMES)


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with tiny.quick_stages(*tiny.TRAININGS):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a prepared data set `flowers` and the weights of two CLIPs."""
    folder = tmp_path_factory.mktemp("methods")
    tiny.prepared(folder / "flowers")
    for seed in (0, 1):
        tiny.weights(folder, seed=seed)
    return folder


def run(data: Path, out: Path, method: TeacherMethod, **rest: Any) -> Teacher:
    numbers = {"epochs": 2, "lr": 0.02, "batch_size": 6, "gpa_mean": 2, "templates": 2, **SIZES}
    files: dict[str, Any] = {"model": "tiny", "weights": data / "tiny-0.safetensors"}
    return trainings.run_teacher(
        data / "flowers", out, method=method, **files, **{**numbers, **rest}
    )


def tune(method: TeacherMethod, **rest: Any) -> tuple[Teacher, list[dict[str, float]]]:
    return trainings.tune(
        towers(), tiny.Batches(10, size=10), LABELS, NAMES, method=method,
        **{"epochs": 2, "lr": 0.02, "gpa_mean": 1, "templates": 2, **SIZES, **rest},
    )  # fmt: skip


def untrained(method: TeacherMethod, base: ClipTowers | None = None, **sizes: Any) -> Teacher:
    return Teacher.untrained(base or towers(), method=method, **{**SIZES, **sizes})


def last_epoch(folder: Path) -> dict[str, Tensor]:
    tensors, _ = tiny.stored_state(folder)
    names = [name for name in tensors if name.startswith("module.")]
    return {name.removeprefix("module."): tensors[name] for name in names}


def features(teacher: Teacher, pictures: Tensor | None = None) -> tuple[Tensor, Tensor]:
    pictures = images(3) if pictures is None else pictures
    with torch.no_grad():
        return teacher.image_features(pictures), teacher.text_features(teacher.tokens(NAMES))


def same(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def cut(base: ClipTowers, tower: str, layers: int) -> ClipTowers:
    """Copy the towers and leave only the first blocks of one of them."""
    shallow = copy.deepcopy(getattr(base, tower))
    shallow.transformer.resblocks = shallow.transformer.resblocks[:layers]
    return replace(base, **{tower: shallow})


@pytest.mark.parametrize("method", TRAINED)
def test_a_method_lowers_its_loss_and_trains_its_own_parameters_and_only_promptsrc_averages(
    method: TeacherMethod, tmp_path: Path
) -> None:
    before = untrained(method).state_dict()
    assert before.keys() == PARAMETERS[method]

    teacher, history = tune(method, epochs=8, lr=0.002, checkpoints=tiny.checkpoints(tmp_path))

    assert history[-1]["loss"] < history[0]["loss"]
    last = last_epoch(tmp_path)
    assert last.keys() == before.keys()
    assert not any(torch.equal(last[name], before[name]) for name in before)
    averaged = method is TeacherMethod.PROMPTSRC
    text = "text_prompts.tokens"
    assert torch.equal(teacher.state_dict()[text], last[text]) is not averaged
    stored, _ = tiny.stored_state(tmp_path)
    averages = {name for name in stored if name.startswith("average.")}
    assert averages == ({f"average.{name}" for name in BOTH_TOWERS} if averaged else set())


@pytest.mark.parametrize("method", CROSS_ENTROPY_ONLY)
def test_the_other_methods_minimise_the_cross_entropy_alone(method: TeacherMethod) -> None:
    _, history = tune(method, epochs=1)

    teacher = untrained(method)
    image, text = features(teacher, images(10))
    logits = teacher.logit_scale * image @ text.T
    expected = F.cross_entropy(logits, LABELS)
    assert history[0].keys() == {"loss", "accuracy", "lr"}
    assert history[0]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_maples_image_prompts_are_linear_functions_of_its_text_prompts() -> None:
    teacher = untrained(TeacherMethod.MAPLE, text_depth=2, text_length=3)
    coupled, text = teacher.image_prompts, teacher.text_prompts
    assert isinstance(coupled, CoupledPrompts)
    assert text is not None

    for new in (0.0, 1.0):
        text.tokens.data += new
        assert coupled.tokens.shape == (2, 3, 32)
        for row, couple in enumerate(coupled.couplings):
            assert isinstance(couple, nn.Linear)
            by_hand = text.tokens[row] @ couple.weight.T + couple.bias
            torch.testing.assert_close(coupled.tokens[row], by_hand)


def test_maples_text_prompts_learn_through_the_image_branch() -> None:
    teacher = untrained(TeacherMethod.MAPLE)

    torch.autograd.backward(teacher.image_features(images(4))[:, 0].sum())

    assert teacher.text_prompts is not None
    gradient = teacher.text_prompts.tokens.grad
    assert gradient is not None
    assert bool((gradient.flatten(1).abs().amax(dim=1) > 0).all())


@pytest.mark.parametrize(
    ("tower", "text_depth", "depths"),
    [("visual", 9, (3, 2)), ("text", 9, (2, 2)), ("visual", 1, (1, 1))],
)
def test_maples_depth_is_clipped_to_the_shallower_tower(
    tower: str, text_depth: int, depths: tuple[int, int]
) -> None:
    base = cut(towers(), tower, 2)

    teacher = untrained(TeacherMethod.MAPLE, base, text_depth=text_depth, image_depth=1)

    assert teacher.text_prompts is not None
    assert teacher.image_prompts is not None
    assert (teacher.text_prompts.depth, teacher.image_prompts.depth) == depths
    assert teacher.image_features(images(2)).shape == (2, 16)


def test_the_folded_teacher_has_exactly_the_features_of_the_coupled_one(tmp_path: Path) -> None:
    folded, _ = tune(TeacherMethod.MAPLE, checkpoints=tiny.checkpoints(tmp_path))

    coupled = untrained(TeacherMethod.MAPLE)
    coupled.load_state_dict(last_epoch(tmp_path))
    assert isinstance(folded.image_prompts, DeepPrompts)
    assert not folded.training
    assert same(features(folded), features(coupled))
    assert not same(features(folded), features(untrained(TeacherMethod.MAPLE)))


def test_a_coupled_teachers_artifact_loads_as_ordinary_prompts(tmp_path: Path) -> None:
    coupled = untrained(TeacherMethod.MAPLE)
    coupled.save(tmp_path / "teacher.safetensors")

    read = Teacher.load(tmp_path / "teacher.safetensors", towers())

    assert read.method is TeacherMethod.MAPLE
    assert isinstance(read.image_prompts, DeepPrompts)
    assert same(features(read), features(coupled))
    assert read_tensors(tmp_path / "teacher.safetensors")[0].keys() == {
        "text.tokens",
        "image.tokens",
    }


def test_maple_gives_the_same_bytes_for_the_same_seed_and_others_for_another(
    data: Path, tmp_path: Path
) -> None:
    def written(seed: int) -> bytes:
        run(data, tmp_path / "teacher", TeacherMethod.MAPLE, seed=seed)
        return (tmp_path / "teacher" / "teacher.safetensors").read_bytes()

    first, before = written(1), torch.get_rng_state()

    untrained(TeacherMethod.MAPLE)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert written(1) == first
    assert written(2) != first


def test_coop_only_learns_the_first_text_row_and_sees_as_the_zero_shot_model_does() -> None:
    teacher, _ = tune(TeacherMethod.COOP)
    zero_shot = Teacher(towers())

    assert teacher.text_prompts is not None
    assert teacher.text_prompts.tokens.shape == (1, 4, 32)
    (image, text), (frozen_image, frozen_text) = features(teacher), features(zero_shot)
    assert torch.equal(image, frozen_image)
    assert not torch.allclose(text, frozen_text)


def test_clip_cannot_be_tuned() -> None:
    for refused in (untrained, tune):
        with pytest.raises(BadParams, match="'clip' has no prompts to tune"):
            refused(TeacherMethod.CLIP)


def test_clip_is_not_trained_and_looks_at_no_picture(data: Path, tmp_path: Path) -> None:
    split = json.loads((data / "flowers" / "split.json").read_text())
    folder = tmp_path / "flowers"
    write_prepared(folder, {**split, "images": "nowhere"}, [])

    teacher = trainings.run_teacher(
        folder, tmp_path / "out", model="tiny", weights=data / "tiny-0.safetensors",
        method=TeacherMethod.CLIP, template="a drawing of {}.",
    )  # fmt: skip

    assert list(teacher.parameters()) == []
    assert teacher.texts(["tench"]) == ["a drawing of tench."]
    assert torch.equal(features(teacher)[0], features(Teacher(towers()))[0])
    assert json.loads((tmp_path / "out" / "history.json").read_text()) == []


@pytest.mark.parametrize("method", list(TeacherMethod))
def test_every_teacher_comes_back_with_its_method_and_supervises_a_student(
    method: TeacherMethod, data: Path, tmp_path: Path
) -> None:
    made = run(data, tmp_path / "teacher", method)
    read = Teacher.load(tmp_path / "teacher" / "teacher.safetensors", made.towers)
    assert read.method is method
    assert same(features(read), features(made))
    files: dict[str, Any] = {"model": "tiny", "weights": data / "tiny-0.safetensors"}

    vectors = vectors_stage.run(
        data / "flowers", tmp_path / "teacher", tmp_path / "vectors", **files
    )
    student = trainings.run_student(
        data / "flowers", tmp_path / "teacher", tmp_path / "vectors", tmp_path / "student",
        model="tiny", weights=data / "tiny-1.safetensors", teacher_model="tiny",
        teacher_weights=files["weights"], epochs=4, batch_size=10, lr=1e-4,
    )  # fmt: skip

    assert vectors.source == f"tiny ({method})"
    torch.testing.assert_close(vectors.vectors, features(made)[1], rtol=1e-4, atol=1e-5)
    zero_shot = class_vectors.build(Teacher(made.towers), NAMES).vectors
    assert torch.equal(vectors.vectors, zero_shot) is (method is TeacherMethod.CLIP)
    assert student(images(2)).shape == (2, 16)
    history = json.loads((tmp_path / "student" / "history.json").read_text())
    assert history[-1]["loss"] < history[0]["loss"]


def changes() -> dict[str, Tensor]:
    """Make other weights for a part of each tower, and another logit scale."""
    weights = towers().weights()
    chosen = ("visual.proj", "text.text_projection", "text.ln_final.bias")
    return {key: weights[key] + 0.1 * weights[key].roll(1) + 0.01 for key in chosen} | {
        "logit_scale": torch.tensor(2.0)
    }


def test_changes_of_towers_add_up_and_the_original_stays_as_it_is() -> None:
    before = {key: value.clone() for key, value in towers().weights().items()}
    first, made = features(Teacher(towers())), changes()
    projection = {"visual.proj": made.pop("visual.proj")}

    changed = towers().with_changes(projection).with_changes(made)

    for pair in zip(features(Teacher(changed)), first, strict=True):
        assert not torch.allclose(*pair)
    assert same(features(Teacher(changed)), features(Teacher(towers().with_changes(changes()))))
    assert towers().with_changes({}) is towers()
    assert changed.logit_scale == pytest.approx(float(torch.tensor(2.0).exp()))
    assert changed.changes.keys() == changes().keys()
    assert same(features(Teacher(towers())), first)
    after = towers().weights()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert towers().changes == {}


@pytest.mark.parametrize(
    ("key", "shape", "reason"),
    [
        ("visual.proj", (3, 4), r"'visual.proj' of shape \[3, 4\] .* 'tiny' \(\[32, 16\]\)"),
        ("visual.gone", (2,), r"'visual.gone' of shape \[2\] .* \(no such tensor\)"),
        ("proj", (32, 16), r"\(no such tensor\)"),
    ],
)
def test_changes_of_another_model_are_refused_in_one_line(
    key: str, shape: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(BadArtifact, match=reason) as raised:
        towers().with_changes({key: torch.zeros(shape)})
    assert "\n" not in str(raised.value)


def test_a_teachers_artifact_brings_changed_towers_along(tmp_path: Path) -> None:
    changed = towers().with_changes(changes())
    made = untrained(TeacherMethod.IVLP, changed)
    made.save(tmp_path / "teacher.safetensors")

    read = Teacher.load(tmp_path / "teacher.safetensors", towers())

    assert same(features(read), features(made))
    assert not same(features(read), features(untrained(TeacherMethod.IVLP)))
    assert read.logit_scale == pytest.approx(changed.logit_scale)
    vectors = [class_vectors.build(teacher, NAMES).vectors for teacher in (read, made)]
    assert torch.equal(*vectors)
    read.save(tmp_path / "again.safetensors")
    again, first = (tmp_path / f"{name}.safetensors" for name in ("again", "teacher"))
    assert again.read_bytes() == first.read_bytes()


def test_a_students_artifact_brings_changed_towers_along(tmp_path: Path) -> None:
    made = Student.untrained(towers().with_changes(changes()), feature_width=24).eval()
    made.save(tmp_path / "student.safetensors")

    read = Student.load(tmp_path / "student.safetensors", towers())

    with torch.no_grad():
        assert torch.equal(read(images(3)), made(images(3)))
        plain = Student.untrained(towers(), feature_width=24).eval()
        assert not torch.allclose(read(images(3)), plain(images(3)))
    assert read.logit_scale == pytest.approx(made.logit_scale)
