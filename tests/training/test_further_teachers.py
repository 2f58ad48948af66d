"""Several teachers: how their predictions are averaged, and how they come to supervise."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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

EQUALLY: dict[str, Any] = {"by_confidence": False, "temperature": 1.0}


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
    """Make a teacher with prompts, as if they had been tuned."""
    return Teacher.untrained(tiny.towers(), method=TeacherMethod.IVLP, text_depth=2, seed=3).eval()


def supervisor(teacher: Teacher) -> LiveTeacher:
    return trainings.live(teacher, class_vectors.build(teacher, NAMES))


def wanted(**given: str) -> FurtherTeacher:
    """Make an entry as the parameters do; what is not given is None."""
    return FurtherTeacher(**given)


def wide(data: Path, **given: str) -> FurtherTeacher:
    return wanted(model="tiny-wide", weights=str(data / "wide.safetensors"), **given)


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
    for said in zip(*probabilities, strict=True):  # what each teacher says of one image
        weights = [max(row) if by_confidence else 1.0 for row in said]
        rows.append(
            [
                sum(w * row[c] for w, row in zip(weights, said, strict=True)) / sum(weights)
                for c in range(len(said[0]))
            ]
        )
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


def test_the_two_weightings_and_temperatures_differ() -> None:
    parts = [logits(seed=0), logits(seed=1)]

    equal, confident, warm = (
        losses.ensemble(parts, **EQUALLY).softmax(dim=1),
        losses.ensemble(parts, by_confidence=True, temperature=1.0).softmax(dim=1),
        losses.ensemble(parts, by_confidence=False, temperature=4.0).softmax(dim=1),
    )

    assert not torch.allclose(equal, confident, atol=0.01)
    assert not torch.allclose(equal, warm, atol=0.01)


def test_a_teacher_that_is_sure_counts_for_more_and_image_by_image() -> None:
    sure, unsure = torch.tensor([8.0, 0.0]), torch.tensor([0.0, 0.1])
    first, second = torch.stack([sure, unsure]), torch.stack([unsure, sure.flip(0)])

    made = losses.ensemble([first, second], by_confidence=True, temperature=1.0).softmax(dim=1)

    assert made[0, 0] > 0.8  # where the first is sure
    assert made[1, 1] > 0.8  # where the second is
    assert losses.ensemble([first, second], **EQUALLY).softmax(dim=1)[0, 0] < 0.75


@pytest.mark.parametrize("by_confidence", [False, True])
def test_teachers_who_agree_change_nothing(by_confidence: bool) -> None:
    one = logits(seed=0)

    made = losses.ensemble([one, one + 3, one], by_confidence=by_confidence, temperature=2.0)

    torch.testing.assert_close(made.softmax(dim=1), one.softmax(dim=1))


def test_one_teacher_alone_is_asked_directly() -> None:
    one = supervisor(tuned())

    made = trainings.ensemble(one, teacher_weighting=TeacherWeighting.CONFIDENCE).logits(
        trainings.batch(images(4))
    )

    assert torch.equal(made, one.logits(trainings.batch(images(4))))


@pytest.mark.parametrize("weighting", list(TeacherWeighting))
def test_each_teacher_judges_with_its_own_vectors_and_scale(
    weighting: TeacherWeighting, data: Path
) -> None:
    everybody = [supervisor(tuned()), *load(data, wide(data))]
    said = []
    for one in everybody:
        with torch.no_grad():
            features = one.teacher.image_features(images(4))
        said.append(one.teacher.logit_scale * features @ one.vectors.vectors.T)

    made = trainings.ensemble(*everybody, temperature=2.0, teacher_weighting=weighting).logits(
        trainings.batch(images(4))
    )

    by_confidence = weighting is TeacherWeighting.CONFIDENCE
    expected = averaged(said, temperature=2.0, by_confidence=by_confidence)
    torch.testing.assert_close(
        (made / 2).softmax(dim=1), torch.tensor(expected), rtol=1e-4, atol=1e-5
    )
    assert not made.requires_grad


def test_an_empty_entry_is_the_zero_shot_teacher_on_the_same_towers(data: Path) -> None:
    (found,) = load(data, wanted())

    assert found.teacher.method is TeacherMethod.CLIP
    assert found.teacher.towers is tiny.loaded("tiny", data / "tiny-0.safetensors")
    assert list(found.teacher.parameters()) == []
    assert found.vectors.names == NAMES
    zero_shot = class_vectors.build(Teacher(tiny.towers()), NAMES).vectors
    assert torch.equal(found.vectors.vectors, zero_shot)
    assert not torch.allclose(zero_shot, class_vectors.build(tuned(), NAMES).vectors)


def test_a_folder_is_a_tuned_teacher(data: Path) -> None:
    (found,) = load(data, wanted(folder=str(data / "tuned")))

    assert found.teacher.method is TeacherMethod.IVLP
    assert not found.teacher.training
    with torch.no_grad():
        mine, theirs = (one.image_features(images(3)) for one in (found.teacher, tuned()))
    assert torch.equal(mine, theirs)
    assert torch.equal(found.vectors.vectors, class_vectors.build(tuned(), NAMES).vectors)


def test_another_model_may_have_another_joint_width_with_and_without_prompts(data: Path) -> None:
    plain, prompted = load(data, wide(data), wide(data, folder=str(data / "wide")))

    assert plain.vectors.vectors.shape == prompted.vectors.vectors.shape == (5, 24)
    assert plain.teacher.towers.name == "tiny-wide"
    methods = [one.teacher.method for one in (plain, prompted)]
    assert methods == [TeacherMethod.CLIP, TeacherMethod.PROMPTSRC]


def test_teachers_that_cannot_be_are_refused_in_one_line(data: Path) -> None:
    with pytest.raises(BadParams, match="weights 'some.pt' and no model; name its model"):
        load(data, wanted(weights="some.pt"))
    with pytest.raises(MissingFile, match="nowhere/teacher.safetensors'; give the folder"):
        load(data, wanted(folder="nowhere"))
    with pytest.raises(BadArtifact, match="trained on model 'tiny-wide', not on 'tiny'"):
        load(data, wanted(folder=str(data / "wide")))


def test_the_student_imitates_the_average_and_uses_the_first_teachers_vectors(data: Path) -> None:
    everybody = [supervisor(tuned()), *load(data, wide(data))]
    first, small = everybody[0], tiny.towers("small", joint_width=8, seed=1)

    student, history = trainings.distill(
        small, first.teacher, first.vectors, tiny.Batches(8, size=8), further=everybody[1:],
        teacher_weighting=TeacherWeighting.CONFIDENCE, temperature=2.0, epochs=1,
    )  # fmt: skip

    assert student(images(2)).shape == (2, 16)  # as wide as the first teacher's, not 24
    with torch.no_grad():
        untrained = Student.untrained(small, feature_width=16).train()(images(8))
        mine = small.logit_scale * untrained @ first.vectors.vectors.T
        said = [one.logits(trainings.batch(images(8))) for one in everybody]
    p = torch.tensor(averaged(said, temperature=2.0, by_confidence=True))
    expected = 1000 * 2.0**2 * float((p * (p / (mine / 2).softmax(dim=1)).log()).sum()) / (8 * 5)
    assert history[0]["loss"] == pytest.approx(expected, rel=1e-3)
    same = mine.argmax(dim=1) == p.argmax(dim=1)
    assert history[0]["agreement"] == pytest.approx(100 * float(same.float().mean()))


def test_further_teachers_make_another_student_and_the_same_one_every_time(
    data: Path, tmp_path: Path
) -> None:
    both = (wanted(), wide(data))

    first = run(data, tmp_path / "first", *both)

    assert run(data, tmp_path / "again", *both) == first
    others = [
        run(data, tmp_path / "alone"),
        run(data, tmp_path / "one", wanted()),
        run(data, tmp_path / "sure", *both, teacher_weighting=TeacherWeighting.CONFIDENCE),
    ]
    assert len({first, *others}) == 4


def test_vectors_are_built_once_and_every_teacher_sees_every_batch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[str, ...]] = []
    asked: list[Teacher] = []
    build, judge = class_vectors.build, LiveTeacher.logits

    def counted_build(teacher: Teacher, names: tuple[str, ...]) -> class_vectors.ClassVectors:
        built.append(names)
        return build(teacher, names)

    def counted_judge(one: LiveTeacher, batch: Batch) -> Tensor:
        asked.append(one.teacher)
        return judge(one, batch)

    for module in ("training.student.targets", "models.class_vectors"):
        monkeypatch.setattr(f"pd_core.{module}.build", counted_build)
    monkeypatch.setattr(LiveTeacher, "logits", counted_judge)

    run(data, tmp_path / "student", wanted(), wide(data))

    assert built == [NAMES, NAMES]  # of the two further teachers; the first one's are read
    assert [asked.count(teacher) for teacher in dict.fromkeys(asked)] == [4, 4, 4]  # steps
