"""int8 versions of registered students: the same student, quantised with its training images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pd_core.core.errors import BadData, BadParams
from pd_core.data.loading.prepared import read_prepared
from pd_core.evaluation.paired_metrics import compare_by
from pd_core.mlops import bundle, registry
from pd_core.mlops.export import measure
from pd_core.mlops.export.convert import CALIBRATION, calibration_of, convert
from pd_core.mlops.export.measure import Accuracy, Cost
from pd_core.mlops.export.options import ExportFormat, ExportPrecision
from pd_core.mlops.predictor import load_bundle
from pd_core.mlops.registry import BUNDLE, INHERITED, KIND, PARENT, PRECISION, QUANTIZED, Version
from pd_core.mlops.registry.gate import Exam
from pd_core.mlops.registry.images import input_example, training_images
from pd_core.mlops.registry.register import Origin, Registered, register

_FORM, _INT8 = ExportFormat.ONNX, ExportPrecision.INT8


@dataclass(frozen=True)
class Quantized:
    """A registered int8 version, and how it compares with its original.

    Attributes:
        version: in the registry; None for a dry run.
        accuracy: on the test images; None if none has a label.
        cost: size and latency.
    """

    version: Registered | None
    accuracy: Accuracy | None
    cost: Cost


def quantize(
    store: str, parent: Version, exam: Exam, *, experiment: str, dry_run: bool = False
) -> Quantized:
    """Quantise a version, which stays as it is, and register the result as another version.

    Args:
        store: the registry's.
        parent: of the student to quantise.
        exam: data set, and the accuracy that may be lost.
        experiment: first part of the experiment's name.
        dry_run: register nothing.

    Raises:
        MissingFile: the data set is not prepared, or its images are not there.
        BadParams: the version is quantized already.
        BadData: the int8 student is worse than its original by more than `exam.quantized_margin`.
    """
    prepared = read_prepared(exam.prepared, data_root=exam.data_root)
    with TemporaryDirectory() as temporary:
        model = registry.fetch(store, parent, Path(temporary) / "parent")
        folder = model / BUNDLE
        student = load_bundle(folder)
        if "export" in student.info:
            raise BadParams(f"version {parent.number} is in {student.precision} already")
        calibration = calibration_of(
            student, training_images(exam.prepared, data_root=exam.data_root, most=CALIBRATION)
        )
        made = convert(
            student, Path(temporary), _FORM, _INT8,
            calibration=calibration, source=folder / bundle.ONNX,
        )  # fmt: skip
        accuracy, cost = measure.accuracy(made, student, prepared), measure.cost(made, student)
        _check(parent, accuracy, exam)
        if dry_run:
            return Quantized(None, accuracy, cost)
        before = (folder / bundle.CARD).read_text(encoding="utf-8")
        version = register(
            store,
            made,
            _origin(store, parent, experiment, accuracy, before),
            example=input_example(model),
            reference=training_images(exam.prepared, data_root=exam.data_root),
        )
    return Quantized(version, accuracy, cost)


def _check(parent: Version, accuracy: Accuracy | None, exam: Exam) -> None:
    """Refuse an int8 student that is worse than its original, as the gate does."""
    if accuracy is None:
        return
    result = compare_by(
        exam.metric, accuracy.labels, *accuracy.predicted, confidence=exam.confidence
    )
    if result.bound < -exam.quantized_margin:
        raise BadData(
            f"version {parent.number} of '{parent.name}' in int8 may lose "
            f"{-100 * result.bound:.2f} points ({100 * result.first:.2f}%, the original "
            f"{100 * result.second:.2f}%), {100 * exam.quantized_margin:g} are allowed by "
            f"promotion.quantized_margin; serve the original"
        )


def _origin(
    store: str, parent: Version, experiment: str, accuracy: Accuracy | None, card: str
) -> Origin:
    kept = {key: value for key, value in parent.tags.items() if key in INHERITED}
    own = {} if accuracy is None else {"student/all": f"{100 * accuracy.hits.first:.2f}"}
    made = {PARENT: str(parent.number), KIND: QUANTIZED, PRECISION: str(_INT8)}
    return Origin(
        profile=parent.tags.get("profile", "quickstart"),
        dataset=parent.dataset,
        lineage=registry.lineage(store, parent),
        tags={**kept, **own, **made},
        experiment=experiment,
        card=bundle.with_export(card, _FORM, _INT8, accuracy),
    )
