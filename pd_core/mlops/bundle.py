"""The student as a folder that needs nothing else: weights, names, code, ONNX, model card."""

from __future__ import annotations

import logging
import math
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pd_core.core.artifacts import write_json, write_sums, write_text, write_weights
from pd_core.core.atomic import write_bytes
from pd_core.core.errors import PdError
from pd_core.core.options import TITLES
from pd_core.mlops.drift import Reference
from pd_core.models import portable
from pd_core.models.portable.network import Network
from pd_core.models.portable.student import DESCRIPTION, WEIGHTS, PortableStudent
from pd_core.pipeline import provenance

CODE = "promptkd_student"
CARD = "README.md"
REFERENCE = "reference.safetensors"
ONNX = "student.onnx"
FORMAT = 1

INPUT = "pixels"
OUTPUTS = ("probabilities", "features")

Metrics = Mapping[str, Mapping[str, float]]  # classifier -> base, novel, hm, all, in percent

_BATCH = 64
_TOLERANCE = 1e-4  # between the answers of ONNX and torch
_COLUMNS = {"base": "base", "novel": "novel", "hm": "harmonic mean", "all": "all classes"}
_CHANGES = "## Changes of the classes"
_CLASSES = "## Classes"
_Z = 1.96  # of a 95% interval


def write_student(folder: Path, student: PortableStudent, facts: Mapping[str, Any]) -> str:
    """Write weights and description; the same student and facts give the same bytes.

    Returns:
        The hash that identifies this student.

    Raises:
        PdError: the folder cannot be written.
    """
    network = student.network
    write_weights(folder / WEIGHTS, network.state_dict())
    description = {
        **student.info,
        **facts,
        "format": FORMAT,
        "names": list(student.names),
        "network": asdict(network.sizes),
    }
    write_json(folder / DESCRIPTION, description)
    return provenance.content_hash(folder)


def complete(
    folder: Path, student: PortableStudent, *, card: str, reference: Reference | None
) -> None:
    """Add ONNX, card, reference, code and checksums to a folder that `write_student` wrote.

    Raises:
        PdError: the folder cannot be written, or ONNX answers otherwise than torch.
    """
    write_onnx(folder / ONNX, student.network.cpu())
    write_text(folder / CARD, card)
    if reference is not None:
        reference.save(folder / REFERENCE)
    shutil.copytree(
        Path(portable.__file__).parent, folder / CODE, ignore=shutil.ignore_patterns("__pycache__")
    )
    write_sums(folder)


def reference_of(student: PortableStudent, pictures: Iterable[Image.Image]) -> Reference | None:
    """Classify N images (RGB) that a student was trained on; None without images."""
    crops = [student.crop(picture) for picture in pictures]
    if not crops:
        return None
    answers = [
        student.answers(np.stack(crops[start : start + _BATCH]))
        for start in range(0, len(crops), _BATCH)
    ]
    return Reference.of(
        np.concatenate([answer.probabilities for answer in answers]),
        np.concatenate([answer.features for answer in answers]),
    )


