"""The student as a folder that needs nothing else: weights, names, code, ONNX, model card."""

from __future__ import annotations

import io
import logging
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pd_core.core.artifacts import read_json, write_json, write_sums, write_text, write_weights
from pd_core.core.atomic import write_bytes
from pd_core.core.errors import BadData, PdError
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.prepared import Prepared, image_root, read_prepared, read_unlabelled
from pd_core.mlops.drift import Reference
from pd_core.models import portable
from pd_core.models.portable.network import Network
from pd_core.models.portable.student import DESCRIPTION, WEIGHTS, PortableStudent
from pd_core.pipeline import provenance

FILE = "student.onnx"
INPUT = "pixels"
OUTPUTS = ("probabilities", "features")

_TOLERANCE = 1e-4


def write(path: Path, network: Network) -> None:
    """Write a network as ONNX and see that it answers as torch does.

    Its input is `pixels`, (B, S, S, 3) of uint8 for any B; its outputs are `probabilities` (B, C)
    and `features` (B, D). CLIP's normalisation is inside.

    Args:
        path: the file.
        network: in evaluation mode, on the CPU.

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
    """Take out where in which file of this machine each node was made."""
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


class _quiet:  # noqa: N801  reads as what it does
    """Let only errors of some loggers through."""

    def __init__(self, *names: str) -> None:
        self._loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)


MOST_TRAINING_PICTURES = 1000


def example_picture(prepared: Path, *, data_root: Path = Path(), size: int = 336) -> bytes:
    """Return a picture of a prepared data set as a PNG file, to show what the input is like.

    It is the first readable test picture, or unlabelled one where none is for testing.

    Args:
        prepared: folder written by the stage `prepare`.
        data_root: folder that holds the photo data sets.
        size: longest side in pixels; larger pictures are made smaller.

    Raises:
        MissingFile: the data set is not prepared, or its picture is not there.
        BadData: all of them are damaged.
    """
    split = read_prepared(prepared, data_root=data_root)
    store = ImageStore(split.images)
    image = _first_readable(store, [path for path, _ in split.test] or read_unlabelled(prepared))
    image.thumbnail((size, size))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def training_pictures(
    prepared: Path, *, data_root: Path = Path(), most: int = MOST_TRAINING_PICTURES
) -> Iterator[Image.Image]:
    """Open pictures that the student was distilled on, evenly from the whole list.

    Damaged ones are left out.

    Args:
        prepared: folder written by the stage `prepare`.
        data_root: folder that holds the photo data sets.
        most: how many.

    Raises:
        MissingFile: the data set is not prepared, or a picture is not there.
    """
    paths = read_unlabelled(prepared)
    store = ImageStore(image_root(prepared, data_root=data_root), keep_bytes=0)
    step = max(1, -(-len(paths) // most))
    for path in paths[::step]:
        try:
            yield store.open(path)
        except BadData:
            continue


def counts(prepared: Path, *, data_root: Path = Path()) -> dict[str, int]:
    """Count what a student was made of and measured on.

    Args:
        prepared: folder written by the stage `prepare`.
        data_root: folder that holds the photo data sets.

    Returns:
        `classes`, `taught` (classes with labels), `labels`, `unlabelled`, and the test pictures of
        `base`, `novel` and `all` classes.
    """
    split = read_prepared(prepared, data_root=data_root)
    base = sum(label < split.base_count for _, label in split.test)
    return {
        "classes": len(split.classes),
        "taught": len(split.taught),
        "labels": len(split.few_shot),
        "unlabelled": len(read_unlabelled(prepared)),
        **_test_counts(split, base),
    }


def _test_counts(split: Prepared, base: int) -> dict[str, int]:
    return {"base": base, "novel": len(split.test) - base, "all": len(split.test)}


def _first_readable(store: ImageStore, paths: Sequence[str]) -> Image.Image:
    """Open the first picture that is not damaged; the last one's damage is told if all are."""
    for path in paths[:-1]:
        try:
            return store.open(path).copy()
        except BadData:
            continue
    return store.open(paths[-1]).copy()


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
    write(folder / FILE, student.network.cpu())
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
