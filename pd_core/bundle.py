"""The student as a folder that needs nothing else: weights, names, code, ONNX, model card.

What is in it: `student.safetensors` and `model.json` (see `portable.student`), `student.onnx`,
`promptkd_student/` (the code), `reference.safetensors` (what it says about pictures that it was
trained on, for monitoring), `README.md` (the model card) and `SHA256SUMS`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pd_core import onnx_file, portable, provenance
from pd_core.artifacts import read_json, write_json, write_sums, write_text, write_weights
from pd_core.monitoring import Reference
from pd_core.portable.student import DESCRIPTION, WEIGHTS, PortableStudent

CODE = "promptkd_student"
CARD = "README.md"
REFERENCE = "reference.safetensors"
FORMAT = 1

_BATCH = 64


def write_student(folder: Path, student: PortableStudent, facts: Mapping[str, Any]) -> str:
    """Write what the student is: weights and description; the same student, the same bytes.

    Args:
        folder: to write into.
        student: whose network is written.
        facts: more for `model.json`, such as the data set.

    Returns:
        The hash that tells this student from every other.

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
    """Add what a student needs to stand alone to its folder.

    Args:
        folder: written by `write_student`, with the same student.
        student: on any device.
        card: the model card, Markdown.
        reference: what it says about pictures that it was trained on; None if there are none.

    Raises:
        PdError: the folder cannot be written, or ONNX answers otherwise than torch.
    """
    onnx_file.write(folder / onnx_file.FILE, student.network.cpu())
    write_text(folder / CARD, card)
    if reference is not None:
        reference.save(folder / REFERENCE)
    shutil.copytree(
        Path(portable.__file__).parent, folder / CODE, ignore=shutil.ignore_patterns("__pycache__")
    )
    write_sums(folder)


def read_info(folder: Path) -> dict[str, Any]:
    """Read what a bundle says of itself.

    Raises:
        MissingFile: it is no bundle.
        BadArtifact: its description is not JSON.
    """
    info: dict[str, Any] = read_json(
        folder / DESCRIPTION, what="description of the student", remedy="fetch the model again"
    )
    return info


def reference_of(student: PortableStudent, pictures: Iterable[Image.Image]) -> Reference | None:
    """Ask a student about pictures that it was trained on.

    Args:
        student: on the device to compute on.
        pictures: N of them, RGB.

    Returns:
        Its features and answers; None without pictures.
    """
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