def write_onnx(path: Path, network: Network) -> None:
    """Write a network (in evaluation mode, on the CPU) as ONNX, and compare it with torch.

    Its input is `pixels`, (B, S, S, 3) of uint8 for any B; its outputs are `probabilities` (B, C)
    and `features` (B, D). CLIP's normalisation is inside.

    Raises:
        PdError: the file answers otherwise.
    """
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")  # torch's exporter about its own parts
        program = torch.onnx.export(
            network,
            (torch.from_numpy(_noise(2, network)),),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is, unless a file is given
    model = program.model_proto
    _forget_sources(model)
    write_bytes(path, model.SerializeToString(deterministic=True))
    _check(path, network)


def _forget_sources(model: Any) -> None:
    """Remove the source locations of each node, which name files of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _check(path: Path, network: Network) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = _noise(3, network)
    answers = session.run(list(OUTPUTS), {INPUT: pixels})
    with torch.inference_mode():
        wanted = network(torch.from_numpy(pixels))
    for name, answer, right in zip(OUTPUTS, answers, wanted, strict=True):
        off = float(np.abs(answer - right.numpy()).max())
        if not off < _TOLERANCE:
            raise PdError(
                f"the student's {name} differ by {off:.1e} between ONNX and torch; use the "
                f"versions of constraints.txt"
            )


def _noise(count: int, network: Network) -> NDArray[np.uint8]:
    size = network.sizes.image_size
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Let only errors of some loggers through."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def card(
    name: str,
    info: Mapping[str, Any],
    metrics: Metrics,
    counts: Mapping[str, int],
    tags: Mapping[str, str],
) -> str:
    """Return the model card of a version, as Markdown.

    Args:
        name: of the model.
        info: the content of its `model.json`.
        metrics: accuracies; none where no test image has a label.
        counts: see `register.counts`; may be empty.
        tags: of the version: protocol, seed, git commit, ...
    """
    sections = [
        f"# {name}",
        _summary(info),
        _data(info, counts),
        _accuracy(metrics, counts, tags),
        _limits(counts),
        _licence(str(info.get("model", ""))),
        _origin(tags),
        _classes(info["names"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def with_change(text: str, change: str, names: Sequence[str]) -> str:
    """Add a change of the classes, described in one line, to a card; `names` are those after it."""
    before = text.partition(_CLASSES)[0].rstrip()
    if _CHANGES not in before:
        before += f"\n\n{_CHANGES}\n\nThe accuracy above was measured before these.\n"
    return f"{before}\n- {change}\n\n{_classes(names)}\n"


def _summary(info: Mapping[str, Any]) -> str:
    sizes = info["network"]
    return (
        f"Names what is in a picture, one of {len(info['names'])} classes. A distilled CLIP: the "
        f"image tower of `{info.get('model', '')}`, frozen, with learnt prompts in "
        f"{sizes['prompt_depth']} of its {sizes['layers']} blocks and a learnt projector; its "
        f"features are compared with class vectors of the teacher, {info.get('vectors', '')} "
        f"(PromptKD, CVPR 2024, arXiv 2403.02781). Pictures are resized to {sizes['image_size']} "
        f"pixels (shorter side, bicubic), the middle square is taken and normalised as for CLIP; a "
        f"rotation noted in EXIF is not applied."
    )


def _data(info: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    return (
        f"## Data\n\n`{info.get('dataset', '')}`: the teacher saw {counts['labels']} labelled "
        f"pictures of {counts['taught']} of {counts['classes']} classes, the student "
        f"{counts['unlabelled']} pictures without labels."
    )


def _accuracy(metrics: Metrics, counts: Mapping[str, int], tags: Mapping[str, str]) -> str:
    rows = {who: metrics[who] for who in TITLES if who in metrics}
    if not rows:
        estimates = {
            key.replace("_", " "): scores["student"]
            for key, scores in metrics.items()
            if isinstance(scores, Mapping) and "student" in scores
        }
        return "## Accuracy\n\nUnknown: no labelled test pictures." + "".join(
            f" {key}: {percent:.1f}%." for key, percent in estimates.items()
        )
    keys = [key for key in _COLUMNS if key in next(iter(rows.values()))]
    lines = [
        "## Accuracy",
        "",
        f"Top-1 in percent on {counts.get('all', 0)} test pictures that no training has seen; "
        f"protocol `{tags.get('protocol', '')}`, seed {tags.get('seed', '')}, epoch chosen by "
        f"`{tags.get('selection', '')}`. After ± the half of a 95% interval for so many pictures; "
        "another seed adds to it.",
        "",
        "| | " + " | ".join(_COLUMNS[key] for key in keys) + " |",
        "|---|" + "---:|" * len(keys),
        *(
            f"| {TITLES[who]} | "
            + " | ".join(_with_spread(scores[key], counts.get(key, 0)) for key in keys)
            + " |"
            for who, scores in rows.items()
        ),
    ]
    return "\n".join(lines)


def _with_spread(percent: float, count: int) -> str:
    """Write an accuracy with the half width of Wilson's interval, if it was counted."""
    if not count:
        return f"{percent:.1f}"
    share, z = percent / 100, _Z
    root = math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return f"{percent:.1f} ± {100 * z * root / (1 + z * z / count):.1f}"


def _limits(counts: Mapping[str, int]) -> str:
    untaught = counts.get("classes", 0) - counts.get("taught", 0)
    novel = (
        f" {untaught} of the classes had no labels at all, and are recognised less well."
        if untaught
        else ""
    )
    return (
        "## Limits\n\nIt always answers with one of its classes, also where none is in the "
        "picture, and its probabilities are not calibrated. It knows pictures like those it was "
        f"distilled on, and no others.{novel} Not for decisions about people."
    )


def _licence(model: str) -> str:
    licence = (
        "Apache-2.0: trained for this project on drawn characters."
        if model.startswith("embedded-")
        else f"That of the CLIP `{model}` that it was made from; OpenAI's are under the MIT "
        f"licence, and their model card excludes uses."
    )
    return f"## Licence of the weights\n\n{licence}"


def _origin(tags: Mapping[str, str]) -> str:
    rows = [
        f"| {key} | `{tags[key]}` |"
        for key in sorted(tags)
        if key in ("git_commit", "profile") or key.startswith("out:")
    ]
    return "\n".join(["## Origin\n\n| | |\n|---|---|", *rows]) if rows else ""


def _classes(names: Sequence[str]) -> str:
    return f"{_CLASSES}\n\n" + "\n".join(f"{label}. {name}" for label, name in enumerate(names))
