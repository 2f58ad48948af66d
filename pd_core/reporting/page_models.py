"""Teacher and student on the page: loaded, their cost counted and their speed measured."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pd_core.core.artifacts import read_json, understood, write_json
from pd_core.mlops.predictor import STUDENT_FILE
from pd_core.models.class_vectors import FILE as VECTORS_FILE
from pd_core.models.class_vectors import Classifier, ClassVectors, distilled, taught
from pd_core.models.clip import load_clip
from pd_core.models.precision import autocast, set_threads
from pd_core.models.prompts import DeepPrompts, ImagePrompts, encode_image
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.models.towers import is_plain_image
from pd_core.pipeline.provenance import peak_memory
from pd_core.pipeline.stages.jobs import Job

TRAINED = ("teacher", "student")


SPEED_FILE = "speed.json"


_BATCH = 32
_WARM_UPS = 2  # batches before time is taken: the first ones fill caches
_SECONDS = 2.0


@dataclass(frozen=True)
class Cost:
    """Cost of a classification."""

    model: str  # name of the CLIP
    parameters: int  # of image tower, prompts and projector
    trained: int  # those of them that were trained
    operations: int  # floating point operations for one image


@dataclass(frozen=True)
class Loaded:
    """A classifier and the model in it."""

    classifier: Classifier
    model: Teacher | Student


def load(job: Job, model: str) -> Loaded:
    """Load the `teacher` or the `student` of a job.

    Raises:
        PdError: outputs of the stages are not there, or do not fit together.
    """
    remedy = f"run `dvc repro class_vectors@{job.vectors.name}`"
    vectors = ClassVectors.load(job.vectors / VECTORS_FILE, remedy=remedy).to(job.device)
    block = job.params.teacher if model == "teacher" else job.params.student
    clip = load_clip(block.model, block.weights, device=job.device)
    if model == "teacher":
        remedy = f"run `dvc repro teacher@{job.teacher.name}`"
        teacher = Teacher.load(job.teacher / "teacher.safetensors", clip, remedy=remedy)
        return Loaded(taught(teacher, vectors), teacher)
    remedy = f"run `dvc repro student@{job.student.name}`"
    student = Student.load(job.student / STUDENT_FILE, clip, remedy=remedy)
    return Loaded(distilled(student, vectors), student)


def cost_of(model: Teacher | Student, classes: int) -> Cost:
    """Count the cost of a model whose image features are compared with C stored class vectors."""
    tower, trained = model.towers.visual, 0
    if isinstance(model, Student) and model.tower is not None:
        tower = model.tower
        trained = sum(tensor.numel() for tensor in tower.parameters())
    operations = image_operations(tower, model.image_prompts, model.towers.image_size)
    added, width = 0, model.towers.joint_width
    if model.image_prompts is not None:
        added += model.image_prompts.tokens.numel()
    if isinstance(model, Student):
        added += sum(tensor.numel() for tensor in model.projector.parameters())
        layers = [part for part in model.projector if isinstance(part, nn.Linear)]
        operations += sum(2 * layer.in_features * layer.out_features for layer in layers)
        width = int(layers[-1].out_features)
    return Cost(
        model.towers.name,
        sum(tensor.numel() for tensor in tower.parameters()) + added,
        trained + added,
        operations + 2 * classes * width,
    )


def image_operations(tower: Any, prompts: ImagePrompts | None, size: int) -> int:
    """Count the operations of an image tower on one image, as `prompts.encode_image` drives it.

    Counted are convolution, matrix products and attention, which are all but some thousandths.

    Args:
        tower: of an open_clip model.
        prompts: of the tower; their last row stays behind the deepest layer that has one.
        size: of the image, H = W.
    """
    return _plain(tower, prompts) if is_plain_image(tower) else _counted(tower, prompts, size)


def _counted(tower: Any, prompts: ImagePrompts | None, size: int) -> int:
    """Return torch's count, which knows attention only as matrix products."""
    image = torch.zeros(1, 3, size, size, device=next(tower.parameters()).device)
    math = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), math:
        encode_image(tower, image, None if prompts is None else _constant(prompts))
    return int(counter.get_total_flops())


def _constant(prompts: ImagePrompts) -> DeepPrompts:
    """Copy prompts without gradients, which torch's count cannot do with."""
    return DeepPrompts.of(prompts.tokens.detach()).requires_grad_(requires_grad=False)


def _plain(tower: Any, prompts: ImagePrompts | None) -> int:
    """Count the operations of open_clip's `VisionTransformer`, without running it."""
    width, patches = int(tower.transformer.width), prod(tower.grid_size)
    depth = 0 if prompts is None else prompts.depth
    kept = 1 + patches
    tokens = kept + (prompts.length if prompts is not None and depth else 0)
    blocks = tower.transformer.resblocks
    last = 1 if tower.pool_type == "tok" else tokens  # of the last block only the class token
    replaced = blocks[: max(0, depth - 1)]  # their results for prompts are not computed
    embedding = 2 * 3 * prod(tower.patch_size) * width * patches
    projection = 0 if tower.proj is None else 2 * width * int(tower.output_dim)
    return int(
        embedding
        + sum(_block(block, width, tokens, kept, projected=tokens) for block in replaced)
        + sum(_block(block, width, tokens, tokens) for block in blocks[len(replaced) : -1])
        + _block(blocks[-1], width, tokens, last)
        + projection
    )


def _block(block: Any, width: int, keys: int, queries: int, *, projected: int | None = None) -> int:
    """Count a residual block: keys and values of all tokens, the rest of the queries alone.

    Queries that are `projected` with the keys may be more than those that are used.
    """
    hidden = int(block.mlp.c_fc.out_features)
    linear = 2 * keys + (projected or queries) + queries  # key, value; query; output
    attention = 2 * queries * keys  # scores, mixture
    return 2 * width * (linear * width + attention + 2 * queries * hidden)


@dataclass(frozen=True)
class Speed:
    """Measured speed of one classifier."""

    model: str  # name of its CLIP
    images_per_second: float  # from pixels to logits, images already decoded
    mebibytes: float  # a GPU's peak; on a CPU that of the whole process, with Python and torch
    device: str  # name of the GPU, or `CPU`
    threads: int  # of the CPU
    batch: int  # images at a time


def measure_speed(job: Job, folder: Path) -> dict[str, Speed]:
    """Measure teacher and student, each in a process of its own, and write it to a folder.

    Raises:
        PdError: outputs of the stages are not there.
    """
    speeds = {}
    for model in TRAINED:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            speeds[model] = alone.submit(_measure, job, model).result()
    write_json(folder / SPEED_FILE, {model: asdict(speed) for model, speed in speeds.items()})
    return speeds


def read_speed(folder: Path) -> dict[str, Speed]:
    """Read earlier measurements, if there are any.

    Raises:
        BadArtifact: the file is corrupt.
    """
    path = folder / SPEED_FILE
    if not path.is_file():
        return {}
    content: Mapping[str, Any] = read_json(path)
    with understood(path, what="measurement", remedy="run `promptkd page --measure`"):
        return {model: Speed(**content[model]) for model in TRAINED}


def _measure(job: Job, model: str) -> Speed:
    set_threads(job.params.run.threads)
    loaded = load(job, model)
    device = loaded.classifier.vectors.vectors.device
    generator = torch.Generator().manual_seed(0)
    size = loaded.classifier.preprocess.size
    shape = (_BATCH, 3, size, size)
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
    clip, threads = loaded.model.towers.name, torch.get_num_threads()
    return Speed(clip, round(rate, 1), round(peak, 1), name, threads, _BATCH)
