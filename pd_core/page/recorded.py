"""What MLflow keeps of the page: its figures and tables as files of a run.

The run of `evaluate` has those that need no further answer of a model. Calibration does, which
would cost a large model's run on all test pictures once more, so the run of the page has it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from pd_core.layout import Job
from pd_core.page import dataset, figures
from pd_core.page.answering import PEOPLE
from pd_core.page.dataset import DatasetPage

CURVES = "learning_curves.svg"
CONFUSION = "confusion_matrix.svg"
CLASSES = "per_class_metrics.csv"
CALIBRATION = "calibration"  # a folder, of a figure a data set


def of_evaluation(job: Job) -> dict[str, str]:
    """Return the files of an evaluated data set's run, by name.

    There is no confusion where no test image has a label.

    Raises:
        PdError: what the stages wrote is missing or damaged.
    """
    page = dataset.written(job)
    files = {CURVES: figures.standalone(figures.curves(page))}
    if page.people:
        files[CONFUSION] = figures.standalone(figures.matrices(page))
        files[CLASSES] = _classes(page)
    return files


def calibrations(pages: Sequence[DatasetPage]) -> dict[str, str]:
    """Return the reliability diagrams of the data sets whose models answered, by name."""
    return {
        f"{CALIBRATION}/{page.name}.svg": figures.standalone(figures.reliability(page))
        for page in pages
        if any(person.calibration for person in page.people.values())
    }


def calibration_errors(pages: Sequence[DatasetPage]) -> dict[str, float]:
    """Return the expected calibration errors, percent, by data set and who."""
    return {
        f"{page.name}/{who}/calibration_error": person.calibration.error
        for page in pages
        for who, person in page.people.items()
        if person.calibration is not None
    }


def _classes(page: DatasetPage) -> str:
    """Write each class's test images and accuracies, percent; empty without test images."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["label", "class", "images", *PEOPLE])
    for label, name in enumerate(page.classes):
        accuracies = [page.people[who].classes[label] for who in PEOPLE]
        table.writerow([label, name, page.images[label], *map(_rounded, accuracies)])
    return text.getvalue()


def _rounded(percent: float | None) -> str:
    return "" if percent is None else f"{percent:.2f}"
