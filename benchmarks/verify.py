"""Verification of own images, with all contents compared, beside decoding them once.

Both sides decode in the same number of processes.
"""

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.outcome import Outcome
from benchmarks.timing import Clock, Note, Turns
from pd_core.data.acquire.verify import verify
from pd_core.data.catalog.catalogue import OwnImages, own_spec
from pd_core.data.loading.decode import decode

DECODE, VERIFY = "decode once", "verify --full"
WORKERS = 2
_CHUNK = 64  # files a process takes at a time
_PARTS = ("labelled/box", "labelled/circle", *["unlabelled"] * 18)


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmark.

    Attributes:
        images: number of JPEGs, a tenth of them labelled.
        side: of an image, in pixels.
    """

    images: int = 20_000
    side: int = 256
    rounds: int = 3


REAL = Size()
TINY = Size(images=40, side=16, rounds=1)


def measure(size: Size, note: Note) -> Outcome:
    """Measure both sides in turns."""
    turns = Turns({DECODE: [], VERIFY: []})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = write_photos(root / "own", size.images, size.side, _PARTS)
        sides = {DECODE: partial(_decode, files), VERIFY: partial(_verify, root)}
        for number in range(size.rounds + 1):
            for side, work in sides.items():
                seconds = _measured(work)
                note(f"round {number} of {size.rounds}: {side}: {seconds['wall']:.3g} s")
                if number:  # the first one fills the disk's cache
                    turns.seconds[side].append(seconds)
    what = f"verification of {size.images} own images, beside decoding them"
    return Outcome((turns.row(what, VERIFY, DECODE, clock="wall", most=1.5),))


def write_photos(folder: Path, images: int, side: int, parts: Sequence[str]) -> list[Path]:
    """Write different photos of the same kind, blurred noise, into the folders in turns."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(images):
        file = folder / parts[number % len(parts)] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side)).save(file)
        files.append(file)
    return files


def _measured(work: Callable[[], None]) -> dict[Clock, float]:
    start, cpu = time.perf_counter(), _processor()
    work()
    return {"wall": time.perf_counter() - start, "cpu": _processor() - cpu}


def _processor() -> float:
    """Return the processor's seconds of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _decode(files: list[Path]) -> None:
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(_decode_one, files, chunksize=_CHUNK):
            pass


def _decode_one(file: Path) -> None:
    decode(file.read_bytes())


def _verify(root: Path) -> None:
    own = OwnImages(labelled="own/labelled", unlabelled="own/unlabelled")
    report = verify(own_spec("own", own), root, full=True, workers=WORKERS)
    assert report.ok, report.problems
