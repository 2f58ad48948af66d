"""Teacher and student of a data set at work: their predictions, what they cost, how fast they are.

A multiplication and an addition count as two operations, as in torch's counter. Class vectors are
stored, so text towers cost nothing here. Measured times are no result: they lie beside the page,
outside what DVC hashes.
"""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pd_core.core.artifacts import read_json, understood, write_json
from pd_core.core.hooks import NO_HOOKS
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.prepared import Labelled, Prepared
from pd_core.evaluation.evaluate import predict
from pd_core.evaluation.metrics import Calibration, calibration
from pd_core.mlops.predictor import STUDENT_FILE
from pd_core.models.class_vectors import FILE as VECTORS_FILE
from pd_core.models.class_vectors import Classifier, ClassVectors, distilled
from pd_core.models.clip import load_clip
from pd_core.models.precision import autocast, set_threads
from pd_core.models.prompts import ImagePrompts
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.pipeline.provenance import peak_memory
from pd_core.pipeline.stages.jobs import Job

TEACHER_FILE = "teacher.safetensors"
PEOPLE = ("teacher", "student")
AT_A_TIME = 2
"""Data sets whose models answer together; they share the cores."""

SPEED_FILE = "speed.json"
_PICTURES, _TOP = 8, 3  # of the gallery; of a picture's classes
_SIDE = 96  # pixels; a smaller picture stays as it is
_BATCH = 32
_WARM_UPS = 2  # batches before time is taken: the first ones fill caches
_SECONDS = 2.0


@dataclass(frozen=True)
class Cost:
    """What classifying takes.

    Attributes:
        model: name of the CLIP.
        parameters: of image tower, prompts and projector.
        trained: those of them that were trained.
        operations: floating point operations for one picture.
    """

    model: str
    parameters: int
    trained: int
    operations: int


def student_cost(student: Student, classes: int) -> Cost:
    """Count what a student costs that is compared with C class vectors."""
    tower = student.towers.visual if student.tower is None else student.tower
    layers = [part for part in student.projector if isinstance(part, nn.Linear)]
    added = _count(student.projector.parameters()) + _prompts(student.image_prompts)
    whole = _count(tower.parameters())
    return Cost(
        student.towers.name,
        whole + added,
        added if student.tower is None else added + whole,
        image_operations(tower, student.image_prompts)
        + sum(2 * layer.in_features * layer.out_features for layer in layers)
        + 2 * classes * int(layers[-1].out_features),
    )


def teacher_cost(teacher: Teacher, classes: int) -> Cost:
    """Count what a teacher costs whose C class vectors are stored."""
    tower, added = teacher.towers.visual, _prompts(teacher.image_prompts)
    return Cost(
        teacher.towers.name,
        _count(tower.parameters()) + added,
        added,
        image_operations(tower, teacher.image_prompts) + 2 * classes * teacher.towers.joint_width,
    )


def image_operations(tower: Any, prompts: ImagePrompts | None) -> int:
    """Count the operations of an image tower on one picture, as `prompts.encode_image` drives it.

    Counted are convolution, matrix products and attention, which are all but some thousandths.

    Args:
        tower: open_clip's `VisionTransformer`.
        prompts: of the tower; their last row stays behind the deepest layer that has one.
    """
    width, patches = int(tower.transformer.width), prod(tower.grid_size)
    tokens = 1 + patches + (prompts.length if prompts is not None and prompts.depth else 0)
    blocks = tower.transformer.resblocks
    last = 1 if tower.pool_type == "tok" else tokens  # of the last block only the class token
    embedding = 2 * 3 * prod(tower.patch_size) * width * patches
    projection = 0 if tower.proj is None else 2 * width * int(tower.output_dim)
    return int(
        embedding
        + sum(_block(block, width, tokens, tokens) for block in blocks[:-1])
        + _block(blocks[-1], width, tokens, last)
        + projection
    )


