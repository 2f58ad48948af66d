"""Bulk prediction of image files, against the loop of the stage `evaluate` on the same files.

Both have the same student and decode with the same number of threads or processes. Peak memory is
that of `promptkd predict` in a process of its own, for all files against the first folder's.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from benchmarks import ROOT
from benchmarks.outcome import Outcome, Row
from benchmarks.sizes import TINY_SMALL, build, class_names
from benchmarks.timing import Note, Turns, check_agreement, take_turns
from benchmarks.verify import write_photos
from pd_core.core.options import Precision
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, eval_transform
from pd_core.mlops.bulk.inputs import ImageFiles
from pd_core.mlops.bulk.outputs import Format, writer
from pd_core.mlops.bulk.predict import classify
from pd_core.mlops.bundle import write_student
from pd_core.mlops.fold import fold
from pd_core.models.class_vectors import Classifier, ClassVectors, distilled, logits_of
from pd_core.models.clip import load_clip
from pd_core.models.portable.student import PortableStudent
from pd_core.models.student import Student

PREDICT, EVALUATE = "predict", "loop of evaluate"
WORKERS, CLASSES = 2, 100

# Prints the largest resident memory in MiB. That of a child by `wait4` includes its parent's.
_PEAK = """
import atexit
from pathlib import Path
from pd_core.cli import verbs

@atexit.register
def peak():
    status = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024)

verbs.main()
"""


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmark.

    Attributes:
        model: of the student.
        images: number of JPEGs.
        few: how many of them are in the first folder.
        side: of an image, in pixels.
        batch: images of a batch of the evaluation.
    """

    model: str = "embedded-student"
    images: int = 20_000
    few: int = 200
    side: int = 256
    batch: int = 256
    rounds: int = 3


REAL = Size()
TINY = Size(TINY_SMALL, images=12, few=4, side=16, batch=4, rounds=1)


def measure(size: Size, note: Note) -> Outcome:
    """Measure images a second of both sides in turns, and memory."""
    student, vectors = _student(size.model)
    network = fold(student, vectors.vectors)
    portable = PortableStudent(network, {"names": vectors.names})
    with tempfile.TemporaryDirectory() as name:
        folder, photos = Path(name), Path(name) / "photos"
        parts = [f"{number:03}" for number in range(size.images // size.few)]
        files = write_photos(photos, size.images, size.side, parts)
        write_student(folder / "student", portable, {})
        memory = _memory(folder, photos / parts[0], size, note)
        batches = _batches(photos, sorted(files), student, size.batch)
        sides = {
            EVALUATE: partial(_evaluate, distilled(student, vectors), batches),
            PREDICT: partial(_predict, portable, photos, folder / "predictions.jsonl"),
        }
        turns = take_turns(sides, rounds=size.rounds, note=note)
    check_agreement(turns.values)
    return Outcome((_throughput(turns, size.images), memory))


def _student(model: str) -> tuple[Student, ClassVectors]:
    """Return a student with random prompts and random class vectors."""
    towers = build(model) if model == TINY_SMALL else load_clip(model, None)
    student = Student.untrained(towers, feature_width=towers.joint_width, seed=1).eval()
    noise = torch.randn(CLASSES, towers.joint_width, generator=torch.Generator().manual_seed(0))
    names = tuple(class_names(CLASSES))
    return student, ClassVectors(names, normalize(noise, dim=-1), towers.logit_scale, "random")


def _batches(root: Path, files: list[Path], student: Student, batch: int) -> ImageBatches:
    names = [file.relative_to(root).as_posix() for file in files]
    transform = eval_transform(student.towers.preprocess)
    store = ImageStore(root, keep_bytes=0)  # photos would not fit into memory
    return ImageBatches(store, names, transform, batch_size=batch, workers=WORKERS)


def _evaluate(classifier: Classifier, batches: ImageBatches) -> float:
    logits = logits_of({"student": classifier}, batches, torch.device("cpu"), Precision.FP32)
    return float(np.sum(logits["student"].argmax(axis=1)))


def _predict(student: PortableStudent, photos: Path, out: Path) -> float:
    """Write the predictions of a folder; return the sum of the labels."""
    labels = {name: label for label, name in enumerate(student.names)}

    def predicted() -> Iterator[int]:
        with writer(Format.JSONL, out, 5) as write:
            files = ImageFiles([str(photos)])
            for rows in classify(student, files, top=5, workers=WORKERS):
                write(rows)
                yield sum(labels[row.ranking[0][0]] for row in rows)

    return float(sum(predicted()))


def _throughput(turns: Turns, images: int) -> Row:
    speeds = [f"{images / turns.median(side, 'wall'):.0f}" for side in (PREDICT, EVALUATE)]
    return turns.row(
        f"images a second of promptkd predict, {images} files, {WORKERS} decoders", EVALUATE,
        PREDICT, clock="wall", least=0.9, note=f"{' against '.join(speeds)} images a second",
    )  # fmt: skip


def _memory(folder: Path, few: Path, size: Size, note: Note) -> Row:
    """Return how much more memory all files take than a few."""
    peaks = [_peak(folder, images) for images in (few, few.parent)]
    note(f"peak memory: {peaks[0]:.1f} MiB of {size.few} files, {peaks[1]:.1f} of {size.images}")
    return Row(
        what=f"peak memory of promptkd predict, {size.images} files over {size.few}",
        value=max(peaks[1] - peaks[0], 0.0),
        most=200,
        unit="MiB",
        note=f"{peaks[1]:.1f} MiB against {peaks[0]:.1f} MiB",
    )


def _peak(folder: Path, images: Path) -> float:
    """Run `promptkd predict` in a process; return its peak memory in MiB."""
    command = [sys.executable, "-c", _PEAK, "predict", str(folder / "student"), str(images)]
    command += ["--out", str(folder / "peak.jsonl")]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])
