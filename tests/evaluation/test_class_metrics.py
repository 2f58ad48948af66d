"""Balanced accuracy, F1, precision and recall are scikit-learn's; their intervals hold."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from pd_core.core.options import Metric
from pd_core.evaluation.class_metrics import class_metrics, of_rows

CLASSES = 6


@st.composite
def predictions(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Draw labels and predictions; classes may be without either."""
    images = st.integers(min_value=1, max_value=60)
    one_class = st.integers(min_value=0, max_value=CLASSES - 1)
    count = draw(images)
    some = st.sampled_from(draw(st.lists(one_class, min_size=1)))
    labels = draw(st.lists(some, min_size=count, max_size=count))
    return labels, draw(st.lists(one_class, min_size=count, max_size=count))


@settings(max_examples=300, deadline=None)
@given(predictions())
def test_every_metric_is_that_of_scikit_learn(drawn: tuple[list[int], list[int]]) -> None:
    labels, predicted = drawn
    ours = class_metrics(np.array(labels), np.array(predicted), CLASSES)
    with warnings.catch_warnings():  # that a class without images is predicted
        warnings.simplefilter("ignore")
        expected = {
            Metric.ACCURACY: reference.accuracy_score(labels, predicted),
            Metric.BALANCED_ACCURACY: reference.balanced_accuracy_score(labels, predicted),
            Metric.MACRO_F1: reference.f1_score(labels, predicted, average="macro"),
        }
    values = {metric: interval.value / 100 for metric, interval in ours.metrics.items()}
    assert values == pytest.approx(expected, abs=1e-12)
    each = range(CLASSES)
    precision, recall, f1, images = reference.precision_recall_fscore_support(
        labels, predicted, labels=each, average=None, zero_division=np.nan
    )
    pairs = ((ours.precision, precision), (ours.recall, recall), (ours.f1, f1))
    for found, wanted in pairs:
        assert [None if np.isnan(value) else pytest.approx(100 * value) for value in wanted] == [
            *found
        ]
    assert ours.images == tuple(images)
    for interval in ours.metrics.values():
        assert 0 <= interval.low <= interval.value + 1e-9
        assert interval.value - 1e-9 <= interval.high <= 100


def test_the_interval_of_the_accuracy_is_wilsons() -> None:
    from scipy.stats import binomtest

    labels = np.array([0] * 9 + [1] * 3)
    predicted = np.where(np.arange(12) < 10, labels, 1 - labels)
    ours = class_metrics(labels, predicted, 2)
    expected = binomtest(10, 12).proportion_ci(method="wilson")
    accuracy = ours.metrics[Metric.ACCURACY]
    assert [accuracy.low, accuracy.high] == pytest.approx(
        [100 * expected.low, 100 * expected.high], abs=0.01
    )
    assert str(accuracy) == f"83.3 ({100 * expected.low:.1f}–{100 * expected.high:.1f})"
    assert ours.largest_class == 75
    assert ours.unequal


def test_always_predicting_the_largest_class_is_no_better_than_chance() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    ours = class_metrics(labels, np.zeros(100, np.int64), 2)
    assert ours.metrics[Metric.ACCURACY].value == ours.largest_class == 90
    assert ours.metrics[Metric.BALANCED_ACCURACY].value == 50
    assert ours.precision == (90, None)
    assert ours.recall == (100, 0)


@pytest.mark.parametrize("images", [(20, 20, 20), (5, 5, 50), (3, 4, 10), (100, 10, 10)])
def test_intervals_hold_the_true_value_in_at_least_nine_of_ten_draws(
    images: tuple[int, ...],
) -> None:
    """A bootstrap of macro F1 holds it in half of the draws with 3, 4 and 10 images."""
    rng, draws = np.random.default_rng(0), 300
    confusion = 0.1 * rng.dirichlet(np.ones(3), 3) + 0.9 * np.eye(3)
    expected = np.array(images)[:, None] * confusion
    diagonal = np.diag(expected)
    true = {
        Metric.BALANCED_ACCURACY: np.diag(confusion).mean(),
        Metric.MACRO_F1: (2 * diagonal / (expected.sum(0) + expected.sum(1))).mean(),
    }
    labels = np.repeat(np.arange(3), images)
    held = dict.fromkeys(true, 0)
    for _ in range(draws):
        predicted = np.array([rng.choice(3, p=confusion[label]) for label in labels])
        found = class_metrics(labels, predicted, 3).metrics
        for metric, value in true.items():
            held[metric] += found[metric].low <= 100 * value <= found[metric].high
    assert min(held.values()) >= 0.9 * draws


def test_rows_of_the_evaluation_give_the_metrics_over_all_classes() -> None:
    rows = [
        {"path": "a.png", "label": 0, "student": [0, 0]},
        {"path": "b.png", "label": 1, "student": [1, 0]},
    ]
    assert of_rows(rows, "student", 2).metrics[Metric.ACCURACY].value == 50
