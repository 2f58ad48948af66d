"""The page's metrics are scikit-learn's, its operations those that torch counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import tiny
import torch
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, recall_score
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pd_core.core.options import Trained
from pd_core.evaluation import metrics
from pd_core.models.prompts import DeepPrompts, encode_image
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.reporting.page_models import cost_of, image_operations

CLASSES = 7


@pytest.fixture
def probabilities() -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.full(CLASSES, 0.3), 500)


@pytest.fixture
def labels(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Right more often than by chance, and no image of the last class."""
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, CLASSES - 1, len(probabilities))
    best = np.minimum(probabilities.argmax(axis=1), CLASSES - 2)
    return np.where(rng.random(len(drawn)) < 0.5, best, drawn)


def test_the_confused_pairs_are_those_of_scikit_learns_confusion_matrix(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> None:
    predicted = probabilities.argmax(axis=1)
    pairs = metrics.most_confused(labels, predicted)
    expected = confusion_matrix(labels, predicted, labels=range(CLASSES))
    np.fill_diagonal(expected, 0)
    counts = {(pair.label, pair.taken_for): pair.count for pair in pairs}
    assert counts == {cell: expected[cell] for cell in zip(*np.nonzero(expected), strict=True)}
    assert [pair.count for pair in pairs] == sorted(counts.values(), reverse=True)


def test_a_classs_accuracy_is_scikit_learns_recall(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> None:
    predicted = probabilities.argmax(axis=1)
    *accuracies, without_images = metrics.class_accuracies(labels, predicted, CLASSES)
    expected = recall_score(labels, predicted, labels=range(CLASSES - 1), average=None)
    assert accuracies == pytest.approx(100 * expected)
    assert without_images is None


def test_the_bins_of_the_calibration_are_scikit_learns(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> None:
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    result = metrics.calibration(confidence, correct)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=metrics.BINS)
    assert [bin_.accuracy for bin_ in result.bins] == pytest.approx(accuracy)
    assert [bin_.confidence for bin_ in result.bins] == pytest.approx(mean)
    weights = np.array([bin_.count for bin_ in result.bins]) / len(labels)
    assert result.error == pytest.approx(100 * (weights * abs(accuracy - mean)).sum())
    assert weights.sum() == pytest.approx(1)


def test_certain_predictions_have_no_calibration_error_if_correct_and_all_of_it_if_wrong() -> None:
    sure, right = np.ones(3), np.full(3, fill_value=True)
    assert metrics.calibration(sure, right).error == 0
    assert metrics.calibration(sure, ~right).error == 100


def test_the_most_confused_pairs_come_first_without_correct_predictions() -> None:
    matrix = np.array([[9, 1, 0], [4, 2, 0], [0, 2, 5]])
    labels, predicted = np.repeat(np.indices((3, 3)).reshape(2, 9), matrix.ravel(), axis=1)
    assert metrics.most_confused(labels, predicted) == (
        metrics.Confused(1, 0, 4),
        metrics.Confused(2, 1, 2),
        metrics.Confused(0, 1, 1),
    )


def counted(tower: Any, prompts: DeepPrompts | None) -> int:
    """Return torch's count, which knows attention only as matrix products."""
    size = tower.image_size[0]
    math = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), math:
        encode_image(tower, torch.zeros(1, 3, size, size), prompts)
    return int(counter.get_total_flops())


def deep_prompts(tower: Any, depth: int) -> DeepPrompts | None:
    prompts = DeepPrompts(depth, 4, tower.transformer.width).requires_grad_(requires_grad=False)
    return prompts if depth else None


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_operations_of_a_tiny_tower_are_those_that_torch_counts(depth: int) -> None:
    tower = tiny.towers().visual
    prompts = deep_prompts(tower, depth)
    assert image_operations(tower, prompts, tower.image_size[0]) == counted(tower, prompts)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("depth", [0, 9])
@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-L-14"])
def test_operations_of_the_papers_towers_are_those_that_torch_counts(name: str, depth: int) -> None:
    vision = open_clip.get_model_config(name)
    tower = open_clip.CustomTextCLIP(**vision).visual.eval().requires_grad_(requires_grad=False)
    prompts = deep_prompts(tower, depth)
    operations = image_operations(tower, prompts, tower.image_size[0])
    assert operations == pytest.approx(counted(tower, prompts), rel=0.02)
    assert operations > {"ViT-B-16": 30e9, "ViT-L-14": 150e9}[name]


def test_a_student_is_counted_with_prompts_projector_and_class_vectors() -> None:
    towers = tiny.towers()
    student = Student.untrained(towers, feature_width=24, depth=2, length=4)
    cost = cost_of(student, classes=5)
    assert cost.trained == sum(value.numel() for value in student.parameters())
    assert cost.parameters == cost.trained + size_of(towers.visual)
    projector = 2 * (16 * 24 + 24 * 24)
    tower = image_operations(towers.visual, student.image_prompts, 16)
    assert cost.operations == tower + projector + 2 * 5 * 24


def size_of(tower: Any) -> int:
    return sum(value.numel() for value in tower.parameters())


def test_a_student_whose_tower_is_trained_is_all_trained() -> None:
    student = Student.untrained(tiny.towers(), feature_width=24, trained=Trained.FULL_FINETUNE)
    cost = cost_of(student, classes=5)
    assert cost.trained == cost.parameters


def test_a_teacher_is_counted_without_its_text_tower() -> None:
    towers = tiny.towers()
    cost = cost_of(Teacher(towers), classes=5)
    assert cost.parameters == size_of(towers.visual)
    assert cost.trained == 0
    assert cost.operations == image_operations(towers.visual, None, 16) + 2 * 5 * 16
