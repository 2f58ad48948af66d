"""Self-contained bundle of a student: weights, names, code, ONNX, model card."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Template
from PIL import Image

from pd_core.core.artifacts import write_json, write_sums, write_text, write_weights
from pd_core.core.atomic import write_bytes
from pd_core.core.options import TITLES
from pd_core.core.scores import LEGEND, is_worse, mark, sign
from pd_core.evaluation.class_metrics import METRICS, ClassMetrics
from pd_core.mlops.drift import Reference
from pd_core.mlops.export import onnx
from pd_core.mlops.export.measure import Accuracy
from pd_core.models import portable
from pd_core.models.portable.network import ExportedNetwork, StudentNetwork
from pd_core.models.portable.runtimes import ExportedRuntime
from pd_core.models.portable.student import DESCRIPTION, TOWER, WEIGHTS, PortableStudent
from pd_core.pipeline import provenance

CODE = "promptkd_student"
CARD = "README.md"
REFERENCE = "reference.safetensors"
ONNX = "student.onnx"
FORMAT = 1

Metrics = Mapping[str, Mapping[str, float]]  # classifier -> base, novel, hm, all, in percent

_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_BATCH = 64
_COLUMNS = {"base": "base", "novel": "novel", "hm": "harmonic mean", "all": "all classes"}
_CHANGES = "## Changes of the classes"
_EXPORT = "## Export"
_CLASSES = "## Classes"
_Z = 1.96  # of a 95% interval


def write_student(folder: Path, student: PortableStudent, facts: Mapping[str, Any]) -> str:
    """Write weights and description, reproducible to the byte; return their hash.

    Raises:
        PdError: the folder cannot be written.
    """
    runtime = student.runtime
    description = {
        **student.info,
        **facts,
        "format": FORMAT,
        "names": list(student.names),
        "preprocess": asdict(student.preprocess),
    }
    if isinstance(runtime, ExportedRuntime):
        for file in runtime.files:
            write_bytes(folder / file.name, file.read_bytes())
    else:
        description |= _write_network(folder, student.network)
    write_json(folder / DESCRIPTION, description)
    return provenance.content_hash(folder)


def _write_network(folder: Path, network: StudentNetwork) -> dict[str, Any]:
    """Write weights, and the graph of an exported tower; return their part of the description."""
    write_weights(folder / WEIGHTS, network.state_dict())
    sizes = {"network": asdict(network.sizes)}
    if not isinstance(network, ExportedNetwork):
        return sizes
    write_text(folder / TOWER, json.dumps(network.tower.graph, allow_nan=False))
    return {**sizes, "tower": TOWER}


def complete(
    folder: Path, student: PortableStudent, *, card: str, reference: Reference | None
) -> None:
    """Add ONNX, card, reference, code and checksums to a folder that `write_student` wrote.

    A student that was exported has no other ONNX file.

    Raises:
        PdError: the folder cannot be written, or the outputs of ONNX differ from torch's.
    """
    if not isinstance(student.runtime, ExportedRuntime):
        onnx.write_onnx(folder / ONNX, student.network.cpu())
    write_text(folder / CARD, card)
    if reference is not None:
        reference.save(folder / REFERENCE)
    shutil.copytree(
        Path(portable.__file__).parent, folder / CODE, ignore=shutil.ignore_patterns("__pycache__")
    )
    write_sums(folder)


def reference_of(student: PortableStudent, images: Iterable[Image.Image]) -> Reference | None:
    """Classify N training images (RGB), as a reference for drift; None without images."""
    crops = [student.crop(image) for image in images]
    if not crops:
        return None
    outputs = [
        student.answers(np.stack(crops[start : start + _BATCH]))
        for start in range(0, len(crops), _BATCH)
    ]
    return Reference.of(
        np.concatenate([output.probabilities for output in outputs]),
        np.concatenate([output.features for output in outputs]),
    )


def card(
    name: str,
    info: Mapping[str, Any],
    metrics: Metrics,
    counts: Mapping[str, int],
    tags: Mapping[str, str],
    classes: Mapping[str, ClassMetrics],
) -> str:
    """Return the model card of a version, as Markdown.

    Args:
        name: of the model.
        info: content of its `model.json`.
        metrics: accuracies; empty if no test image has a label.
        counts: see `register.counts`; may be empty.
        tags: of the version: protocol, seed, git commit, ...
        classes: metrics over all classes by classifier, shown where the classes are unequal.
    """
    titles = {key: title + mark(key, metrics) for key, title in TITLES.items()}
    measured = {titles[key]: metrics[key] for key in titles if key in metrics}
    columns = [key for key in _COLUMNS if key in next(iter(measured.values()), {})]
    unequal = {
        title: classes[key]
        for key, title in titles.items()
        if key in classes and classes[key].unequal
    }
    template = Template(_TEMPLATE.read_text("utf-8"), trim_blocks=True, keep_trailing_newline=True)
    text: str = template.render(
        name=name,
        info=info,
        counts=counts,
        tags=tags,
        columns=[_COLUMNS[key] for key in columns],
        rows={
            title: [_with_interval(scores[key], counts.get(key, 0)) for key in columns]
            for title, scores in measured.items()
        },
        legend=LEGEND if is_worse(metrics) else "",
        estimates={
            key.replace("_", " "): f"{scores['student']:.1f}%"
            + sign(key == "cross_validated" and is_worse(metrics))
            for key, scores in metrics.items()
            if isinstance(scores, Mapping) and "student" in scores
        },
        unequal=unequal,
        class_rows=_class_rows(info["names"], classes["student"]) if unequal else (),
        METRICS=METRICS,
        origin={
            key: value
            for key, value in tags.items()
            if key in ("git_commit", "profile") or key.startswith("out:")
        },
    )
    return text + _classes(info["names"])


def with_change(text: str, change: str, names: Sequence[str]) -> str:
    """Add a one-line change of the classes to a card; `names` are the new classes."""
    before = text.partition(_CLASSES)[0].rstrip()
    if _CHANGES not in before:
        before += f"\n\n{_CHANGES}\n\nThe accuracy above was measured before these.\n"
    return f"{before}\n- {change}\n\n{_classes(names)}"


def with_export(text: str, form: str, precision: str, accuracy: Accuracy | None) -> str:
    """Add the export to a card; `accuracy` None where it is unknown."""
    line = f"Exported to {form} in {precision}; the accuracy above is the original's. "
    if accuracy is None:
        line += "That of the export was not measured."
    else:
        hits = accuracy.hits
        line += (
            f"On {hits.pictures} test images, all classes at once, the export has "
            f"{100 * hits.first:.2f}% right and the original {100 * hits.second:.2f}% "
            f"({hits.gained} gained, {hits.lost} lost)."
        )
    before, classes, names = text.partition(_CLASSES)
    return f"{before.rstrip()}\n\n{_EXPORT}\n\n{line}\n\n{classes}{names}".rstrip() + "\n"


def _classes(names: Sequence[str]) -> str:
    lines = "\n".join(f"{label}. {name}" for label, name in enumerate(names))
    return f"{_CLASSES}\n\n{lines}\n"


def _class_rows(names: Sequence[str], metrics: ClassMetrics) -> Iterator[tuple[str, ...]]:
    """Yield name, images, precision and recall of the classes with test images."""
    columns = names, metrics.images, metrics.precision, metrics.recall
    for name, images, *shares in zip(*columns, strict=True):
        if images:
            cells = ("" if share is None else f"{share:.0f}" for share in shares)
            yield name.replace("|", r"\|"), str(images), *cells


def _with_interval(percent: float, count: int) -> str:
    """Format an accuracy over `count` images, with half the width of Wilson's interval."""
    if not count:
        return f"{percent:.1f}"
    share, z = percent / 100, _Z
    root = math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return f"{percent:.1f} ± {100 * z * root / (1 + z * z / count):.1f}"
