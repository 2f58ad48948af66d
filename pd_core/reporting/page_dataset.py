"""A data set on the page: curves, confusion, calibration, cost and where its models differ.

A multiplication and an addition count as two operations, as in torch's counter. Class vectors are
stored, so text towers cost nothing here. Measured times are no result: they lie beside the page,
outside of what DVC hashes.
"""

from __future__ import annotations

import base64
import csv
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from pd_core.core.artifacts import read_json, understood, write_json
from pd_core.core.errors import PdError
from pd_core.core.hooks import NO_HOOKS
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.prepared import Labelled, Prepared, read_prepared, read_split
from pd_core.evaluation.class_metrics import ClassMetrics, Rows, of_rows, read_rows
from pd_core.evaluation.evaluate import outputs
from pd_core.evaluation.metrics import (
    Calibration,
    Confused,
    calibration,
    class_accuracies,
    most_confused,
)
from pd_core.models.precision import set_threads
from pd_core.pipeline import code_hash
from pd_core.pipeline.provenance import content_hash, params_hash
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.stages.jobs import Job, inputs
from pd_core.reporting import figures, page_figures
from pd_core.reporting.page_models import TRAINED, Cost, cost_of, load

AT_A_TIME = 2
"""Data sets whose models run at the same time; they share the cores."""

_SHOWN, _TOP = 8, 3  # images of the gallery; classes of an image
_SIDE = 96  # pixels; a smaller image stays as it is

Curve = tuple[Mapping[str, float], ...]  # an entry an epoch: loss, accuracy or agreement, ...


@dataclass(frozen=True)
class Shown:
    """An image of the gallery."""

    path: str  # in its data set
    name: str  # its class
    top: dict[str, tuple[tuple[str, float], ...]]  # model -> likeliest classes, probabilities
    data: str  # the image, small, as a `data:` address


@dataclass(frozen=True)
class Gallery:
    """Images for which teacher and student predict different classes."""

    images: int  # how many were compared
    teacher_right: int  # those on which they differ and the teacher is right
    student_right: int
    both_wrong: int
    shown: tuple[Shown, ...]  # some of these, evenly spread over the test list


@dataclass(frozen=True)
class Inference:
    """Results by model of running both again, which `predictions.json` does not hold."""

    calibration: dict[str, Calibration]
    cost: dict[str, Cost]
    other: dict[str, int]  # how many predictions differ from those that `evaluate` wrote
    gallery: Gallery


@dataclass(frozen=True)
class Result:
    """Results of a teacher or a student, all classes compared at once."""

    accuracy: float  # percent
    classes: tuple[float | None, ...]  # each class's accuracy, percent; None without test images
    confused: tuple[Confused, ...]  # pairs of classes, the most frequent ones first
    metrics: ClassMetrics | None = None
    calibration: Calibration | None = None  # None if the images or the model are not here
    cost: Cost | None = None


@dataclass(frozen=True)
class DatasetPage:
    """One data set: how its models were trained, and how they compare."""

    name: str
    title: str
    classes: tuple[str, ...]  # C names, by label
    base_count: int  # how many of the first are base classes, all where all were taught
    images: tuple[int, ...]  # test images of each class; none where no test image has a label
    curves: dict[str, Curve]  # by stage
    people: dict[str, Result] = field(default_factory=dict)  # by model; empty without labels
    gallery: Gallery | None = None  # None if the images or a model are not here
    notes: tuple[str, ...] = ()  # what is missing, or does not fit, and why

    @property
    def calibrated(self) -> bool:
        """True if the calibration of teacher or student is known."""
        return any(result.calibration for result in self.people.values())


def gather(job: Job, folder: Path) -> DatasetPage:
    """Gather the outputs of an evaluated data set's stages, and run both models again.

    What is not on this machine, such as photos, is left out and noted. Results of the models are
    cached in `folder`.

    Raises:
        MissingFile: the data set is not prepared.
        BadArtifact: a file is corrupt.
    """
    page, prepared, rows = read_stages(job)
    if not rows:
        return page
    try:
        inference = _cached_inference(job, prepared, rows, folder / f"{page.name}.json")
    except PdError as error:
        note = f"calibration, cost and images are left out: {masked(str(error))}"
        return replace(page, notes=(*page.notes, note))
    notes = (
        f"{model}: {count} of {len(rows)} predictions differ from those of `evaluate`; calibration "
        "and images show the present ones"
        for model, count in inference.other.items()
        if count
    )
    people = {
        model: replace(result, calibration=inference.calibration[model], cost=inference.cost[model])
        for model, result in page.people.items()
    }
    return replace(page, people=people, gallery=inference.gallery, notes=(*page.notes, *notes))


