"""Several teachers: the average of their predictions, and their loading."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import tiny
import torch
import trainings
from safetensors.torch import save_file
from tiny import NAMES, images
from torch import Tensor

from pd_core.core.errors import BadArtifact, BadParams, MissingFile
from pd_core.core.options import TeacherMethod, TeacherWeighting
from pd_core.data.loading.images import Batch
from pd_core.models import class_vectors
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.training.loop import losses
from pd_core.training.student.config import FurtherTeacher
from pd_core.training.student.targets import LiveTeacher, load_further


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with tiny.quick_stages("training.student.stage", "training.student.targets"):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store weights of three CLIPs, one with a wider joint space, and two tuned teachers."""
    folder = tmp_path_factory.mktemp("ensemble")
    tiny.prepared(folder / "prepare" / "flowers")
    for seed in (0, 1):
        tiny.weights(folder, seed=seed)
    (folder / "configs").mkdir()
    config = json.dumps({**tiny.CONFIG, "embed_dim": 24})
    (folder / "configs" / "tiny-wide.json").write_text(config)
    open_clip.add_model_config(folder / "configs")
    save_file(tiny.model(joint_width=24, seed=5).state_dict(), folder / "wide.safetensors")
    tuned().save(folder / "tuned" / "teacher.safetensors")
    wide = Teacher.untrained(tiny.loaded("tiny-wide", folder / "wide.safetensors"), text_depth=1)
    wide.save(folder / "wide" / "teacher.safetensors")
    class_vectors.build(tuned(), NAMES).save(folder / "vectors" / "class_vectors.safetensors")
    return folder


def tuned() -> Teacher:
    """Make a teacher with prompts."""
    return Teacher.untrained(tiny.towers(), method=TeacherMethod.IVLP, text_depth=2, seed=3).eval()


def supervisor(teacher: Teacher) -> LiveTeacher:
    return trainings.live(teacher, class_vectors.build(teacher, NAMES))


def wide(data: Path, **given: str) -> FurtherTeacher:
    return FurtherTeacher(model="tiny-wide", weights=str(data / "wide.safetensors"), **given)


def load(data: Path, *entries: FurtherTeacher) -> list[LiveTeacher]:
    first = tiny.loaded("tiny", data / "tiny-0.safetensors")
    return load_further(entries, NAMES, first, trainings.COMPUTE)


def run(data: Path, out: Path, *entries: FurtherTeacher, **rest: Any) -> bytes:
    trainings.run_student(
        data / "prepare" / "flowers", data / "tuned", data / "vectors", out,
        model="tiny", weights=data / "tiny-1.safetensors",
        teacher_model="tiny", teacher_weights=data / "tiny-0.safetensors",
        further_teachers=entries, **{"epochs": 2, "batch_size": 10, "lr": 1e-4, **rest},
    )  # fmt: skip
    return (out / "student.safetensors").read_bytes()


def logits(*, seed: int) -> Tensor:
    return 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


def averaged(
    parts: Sequence[Tensor], *, temperature: float, by_confidence: bool
) -> list[list[float]]:
    """Average probabilities, image by image and class by class."""
    probabilities = [(part / temperature).softmax(dim=1).tolist() for part in parts]
    rows = []
    for image in zip(*probabilities, strict=True):  # a row of each teacher
        weights = [max(row) if by_confidence else 1.0 for row in image]
        columns = zip(*image, strict=True)
        rows.append([float(np.average(column, weights=weights)) for column in columns])
    return rows


