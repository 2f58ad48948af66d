"""Two processes that train together end with what one ends with, within rounding."""

import sys
from itertools import chain
from pathlib import Path
from typing import Any

import crew
import pytest
import tiny
import torch

from pd_core import class_vectors, launch, pretrain
from pd_core.artifacts import read_json, read_tensors
from pd_core.data.images import ImageBatches, ImageStore
from pd_core.data.transforms import train_transform

ROOT = Path(__file__).parent.parent
DAMAGED = ("3_1.png", "4_0.png")
BATCH = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a prepared data set, two CLIPs, a teacher, and two damaged pictures."""
    folder = tmp_path_factory.mktemp("crew")
    tiny.prepared(folder / "flowers")
    weights = [tiny.weights(folder, seed=seed) for seed in (0, 1)]
    files: dict[str, Any] = {"model": "tiny", "weights": weights[0]}
    with tiny.quick_stages("pretrain", "class_vectors"):
        pretrain.run(folder / "flowers", folder / "first", **{**crew.TEACHER, **files})
        class_vectors.run(folder / "flowers", folder / "first", folder / "vectors", **files)
    for path in (folder / "pictures" / name for name in DAMAGED):
        path.write_bytes(path.read_bytes()[:60])
    return folder


@pytest.fixture(scope="module")
def alone(data: Path) -> Path:
    """Return a folder with what one process makes of the tasks."""
    with tiny.quick_stages("pretrain", "distill"):
        for name in (*crew.TEACHERS, *crew.STUDENTS, "exact", "shown"):
            crew.run(data, data / "alone", name)
    return data / "alone"


@pytest.fixture(scope="module")
def together(data: Path) -> Path:
    """Return a folder with what two processes make of all tasks."""
    command = [sys.executable, str(ROOT / "tests" / "crew.py"), str(data), str(data / "together")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        assert launch.together(command, 2) == 0
    return data / "together"


def difference(first: Path, second: Path) -> float:
    """Return the largest difference between the tensors of two files, relative to the largest."""
    one, other = (read_tensors(path, what="x", remedy="x")[0] for path in (first, second))
    assert one.keys() == other.keys()
    return max(
        float((value - other[name]).abs().max() / value.abs().max().clamp(min=1e-6))
        for name, value in one.items()
    )


def check_history(first: Path, second: Path, *, rel: float) -> None:
    for one, other in zip(read_json(first), read_json(second), strict=True):
        assert other == pytest.approx(one, rel=rel)


@pytest.mark.parametrize("name", crew.TEACHERS)
def test_a_teacher_is_the_one_of_a_single_process(name: str, alone: Path, together: Path) -> None:
    file = f"{name}/teacher.safetensors"
    print(name, difference(alone / file, together / file))


@pytest.mark.parametrize("name", crew.STUDENTS)
def test_a_student_and_its_batch_norm_are_those_of_a_single_process(
    name: str, alone: Path, together: Path
) -> None:
    file = f"{name}/student.safetensors"
    print(name, difference(alone / file, together / file))
