"""The stage `teacher` notes that a teacher has learned nothing, with cause and remedy."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import trainings

from pd_core.core.options import TeacherMethod
from pd_core.training.teacher import check
from pd_core.training.teacher.check import Agreement, agreement


def test_one_prediction_for_everything_is_chance_however_many_labels_have_it() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    measured = agreement(labels, np.zeros(100, np.int64))
    assert measured == Agreement(images=100, correct=90, chance=0.9, predicted=1)
    assert measured.is_chance


@pytest.mark.parametrize(
    ("images", "correct", "chance", "expected"),
    [
        (160, 22, 0.1, True),  # 14%
        (160, 40, 0.1, False),  # 25%
        (48, 16, 1 / 3, True),
        (6, 3, 0.5, True),
        (6, 5, 0.5, False),  # p = 0.11, and yet most are right
        (2, 2, 0.5, False),
        (16_000, 400, 0.01, False),  # 2.5% of ImageNet's labels: poor, but far above chance
        (20, 20, 1.0, False),  # a single class
    ],
)
def test_few_labels_are_no_proof_of_failure(
    images: int, correct: int, chance: float, expected: bool
) -> None:
    assert Agreement(images, correct, chance, predicted=5).is_chance is expected


def test_guessing_is_found_and_good_predictions_are_not() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 8)
    guesses = [agreement(labels, rng.integers(0, 4, 32)).is_chance for _ in range(200)]
    good = [
        agreement(labels, np.where(rng.random(32) < 0.6, labels, rng.integers(0, 4, 32))).is_chance
        for _ in range(200)
    ]
    assert np.mean(guesses) > 0.9
    assert np.mean(good) < 0.01


@pytest.fixture
def quick() -> None:
    tiny.register()


@pytest.mark.usefixtures("quick")
def test_the_stage_notes_a_teacher_of_random_weights_and_stores_it(tmp_path: Path) -> None:
    prepared, notes = tiny.prepared(tmp_path / "prepared", per_class=20), list[str]()
    trainings.run_teacher(
        prepared, tmp_path / "teacher", model="tiny", weights=tiny.weights(tmp_path),
        method=TeacherMethod.IVLP, epochs=1, lr=1e-6, batch_size=10, on_note=notes.append,
    )  # fmt: skip
    (note,) = notes
    assert "labelled images that it was tuned on, where chance gives" in note
    assert "Its CLIP does not recognise these classes untuned either" in note
    assert (tmp_path / "teacher" / "teacher.safetensors").is_file()


def test_a_tuning_that_spoils_a_good_clip_has_another_cause() -> None:
    cause = check._cause(Agreement(images=100, correct=60, chance=0.1, predicted=10))
    assert cause.startswith("Untuned it is right on 60.0%")
    assert "lower teacher.lr" in cause
