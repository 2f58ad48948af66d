"""Lists of ten million images, and 20,000 classes: seconds and memory, without any image or label.

Each measurement is a process of its own, whose peak is that of the system (`VmHWM`). The images of
a list are one JPEG file under different names; the class vectors are random.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from benchmarks import ROOT
from benchmarks.distillation import ours
from benchmarks.outcome import Outcome, Row, Series
from benchmarks.sizes import SMALL, TINY_SMALL, build, images
from benchmarks.timing import Line, Note, take_turns
from pd_core.core.options import Metric, Precision
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import Batch, ImageBatches, train_transform
from pd_core.data.loading.prepared import read_unlabelled, write_prepared
from pd_core.data.loading.splits import Item, Protocol, Splits, few_shot_split
from pd_core.evaluation.paired_metrics import compare_by
from pd_core.mlops.fold import fold
from pd_core.mlops.registry.trial import Predictions, compare
from pd_core.models.class_vectors import (
    Classifier,
    ClassVectors,
    Reduction,
    best_class,
    reduced_logits,
)
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.portable.student import PortableStudent
from pd_core.models.student import Student

WIDTH = 512  # of the class vectors, as ViT-B/16's
FEW = 1000  # classes that more of them are compared with


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmark.

    Attributes:
        lists: images in a list.
        classes: of the class vectors.
        evaluated: test images.
        batch: images of a training step.
    """

    model: str = SMALL
    lists: tuple[int, ...] = (1_000_000, 3_000_000, 10_000_000)
    classes: int = 20_000
    evaluated: int = 20_000
    batch: int = 4
    rounds: int = 2


REAL = Size()
TINY = Size(TINY_SMALL, lists=(1000, 3000), classes=2000, evaluated=50, rounds=1)


def measure(size: Size, note: Note) -> Outcome:
    """Measure lists, and what grows with the classes."""
    rows, series = _lists(size, note)
    for what in ("kept classes", "all logits", "paired test", "macro F1"):
        result = _in_a_process_of_its_own(what, size.evaluated, size.classes, note)
        name = f"{what} of {size.evaluated} images, {size.classes} classes: peak"
        rows.append(Row(name, result["peak"], unit="GB", note=f"{result['cpu']:.3g} s"))
    few, many = (_in_a_process_of_its_own("serving", n, 0, note) for n in (10, size.classes))
    name = f"service: {size.classes} class vectors in place of 10"
    rows.append(Row(name, 1000 * (many["resident"] - few["resident"]), unit="MB"))
    return Outcome((*rows, _step(size, note)), series)


def _lists(size: Size, note: Note) -> tuple[list[Row], tuple[Series, ...]]:
    drawn, read = {}, {}
    for count in size.lists:
        with tempfile.TemporaryDirectory() as folder:
            drawn[count] = _in_a_process_of_its_own(f"split:{folder}", count, size.classes, note)
            read[count] = _in_a_process_of_its_own(f"read:{folder}", count, size.classes, note)
    most = max(size.lists)
    rows = [
        Row(
            f"list of {most} images to the first batch", read[most]["wall"], unit="s",
            clock="wall", most=60, note=f"{read[most]['cpu']:.3g} s of processor",
        ),
        Row(f"list of {most} images to the first batch: peak", read[most]["peak"], unit="GB",
            most=8),
        Row(f"few-shot split and lists of {most} labelled images: peak", drawn[most]["peak"],
            unit="GB", note=f"{drawn[most]['cpu']:.3g} s of processor"),
    ]  # fmt: skip
    curves = (
        _series("list to the first batch", read),
        _series("few-shot split and lists", drawn),
    )
    return rows, curves


def _series(name: str, results: Mapping[int, Mapping[str, float]]) -> Series:
    costs = [result["cpu"] for result in results.values()]
    points = tuple(zip(map(float, results), costs, strict=True))
    return Series(name, "images", points, Line.through(list(results), costs).describe("image"))


