"""Tables of a data set on the page: accuracy, confused classes, and every class."""

from __future__ import annotations

from pd_core.core.options import Metric
from pd_core.core.scores import mark
from pd_core.evaluation.class_metrics import METRICS, ClassMetrics
from pd_core.reporting.page_dataset import DatasetPage
from pd_core.reporting.page_models import TRAINED
from pd_core.reporting.results import Evaluation
from pd_core.reporting.tables import NONE, Column, Table

_PAIRS = 5  # of confused classes


def accuracy_table(page: DatasetPage, evaluation: Evaluation) -> Table:
    """Return the metrics of teacher and student, all classes compared at once.

    Balanced accuracy and F1 are shown where the classes differ in their number of images. A student
    that is worse than the zero-shot one in the evaluation, its scores by model, is marked.
    """
    measured = {model: result.metrics for model, result in page.people.items() if result.metrics}
    unequal = any(metrics.unequal for metrics in measured.values())
    shown = list(METRICS) if unequal else [Metric.ACCURACY]
    rows = []
    for model, result in page.people.items():
        cells = [str(measured[model].metrics[metric]) for metric in shown if model in measured]
        error = f"{result.calibration.error:.1f}" if result.calibration else NONE
        rows.append((model + mark(model, evaluation), *cells, error))
    if unequal:
        rows.append(_largest_class(page, next(iter(measured.values()))))
    heads = (f"{METRICS[metric]}, %" for metric in shown)
    return Table(("all classes at once", *heads, "calibration error (ECE), %"), rows)


def _largest_class(page: DatasetPage, metrics: ClassMetrics) -> tuple[str, ...]:
    """Return the row of a classifier that always predicts the largest class."""
    name = page.classes[metrics.images.index(max(metrics.images))]
    accuracies = (f"{metrics.largest_class:.1f}", f"{metrics.one_class:.1f}")
    return (f"always {name}", *accuracies, NONE, NONE)


def confused_table(page: DatasetPage, model: str) -> Table:
    """Return the most confused pairs of classes."""
    names = page.classes
    rows = [
        (names[pair.label], names[pair.taken_for], f"{pair.count} of {page.images[pair.label]}")
        for pair in page.people[model].confused[:_PAIRS]
    ]
    taken_for = Column("taken for", words=True, long=True)
    return Table(("class", taken_for, "images"), rows, f"{model}: most confused")


def class_table(page: DatasetPage) -> Table:
    """Return each class's recall and the student's precision, its worst classes first."""
    accuracies = [page.people[model].classes for model in TRAINED]
    halves = page.base_count < len(page.classes)
    order = sorted(
        (label for label, images in enumerate(page.images) if images),
        key=lambda label: (accuracies[1][label] or 0.0, label),
    )
    rows = []
    for label in order:
        half = ["base" if label < page.base_count else "novel"] if halves else []
        cells = (f"{accuracy[label]:.0f}" for accuracy in accuracies)
        precision = _precision(page, "student", label)
        rows.append((page.classes[label], *half, str(page.images[label]), *cells, precision))
    half_column = [Column("half", words=True)] if halves else []
    bars = (Column(model, bar=model) for model in TRAINED)
    heads: list[str | Column] = ["class", *half_column, "images", *bars, "precision"]
    return Table(heads, rows, "accuracy (recall) and the student's precision of each class, %")


def _precision(page: DatasetPage, model: str, label: int) -> str:
    metrics = page.people[model].metrics
    precision = None if metrics is None else metrics.precision[label]
    return NONE if precision is None else f"{precision:.0f}"