@pytest.mark.parametrize("by_confidence", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_ensembles_predictions_are_the_averaged_probabilities(
    count: int, temperature: float, by_confidence: bool
) -> None:
    parts = [logits(seed=seed) for seed in range(count)]

    made = losses.ensemble(parts, by_confidence=by_confidence, temperature=temperature)

    expected = averaged(parts, temperature=temperature, by_confidence=by_confidence)
    torch.testing.assert_close((made / temperature).softmax(dim=1), torch.tensor(expected))


def test_the_logits_of_a_single_teacher_stay_as_they_are() -> None:
    teacher, batch = supervisor(tuned()), trainings.batch(images(4))

    made = trainings.ensemble(teacher, teacher_weighting=TeacherWeighting.CONFIDENCE).logits(batch)

    assert torch.equal(made, teacher.logits(batch))


@pytest.mark.parametrize("weighting", list(TeacherWeighting))
def test_each_teacher_has_its_own_vectors_and_scale(
    weighting: TeacherWeighting, data: Path
) -> None:
    teachers = [supervisor(tuned()), *load(data, wide(data))]
    parts = []
    for live in teachers:
        with torch.no_grad():
            features = live.teacher.image_features(images(4))
        parts.append(live.teacher.logit_scale * features @ live.vectors.vectors.T)

    made = trainings.ensemble(*teachers, temperature=2.0, teacher_weighting=weighting).logits(
        trainings.batch(images(4))
    )

    by_confidence = weighting is TeacherWeighting.CONFIDENCE
    expected = averaged(parts, temperature=2.0, by_confidence=by_confidence)
    torch.testing.assert_close(
        (made / 2).softmax(dim=1), torch.tensor(expected), rtol=1e-4, atol=1e-5
    )
    assert not made.requires_grad


def test_an_empty_entry_is_the_zero_shot_teacher_on_the_same_towers(data: Path) -> None:
    (live,) = load(data, FurtherTeacher())

    assert live.teacher.method is TeacherMethod.CLIP
    assert live.teacher.towers is tiny.loaded("tiny", data / "tiny-0.safetensors")
    assert list(live.teacher.parameters()) == []
    assert live.vectors.names == NAMES
    zero_shot = class_vectors.build(Teacher(tiny.towers()), NAMES).vectors
    assert torch.equal(live.vectors.vectors, zero_shot)
    assert not torch.allclose(zero_shot, class_vectors.build(tuned(), NAMES).vectors)


def test_a_folder_is_a_tuned_teacher(data: Path) -> None:
    (live,) = load(data, FurtherTeacher(folder=str(data / "tuned")))

    assert live.teacher.method is TeacherMethod.IVLP
    assert not live.teacher.training
    with torch.no_grad():
        features = [teacher.image_features(images(3)) for teacher in (live.teacher, tuned())]
    assert torch.equal(*features)
    assert torch.equal(live.vectors.vectors, class_vectors.build(tuned(), NAMES).vectors)


def test_another_model_may_have_another_joint_width_with_and_without_prompts(data: Path) -> None:
    plain, prompted = load(data, wide(data), wide(data, folder=str(data / "wide")))

    assert plain.vectors.vectors.shape == prompted.vectors.vectors.shape == (5, 24)
    assert plain.teacher.towers.name == "tiny-wide"
    assert [plain.teacher.method, prompted.teacher.method] == [
        TeacherMethod.CLIP,
        TeacherMethod.PROMPTSRC,
    ]


def test_teachers_that_cannot_be_are_refused_in_one_line(data: Path) -> None:
    with pytest.raises(BadParams, match="weights 'some.pt' and no model; name its model"):
        load(data, FurtherTeacher(weights="some.pt"))
    with pytest.raises(MissingFile, match="nowhere/teacher.safetensors'; give the folder"):
        load(data, FurtherTeacher(folder="nowhere"))
    with pytest.raises(BadArtifact, match="trained on model 'tiny-wide', not on 'tiny'"):
        load(data, FurtherTeacher(folder=str(data / "wide")))


def test_the_student_imitates_the_average_and_uses_the_first_teachers_vectors(data: Path) -> None:
    teachers = [supervisor(tuned()), *load(data, wide(data))]
    first, small = teachers[0], tiny.towers("small", joint_width=8, seed=1)

    student, history = trainings.distill(
        small, first.teacher, first.vectors, tiny.Batches(8, size=8), further=teachers[1:],
        teacher_weighting=TeacherWeighting.CONFIDENCE, temperature=2.0, epochs=1,
    )  # fmt: skip

    assert student(images(2)).shape == (2, 16)  # as wide as the first teacher's, not 24
    with torch.no_grad():
        untrained = Student.untrained(small, feature_width=16).train()(images(8))
        own = small.logit_scale * untrained @ first.vectors.vectors.T
        parts = [teacher.logits(trainings.batch(images(8))) for teacher in teachers]
    p = torch.tensor(averaged(parts, temperature=2.0, by_confidence=True))
    expected = 1000 * 2.0**2 * float((p * (p / (own / 2).softmax(dim=1)).log()).sum()) / (8 * 5)
    assert history[0]["loss"] == pytest.approx(expected, rel=1e-3)
    same = own.argmax(dim=1) == p.argmax(dim=1)
    assert history[0]["agreement"] == pytest.approx(100 * float(same.float().mean()))


def test_further_teachers_make_another_student_and_the_same_one_every_time(
    data: Path, tmp_path: Path
) -> None:
    both = (FurtherTeacher(), wide(data))

    first = run(data, tmp_path / "first", *both)

    assert run(data, tmp_path / "again", *both) == first
    others = [
        run(data, tmp_path / "alone"),
        run(data, tmp_path / "one", FurtherTeacher()),
        run(data, tmp_path / "sure", *both, teacher_weighting=TeacherWeighting.CONFIDENCE),
    ]
    assert len({first, *others}) == 4


def test_vectors_are_built_once_and_every_teacher_sees_every_batch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[str, ...]] = []
    encoding: list[Teacher] = []
    build, logits = class_vectors.build, LiveTeacher.logits

    def counted_build(teacher: Teacher, names: tuple[str, ...]) -> class_vectors.ClassVectors:
        built.append(names)
        return build(teacher, names)

    def counted_logits(live: LiveTeacher, batch: Batch) -> Tensor:
        encoding.append(live.teacher)
        return logits(live, batch)

    for module in ("training.student.targets", "models.class_vectors"):
        monkeypatch.setattr(f"pd_core.{module}.build", counted_build)
    monkeypatch.setattr(LiveTeacher, "logits", counted_logits)

    run(data, tmp_path / "student", FurtherTeacher(), wide(data))

    assert built == [NAMES, NAMES]  # of the two further teachers; the first one's are read
    assert [encoding.count(teacher) for teacher in dict.fromkeys(encoding)] == [4, 4, 4]  # steps