def read_stages(job: Job) -> tuple[DatasetPage, Prepared, Rows]:
    """Read the page, the data set, and the predictions of labelled images, of a job's stages.

    Raises:
        MissingFile: the data set is not prepared.
        BadArtifact: a file is corrupt.
    """
    prepared = read_prepared(job.prepared, data_root=job.data_root)
    notes: list[str] = []
    rows = read_rows(job.evaluation)
    classes = len(prepared.classes)
    remedy = f"run `dvc repro evaluate@{job.evaluation.name}`"
    with understood(job.evaluation / "predictions.json", what="predictions", remedy=remedy):
        labels = np.array([row["label"] for row in rows], np.int64)
        best = {model: np.array([row[model][1] for row in rows], np.int64) for model in TRAINED}
    page = DatasetPage(
        job.prepared.name,
        str(read_split(job.prepared)["title"]),
        prepared.classes,
        len(prepared.taught),
        tuple(np.bincount(labels, minlength=classes).tolist()) if rows else (),
        {"teacher": _curve(job.teacher, notes), "student": _curve(job.student, notes)},
        {
            model: Result(
                100 * float((labels == best[model]).mean()),
                class_accuracies(labels, best[model], classes),
                most_confused(labels, best[model]),
                of_rows(rows, model, classes),
            )
            for model in TRAINED
            if rows
        },
    )
    if not rows:
        notes.append("no test image has a label, so nothing is compared")
    return replace(page, notes=tuple(notes)), prepared, rows


def _curve(folder: Path, notes: list[str]) -> Curve:
    """Read a training's history; a zero-shot teacher has none."""
    try:
        rows = read_json(folder / "history.json", what="history", remedy="run `dvc pull`")
    except PdError as error:
        notes.append(f"no learning curve: {masked(str(error))}")
        return ()
    return tuple(rows)


@dataclass(frozen=True)
class _Cached:
    key: str
    answered: Inference


def _cached_inference(job: Job, prepared: Prepared, rows: Rows, path: Path) -> Inference:
    """Run both models, or read the cached result, by a hash of its causes.

    A cache that cannot be read is written anew.
    """
    files = [*inputs(job, "evaluate"), job.evaluation, Path(__file__)]
    key = params_hash({
        **{str(number): content_hash(file) for number, file in enumerate(files)},
        "code": code_hash.of_stage("evaluate"),
        "params": [job.params.student.model_dump(mode="json"), job.params.teacher.model,
                   job.params.evaluate.model_dump(mode="json"), job.params.run.precision],
    })  # fmt: skip
    with suppress(OSError, ValidationError):
        cached = TypeAdapter(_Cached).validate_json(path.read_bytes())
        if cached.key == key:
            return cached.answered
    inference = infer(job, prepared, rows)
    write_json(path, asdict(_Cached(key, inference)))
    return inference