def _block(block: Any, width: int, keys: int, queries: int) -> int:
    """Count a residual block: keys and values of all tokens, the rest of the queries alone."""
    hidden = int(block.mlp.c_fc.out_features)
    linear = 2 * keys + 2 * queries  # key, value; query, output
    attention = 2 * queries * keys  # scores, mixture
    return 2 * width * (linear * width + attention + 2 * queries * hidden)


def _prompts(prompts: ImagePrompts | None) -> int:
    return 0 if prompts is None else prompts.tokens.numel()


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


@dataclass(frozen=True)
class Loaded:
    """A classifier, the side of its pictures in pixels, and what it costs."""

    classifier: Classifier
    image_size: int
    cost: Cost


def load(job: Job, who: str) -> Loaded:
    """Load the `teacher` or the `student` of a job.

    Raises:
        PdError: what the stages wrote is not there, or does not fit together.
    """
    again = f"run `dvc repro class_vectors@{job.vectors.name}`"
    vectors = ClassVectors.load(job.vectors / VECTORS_FILE, remedy=again).to(job.device)
    block = job.params.teacher if who == "teacher" else job.params.student
    clip = load_clip(block.model, block.weights, device=job.device)
    if who == "teacher":
        again = f"run `dvc repro teacher@{job.teacher.name}`"
        tuned = Teacher.load(job.teacher / TEACHER_FILE, clip, remedy=again)
        classifier = Classifier(tuned.image_features, vectors, tuned.logit_scale)
        cost = teacher_cost(tuned, len(vectors.names))
    else:
        again = f"run `dvc repro student@{job.student.name}`"
        student = Student.load(job.student / STUDENT_FILE, clip, remedy=again)
        classifier, cost = distilled(student, vectors), student_cost(student, len(vectors.names))
    return Loaded(classifier, clip.image_size, cost)


@dataclass(frozen=True)
class Shown:
    """An image, and what both say of it.

    Attributes:
        path: of the image in its data set.
        name: its class.
        top: by who, the likeliest classes with their probabilities.
        data: the image, small, as a `data:` address.
    """

    path: str
    name: str
    top: dict[str, tuple[tuple[str, float], ...]]
    data: str


@dataclass(frozen=True)
class Gallery:
    """Images on which teacher and student name different classes.

    Attributes:
        images: how many were compared.
        teacher_right: those on which they differ and the teacher is right.
        student_right: those on which they differ and the student is right.
        both_wrong: the rest of those on which they differ.
        shown: some of these, evenly spread over the test list.
    """

    images: int
    teacher_right: int
    student_right: int
    both_wrong: int
    shown: tuple[Shown, ...]


@dataclass(frozen=True)
class Answered:
    """What the answers tell that `predictions.json` does not.

    Attributes:
        calibration: by who.
        cost: by who.
        other: by who, how many answers are not those that `evaluate` wrote.
        gallery: images on which teacher and student differ.
    """

    calibration: dict[str, Calibration]
    cost: dict[str, Cost]
    other: dict[str, int]
    gallery: Gallery


