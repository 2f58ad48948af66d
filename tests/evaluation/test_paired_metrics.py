"""Two classifiers are compared by a metric with a bound and a test that hold."""

import numpy as np
import pytest

from pd_core.core.options import Metric
from pd_core.evaluation.metrics import Labels
from pd_core.evaluation.paired_metrics import compare_by
from pd_core.evaluation.significance import paired

IMAGES = (30, 6, 6)
LABELS = np.repeat(np.arange(3), IMAGES)
BY_CLASS = (Metric.BALANCED_ACCURACY, Metric.MACRO_F1)


def noisy(rng: np.random.Generator, wrong: float) -> Labels:
    """Return labels of which a share is moved to the next class."""
    moved: Labels = np.where(rng.random(len(LABELS)) < wrong, (LABELS + 1) % 3, LABELS)
    return moved


def test_accuracy_has_the_bound_and_the_test_of_paired_proportions() -> None:
    rng = np.random.default_rng(0)
    first, second = noisy(rng, 0.3), noisy(rng, 0.2)
    found = compare_by(Metric.ACCURACY, LABELS, first, second, confidence=0.9)
    counts = paired(first == LABELS, second == LABELS)
    assert (found.bound, found.p) == (counts.lower_bound(0.9), counts.mcnemar())
    assert (found.first, found.second) == pytest.approx((counts.first, counts.second))


@pytest.mark.parametrize("metric", BY_CLASS)
def test_equal_predictions_are_equally_good(metric: Metric) -> None:
    first = noisy(np.random.default_rng(0), 0.3)
    found = compare_by(metric, LABELS, first, first, confidence=0.95)
    assert (found.bound, found.p) == (0, 1)


def test_classes_of_equal_size_have_the_result_of_accuracy() -> None:
    """Balanced accuracy is then accuracy, so that McNemar's test and Tango's bound are close."""
    labels, number = np.repeat(np.arange(3), 20), np.arange(60)
    first, second = (
        np.where(wrong, (labels + 1) % 3, labels)
        for wrong in (number % 4 == 0, (number % 8 == 0) | (number % 15 == 1))
    )
    exact, drawn = (
        compare_by(metric, labels, first, second, confidence=0.95)
        for metric in (Metric.ACCURACY, Metric.BALANCED_ACCURACY)
    )
    assert 0.1 < exact.p < 0.9
    assert drawn.p == pytest.approx(exact.p, abs=0.05)
    assert drawn.bound == pytest.approx(exact.bound, abs=0.03)


@pytest.mark.parametrize("metric", BY_CLASS)
def test_a_small_class_that_is_lost_counts_as_much_as_a_large_one(metric: Metric) -> None:
    lost = np.where(LABELS == 1, 0, LABELS)  # 6 of 42 images
    found = compare_by(metric, LABELS, lost, LABELS, confidence=0.95)
    assert found.second == 1
    assert found.first < 0.7
    assert found.bound < -0.3
    assert found.p < 0.05


@pytest.mark.parametrize("metric", BY_CLASS)
def test_of_equally_good_classifiers_few_are_found_worse(metric: Metric) -> None:
    """The bound lies above zero, and p below 0.05, in about one of twenty draws."""
    rng, draws = np.random.default_rng(1), 60
    above = low = 0
    for _ in range(draws):
        first, second = noisy(rng, 0.3), noisy(rng, 0.3)
        found = compare_by(metric, LABELS, first, second, confidence=0.95, draws=200)
        above += found.bound > 0
        low += found.p < 0.05
    assert above <= 7
    assert low <= 7