def infer(job: Job, prepared: Prepared, rows: Rows) -> Inference:
    """Classify all test images of a data set with teacher and student, as `evaluate` did.

    Raises:
        PdError: images or outputs of the stages are not there.
    """
    # The page is no result: its last bits do not matter.
    set_threads(max(1, (os.cpu_count() or 1) // AT_A_TIME))
    loaded = {model: load(job, model) for model in TRAINED}
    predicted = outputs(
        {model: part.classifier for model, part in loaded.items()},
        prepared, _likeliest, job.params.evaluate, job.compute, NO_HOOKS,
    )  # fmt: skip
    top = predicted.rows
    best = {model: top[model][:, 0, 0].astype(np.int64) for model in TRAINED}
    labels = np.array([label for _, label in predicted.items])
    written = {row["path"]: row for row in rows}
    return Inference(
        {model: calibration(top[model][:, 0, 1], best[model] == labels) for model in TRAINED},
        {model: cost_of(part.model, len(prepared.classes)) for model, part in loaded.items()},
        {
            model: sum(
                path not in written or written[path][model][1] != label
                for (path, _), label in zip(predicted.items, best[model].tolist(), strict=True)
            )
            for model in TRAINED
        },
        _gallery(predicted.items, top, best, prepared),
    )


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _gallery(
    items: Labelled,
    likeliest: Mapping[str, NDArray[np.float64]],
    best: Mapping[str, NDArray[np.int64]],
    prepared: Prepared,
) -> Gallery:
    """Choose images, of N, on which both differ, by likeliest (N, K, 2) and best classes (N,)."""
    labels = [label for _, label in items]
    differ = best["teacher"] != best["student"]
    teacher, student = (int((differ & (best[model] == labels)).sum()) for model in TRAINED)
    indices = np.flatnonzero(differ).tolist()
    count = min(_SHOWN, len(indices))
    store = ImageStore(prepared.images)

    def shown(index: int) -> Shown:
        path, label = items[index]
        top = {
            model: tuple(
                (prepared.classes[int(number)], round(share, 4))
                for number, share in likeliest[model][index].tolist()
            )
            for model in TRAINED
        }
        return Shown(path, prepared.classes[label], top, _address(store.open(path)))

    return Gallery(
        len(labels),
        teacher,
        student,
        len(indices) - teacher - student,
        tuple(shown(indices[number * len(indices) // count]) for number in range(count)),
    )


def _likeliest(logits: NDArray[np.float32], _: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the likeliest classes and their probabilities, (B, K, 2); the first of equal ones."""
    rest = _softmax(logits)
    pairs = []
    for _number in range(min(_TOP, rest.shape[1])):
        best = rest.argmax(axis=1, keepdims=True)
        pairs.append(np.hstack([best, np.take_along_axis(rest, best, axis=1)]))
        np.put_along_axis(rest, best, -1.0, axis=1)
    return np.stack(pairs, axis=1)


def _address(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    small.save(file, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


CURVES = "learning_curves.svg"
CONFUSION = "confusion_matrix.svg"
CLASSES = "per_class_metrics.csv"
CALIBRATION = "calibration"  # a folder, of a figure a data set


def of_evaluation(job: Job) -> dict[str, str]:
    """Return the files of an evaluated data set's run in MLflow, by name.

    There is no confusion where no test image has a label.

    Raises:
        PdError: outputs of the stages are missing or corrupt.
    """
    page, _, _ = read_stages(job)
    files = {CURVES: figures.standalone(page_figures.curves(page))}
    if page.people:
        files[CONFUSION] = figures.standalone(page_figures.matrices(page))
        files[CLASSES] = _classes(page)
    return files


def calibrations(pages: Sequence[DatasetPage]) -> dict[str, str]:
    """Return the reliability diagrams of the data sets whose models were run, by name."""
    return {
        f"{CALIBRATION}/{page.name}.svg": figures.standalone(page_figures.reliability(page))
        for page in pages
        if page.calibrated
    }


def calibration_errors(pages: Sequence[DatasetPage]) -> dict[str, float]:
    """Return the expected calibration errors, percent, by data set and model."""
    return {
        f"{page.name}/{model}/calibration_error": result.calibration.error
        for page in pages
        for model, result in page.people.items()
        if result.calibration is not None
    }


def _classes(page: DatasetPage) -> str:
    """Write each class's test images, accuracies (recalls), precisions and F1, percent.

    A metric is empty without test images, or, for precision, if the class is never predicted.
    """
    columns: dict[str, Sequence[float | None]] = {
        model: page.people[model].classes for model in TRAINED
    }
    for metric in ("precision", "f1"):
        for model in TRAINED:
            columns[f"{model}_{metric}"] = getattr(page.people[model].metrics, metric)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["label", "class", "images", *columns])
    for label, name in enumerate(page.classes):
        values = [column[label] for column in columns.values()]
        cells = ("" if value is None else f"{value:.2f}" for value in values)
        table.writerow([label, name, page.images[label], *cells])
    return text.getvalue()
