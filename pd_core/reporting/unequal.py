"""Metrics of data sets whose classes have unequal numbers of test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pd_core.core.options import TITLES, Metric
from pd_core.core.scores import LEGEND, is_worse, mark
from pd_core.evaluation.class_metrics import METRICS, ClassMetrics, of_evaluation
from pd_core.reporting.results import Titles, title
from pd_core.reporting.tables import NONE, Kind, Row, Table

Measured = Mapping[str, Mapping[str, ClassMetrics]]  # data set -> model

_NOTES = (
    "all classes at once, percent, with 95% intervals for the number of test images",
    "largest class: if it is always predicted",
)


def read(evaluations: Path, datasets: Sequence[str]) -> dict[str, dict[str, ClassMetrics]]:
    """Compute the metrics of evaluated data sets whose classes are unequal.

    Args:
        evaluations: folder with `<data set>/predictions.json`.
        datasets: names of the data sets.
    """
    measured = {name: of_evaluation(evaluations / name) for name in datasets}
    return {
        name: models
        for name, models in measured.items()
        if any(metrics.unequal for metrics in models.values())
    }


def table(measured: Measured, titles: Titles | None) -> Table:
    """Return every model's metrics, and those of always predicting the largest class."""
    rows, notes = [], list(_NOTES)
    for name, models in measured.items():
        evaluation = _accuracies(models)
        rows.append(Row((title(name, titles), *[""] * len(METRICS)), Kind.HEADING))
        for model, metrics in models.items():
            cells = (
                f"{metrics.metrics[metric]}{mark(model, evaluation, metric)}" for metric in METRICS
            )
            rows.append(Row((TITLES[model], *cells)))
        first = next(iter(models.values()))
        accuracies = (f"{first.largest_class:.1f}", f"{first.one_class:.1f}")
        rows.append(Row(("largest class", *accuracies, NONE)))
    if any(is_worse(_accuracies(models)) for models in measured.values()):
        notes.append(LEGEND)
    return Table(
        ("", *METRICS.values()),
        rows,
        title="Classes of unequal size",
        notes=notes,
    )


def _accuracies(models: Mapping[str, ClassMetrics]) -> dict[str, dict[str, float]]:
    return {
        model: {Metric.ACCURACY: metrics.metrics[Metric.ACCURACY].value}
        for model, metrics in models.items()
    }
