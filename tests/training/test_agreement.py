"""A student that has learnt nothing of its teacher is a failed run, not a model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
import trainings
from torch import Tensor

from pd_core.core.errors import FailedRun
from pd_core.models.class_vectors import Classifier, build
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.teacher import Teacher
from pd_core.training.student.distillation import SAMPLE, check_agreement
from pd_core.training.student.targets import LiveTeacher


@pytest.fixture
def supervisor() -> LiveTeacher:
    """Make a teacher that tells images apart, as one with random class vectors does not."""
    teacher = Teacher(tiny.towers()).eval()
    features = teacher.image_features(tiny.images(200))
    vectors = F.normalize(features[: len(tiny.NAMES)] - features.mean(dim=0), dim=-1)
    return trainings.live(teacher, replace(build(teacher, tiny.NAMES), vectors=vectors))


def check(supervisor: LiveTeacher, encode: Any, batches: Any = None) -> None:
    student = Classifier(encode, supervisor.vectors, 1.0, Preprocess(16))
    targets = trainings.plain(supervisor)
    check_agreement(student, targets, batches or tiny.Batches(200, size=20), trainings.COMPUTE)


def test_the_teacher_itself_agrees_with_itself(supervisor: LiveTeacher) -> None:
    check(supervisor, supervisor.teacher.image_features)


def test_one_that_is_right_more_often_than_chance_passes(supervisor: LiveTeacher) -> None:
    def mostly(images: Tensor) -> Tensor:
        features = supervisor.teacher.image_features(images)
        features[::4] = torch.randn(len(images[::4]), 16)
        return features

    torch.manual_seed(0)
    check(supervisor, mostly)


def test_one_that_guesses_is_a_failed_run(supervisor: LiveTeacher) -> None:
    torch.manual_seed(0)

    with pytest.raises(
        FailedRun, match=r"agrees .* on [\d.]+% of 200 images.* by chance .*not a model"
    ):
        check(supervisor, lambda images: torch.randn(len(images), 16))


def test_one_that_always_says_the_same_is_a_failed_run_however_often_that_is_right(
    supervisor: LiveTeacher,
) -> None:
    counts = torch.bincount(
        supervisor.vectors.logits(supervisor.teacher.image_features(tiny.images(200))).argmax(1)
    )
    favourite = supervisor.vectors.vectors[int(counts.argmax())]

    with pytest.raises(FailedRun):
        check(supervisor, lambda images: favourite.expand(len(images), -1))


def test_a_teacher_with_one_prediction_for_everything_is_named_as_the_cause(
    supervisor: LiveTeacher,
) -> None:
    zero = torch.zeros_like(supervisor.vectors.vectors)  # a draw: the first wins
    teacher = replace(supervisor, vectors=replace(supervisor.vectors, vectors=zero))
    torch.manual_seed(0)

    def guess(images: Tensor) -> Tensor:
        return torch.randn(len(images), 16)

    student = Classifier(guess, supervisor.vectors, 1.0, Preprocess(16))
    targets, batches = trainings.plain(teacher), tiny.Batches(200, size=20)
    with pytest.raises(FailedRun, match="the teacher predicts one class for all 200 unlabelled"):
        check_agreement(student, targets, batches, trainings.COMPUTE)


def test_no_more_pictures_are_looked_at_than_it_takes(supervisor: LiveTeacher) -> None:
    seen: list[int] = []

    def encode(images: Tensor) -> Tensor:
        seen.append(len(images))
        return supervisor.teacher.image_features(images)

    check(supervisor, encode, tiny.Batches(1000, size=100))

    assert sum(seen) == -(-SAMPLE // 100) * 100


def test_the_stage_writes_no_such_student(tmp_path: Path) -> None:
    prepared = tiny.prepared(tmp_path / "prepare" / "flowers")
    with tiny.torch_restored(), pytest.raises(FailedRun, match="20 (unlabelled )?images"):
        trainings.run_until_student(
            tmp_path, prepared, tuning={"epochs": 1, "templates": 2},
            distillation={"epochs": 1, "batch_size": 4},
        )  # fmt: skip

    assert not (tmp_path / "student").exists()


def test_a_rehearsal_notes_it_and_goes_on(tmp_path: Path) -> None:
    prepared, notes = tiny.prepared(tmp_path / "prepare" / "flowers"), list[str]()
    with tiny.torch_restored():
        trainings.run_until_student(
            tmp_path, prepared, tuning={"epochs": 1, "templates": 2},
            distillation={
                "epochs": 1, "batch_size": 4, "is_rehearsal": True, "on_note": notes.append
            },
        )  # fmt: skip

    assert (tmp_path / "student" / "flowers" / "student.safetensors").is_file()
    assert notes[-1].startswith("passed over in a rehearsal: ")
