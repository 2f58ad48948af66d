"""How fast teacher and student classify on this machine, and how much memory it takes.

Measured times are no result: they lie beside the page, outside what DVC hashes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pd_core.core.artifacts import read_json, understood, write_json
from pd_core.pipeline.stages.layout import Job
from pd_core.reporting.page.answers import PEOPLE

FILE = "speed.json"
_BATCH = 32
_WARM_UPS = 2  # batches before time is taken: the first ones fill caches
_SECONDS = 2.0


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


def measure(job: Job, folder: Path) -> dict[str, Speed]:
    """Measure teacher and student, each in a process of its own, and keep it in a folder.

    Raises:
        PdError: what the stages wrote is not there.
    """
    found = {}
    for who in PEOPLE:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            found[who] = alone.submit(_measured, job, who).result()
    write_json(folder / FILE, {who: asdict(speed) for who, speed in found.items()})
    return found


def kept(folder: Path) -> dict[str, Speed]:
    """Read what was measured before; nothing if nothing was.

    Raises:
        BadArtifact: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    content: Mapping[str, Any] = read_json(path)
    with understood(path, what="measurement", remedy="run `promptkd page --measure`"):
        return {who: Speed(**content[who]) for who in PEOPLE}


def _measured(job: Job, who: str) -> Speed:
    import torch

    from pd_core.models.precision import autocast, set_threads
    from pd_core.pipeline.provenance import peak_memory
    from pd_core.reporting.page.answers import load

    set_threads(job.params.run.threads)
    loaded = load(job, who)
    device = loaded.classifier.vectors.vectors.device
    side = loaded.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_BATCH, 3, side, side, generator=generator).to(device)

    def batch() -> None:
        with torch.inference_mode(), autocast(device, job.params.run.precision):
            loaded.classifier.logits(images).cpu()

    rate = _rate(batch)
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else peak_memory()
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    return Speed(
        loaded.cost.model, round(rate, 1), round(peak, 1), name, torch.get_num_threads(), _BATCH
    )


def _rate(batch: Any) -> float:
    """Return pictures a second."""
    for _ in range(_WARM_UPS):
        batch()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS:
        batch()
        count += 1
    return count * _BATCH / (time.perf_counter() - start)