def answer(job: Job, prepared: Prepared, rows: Sequence[Mapping[str, Any]]) -> Answered:
    """Let teacher and student answer all test images of a data set, as `evaluate` did.

    Args:
        job: whose stages made them.
        prepared: the data set.
        rows: what `evaluate` wrote in `predictions.json`.

    Raises:
        PdError: images or what the stages wrote are not there.
    """
    # The page is no result: its last bits do not matter.
    set_threads(max(1, (os.cpu_count() or 1) // AT_A_TIME))
    loaded = {who: load(job, who) for who in PEOPLE}
    judged = predict(
        {who: one.classifier for who, one in loaded.items()},
        prepared,
        loaded["student"].image_size,
        job.params.evaluate,
        job.compute,
        NO_HOOKS,
    )
    probabilities = {who: _softmax(judged.logits[who]) for who in PEOPLE}
    best = {who: probabilities[who].argmax(axis=1) for who in PEOPLE}
    labels = np.array([label for _, label in judged.items])
    written = {row["path"]: row for row in rows}
    return Answered(
        {who: calibration(probabilities[who], labels) for who in PEOPLE},
        {who: one.cost for who, one in loaded.items()},
        {
            who: sum(
                path not in written or written[path][who][1] != label
                for (path, _), label in zip(judged.items, best[who].tolist(), strict=True)
            )
            for who in PEOPLE
        },
        _gallery(judged.items, probabilities, best, prepared),
    )


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _gallery(
    items: Labelled,
    probabilities: Mapping[str, NDArray[np.float64]],
    best: Mapping[str, NDArray[np.int64]],
    prepared: Prepared,
) -> Gallery:
    """Choose images, of N, on which both differ: probabilities (N, C) and best classes (N,)."""
    labels = [label for _, label in items]
    differ = best["teacher"] != best["student"]
    teachers, students = (int((differ & (best[who] == labels)).sum()) for who in PEOPLE)
    places = np.flatnonzero(differ).tolist()
    count = min(_PICTURES, len(places))
    store = ImageStore(prepared.images)

    def shown(place: int) -> Shown:
        path, label = items[place]
        top = {who: _likeliest(probabilities[who][place], prepared.classes) for who in PEOPLE}
        return Shown(path, prepared.classes[label], top, _address(store.open(path)))

    return Gallery(
        len(labels),
        teachers,
        students,
        len(places) - teachers - students,
        tuple(shown(places[number * len(places) // count]) for number in range(count)),
    )


def _likeliest(row: NDArray[np.float64], names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Name the likeliest classes of one image with their probabilities (C,)."""
    best = np.argsort(-row, kind="stable")[:_TOP]
    return tuple((names[label], round(float(row[label]), 4)) for label in best)


def _address(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    small.save(file, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass(frozen=True)
class Speed:
    """What was measured of one classifier.

    Attributes:
        model: name of its CLIP.
        images_per_second: from pixels to logits, pictures already decoded.
        mebibytes: a GPU's peak; on a CPU that of the whole process, with Python and torch.
        device: what it ran on.
        threads: of the CPU.
        batch: pictures at a time.
    """

    model: str
    images_per_second: float
    mebibytes: float
    device: str
    threads: int
    batch: int


def measure_speed(job: Job, folder: Path) -> dict[str, Speed]:
    """Measure teacher and student, each in a process of its own, and keep it in a folder.

    Raises:
        PdError: what the stages wrote is not there.
    """
    found = {}
    for who in PEOPLE:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            found[who] = alone.submit(_measured, job, who).result()
    write_json(folder / SPEED_FILE, {who: asdict(speed) for who, speed in found.items()})
    return found


def read_speed(folder: Path) -> dict[str, Speed]:
    """Read what was measured before; nothing if nothing was.

    Raises:
        BadArtifact: the file is damaged.
    """
    path = folder / SPEED_FILE
    if not path.is_file():
        return {}
    content: Mapping[str, Any] = read_json(path)
    with understood(path, what="measurement", remedy="run `promptkd page --measure`"):
        return {who: Speed(**content[who]) for who in PEOPLE}


def _measured(job: Job, who: str) -> Speed:
    set_threads(job.params.run.threads)
    loaded = load(job, who)
    device = loaded.classifier.vectors.vectors.device
    generator = torch.Generator().manual_seed(0)
    shape = (_BATCH, 3, loaded.image_size, loaded.image_size)
    images = torch.randn(shape, generator=generator).to(device)

    def classify() -> None:
        with torch.inference_mode(), autocast(device, job.params.run.precision):
            loaded.classifier.logits(images).cpu()

    for _ in range(_WARM_UPS):
        classify()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS:
        classify()
        count += 1
    rate = count * _BATCH / (time.perf_counter() - start)
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else peak_memory()
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    return Speed(
        loaded.cost.model, round(rate, 1), round(peak, 1), name, torch.get_num_threads(), _BATCH
    )