def _step(size: Size, note: Note) -> Row:
    """Compare online steps of distillation with many and with few classes."""
    towers = build(size.model)
    views = images(towers, size.batch)
    few = min(FEW, size.classes // 2)

    def side(classes: int) -> Callable[[], float]:
        vectors = _vectors(classes, towers.joint_width)
        student = Student.untrained(towers, feature_width=towers.joint_width, seed=1).train()

        def ask() -> torch.Tensor:
            with torch.no_grad():
                return vectors.logits(normalize(towers.visual(views), dim=-1))

        return ours(student, views, ask, vectors)

    sides = {f"{classes} classes": side(classes) for classes in (size.classes, few)}
    turns = take_turns(sides, rounds=size.rounds, note=note)
    many = f"online step, batch {size.batch}, {size.classes} against {few} classes"
    return turns.row(many, *sides)


def _vectors(classes: int, width: int = WIDTH) -> ClassVectors:
    noise = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    return ClassVectors(_names(classes), normalize(noise, dim=-1), 100.0, "random")


def _names(classes: int) -> tuple[str, ...]:
    return tuple(f"class {number:05}" for number in range(classes))


class _OnePicture(ImageStore):
    """A store with the same file under every name."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, keep_bytes=0)
        file = BytesIO()
        Image.new("RGB", (500, 375), "grey").save(file, "JPEG")
        self._file = file.getvalue()

    def _read(self, path: str) -> bytes:  # noqa: ARG002
        return self._file


def draw(folder: Path, count: int, classes: int) -> None:
    """Draw a few-shot split of labelled images, and write it and their list."""
    names = _names(classes)
    items = tuple(
        Item(f"images/class_{k % classes:05}/picture_{k:08}.jpg", k % classes, names[k % classes])
        for k in range(count)
    )
    shots, _ = few_shot_split(
        Splits(items, (), ()), shots=1, val_shots=1, protocol=Protocol.ALL_CLASSES,
        rng=random.Random(1),
    )  # fmt: skip
    split = {"dataset": "photos", "few_shot": [(item.path, item.label) for item in shots]}
    write_prepared(folder, split, sorted(item.path for item in items))


def first_batch(folder: Path) -> None:
    """Read the list of images, and load the first batch of an epoch."""
    transform = train_transform(Preprocess(224), scale=(0.08, 1.0), flip=True)
    store, paths = _OnePicture(folder), read_unlabelled(folder)
    next(ImageBatches(store, paths, transform, batch_size=64, seed=1).epoch(1))


@dataclass(frozen=True)
class _Features:
    """Batches of random features in place of images."""

    count: int

    def in_order(self) -> Iterator[Batch]:
        for start in range(0, self.count, 100):
            positions = torch.arange(start, min(start + 100, self.count))
            features = torch.randn(len(positions), WIDTH)
            yield Batch(positions, {Preprocess(1): features}, 0, start // 100)


def evaluate(reduce: Reduction, count: int, classes: int) -> None:
    """Classify images, and keep something of their logits."""
    judge = Classifier(lambda x: normalize(x, dim=-1), _vectors(classes), 100.0, Preprocess(1))
    cpu = torch.device("cpu")
    reduced_logits({"it": judge}, _Features(count), cpu, Precision.FP32, reduce)


def promote(count: int, classes: int) -> None:
    """Compare the probabilities of a candidate and a champion, as promotion does."""
    names, rng = _names(classes), np.random.default_rng(0)
    pair = [Predictions(names, rng.random((count, classes), np.float32)) for _ in range(2)]
    first, second = pair
    result = compare(first, second, [names[k % classes] for k in range(count)])
    assert result is not None
    result.by(Metric.ACCURACY, 0.95)


def macro_f1(count: int, classes: int) -> None:
    """Compare the classes that two students predict by their macro F1."""
    rng = np.random.default_rng(0)
    labels, *pair = rng.integers(0, classes, (3, count))
    compare_by(Metric.MACRO_F1, labels, *pair, confidence=0.95)


def serve(classes: int) -> PortableStudent:
    """Make a student for inference, and classify an image."""
    towers = build(TINY_SMALL)
    student = Student.untrained(towers, feature_width=WIDTH, seed=1).eval()
    network = fold(student, _vectors(classes).vectors)
    served = PortableStudent(network, {"names": _names(classes)})
    served.classify(Image.new("RGB", (224, 224)))
    return served


def _in_a_process_of_its_own(what: str, count: int, classes: int, note: Note) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scale", what, str(count), str(classes)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    title = what.partition(":")[0]
    note(f"{title}, {count}: {result['cpu']:.3g} s of processor, {result['peak']:.3g} GB")
    return result


def _measured(what: str, count: int, classes: int) -> dict[str, float]:
    task, _, folder = what.partition(":")
    works: dict[str, Callable[[], object]] = {
        "split": lambda: draw(Path(folder), count, classes),
        "read": lambda: first_batch(Path(folder)),
        "kept classes": lambda: evaluate(best_class, count, classes),
        "all logits": lambda: evaluate(lambda logits, _: logits, count, classes),
        "paired test": lambda: promote(count, classes),
        "macro F1": lambda: macro_f1(count, classes),
        "serving": lambda: serve(count),
    }
    wall, cpu = time.perf_counter(), time.process_time()
    held = works[task]()
    result = {
        "cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall,
        "peak": _memory("VmHWM"), "resident": _memory("VmRSS"),
    }  # fmt: skip
    del held  # after the memory is read
    return result


def _memory(entry: str) -> float:
    """Return an entry of this process's status, GB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith(entry))
    return int(line.split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("count", type=int)
    parser.add_argument("classes", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(_measured(given.what, given.count, given.classes)) + "\n")
