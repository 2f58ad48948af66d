"""Two processes that train together end with what one ends with, within rounding."""

import os
import subprocess
import sys
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import crew
import pytest
import tiny
import torch
import trainings
from torch import Tensor

from pd_core.core.artifacts import read_json, read_tensors
from pd_core.core.errors import BadParams
from pd_core.pipeline import processes
from pd_core.training.loop import distributed, views
from pd_core.training.student import stage as student_stage
from pd_core.training.teacher import class_vectors as vectors_stage
from pd_core.training.teacher import prompt_tuning
from pd_core.training.teacher import stage as teacher_stage

ROOT = Path(__file__).parents[2]
# A training of some ten steps, each of which adds up about ten rounded terms.
ROUNDING = 100 * torch.finfo(torch.float32).eps
DAMAGED = ("3_1.png", "4_0.png")
CREW = [sys.executable, str(ROOT / "tests" / "support" / "crew.py")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a prepared data set, two CLIPs, a teacher, and two damaged pictures."""
    folder = tmp_path_factory.mktemp("crew")
    tiny.prepared(folder / "flowers")
    weights = [tiny.weights(folder, seed=seed) for seed in (0, 1)]
    files: dict[str, Any] = {"model": "tiny", "weights": weights[0]}
    with tiny.quick_stages("training.teacher.stage", "training.teacher.class_vectors"):
        trainings.run_teacher(folder / "flowers", folder / "first", **{**crew.TEACHER, **files})
        vectors_stage.run(folder / "flowers", folder / "first", folder / "vectors", **files)
    for path in (folder / "pictures" / name for name in DAMAGED):
        path.write_bytes(path.read_bytes()[:60])
    return folder


@pytest.fixture(scope="module")
def alone(data: Path) -> Path:
    """Return a folder with what one process makes of the tasks."""
    with tiny.quick_stages("training.teacher.stage", "training.student.stage"):
        for name in (*crew.TEACHERS, *crew.STUDENTS, "exact", "nudged", "shown"):
            crew.run(data, data / "alone", name)
    return data / "alone"


@pytest.fixture(scope="module")
def together(data: Path) -> Path:
    """Return a folder with what two processes make of all tasks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        assert processes.launch([*CREW, str(data), str(data / "together")], 2) == 0
    return data / "together"


def difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the largest difference between tensors of one name, relative to the largest value."""
    assert first.keys() == second.keys()
    return max(
        float((value - second[name]).abs().max() / value.abs().max().clamp(min=1e-3))
        for name, value in first.items()
    )


def check_same(first: Path, second: Path, file: str, *, within: float) -> None:
    """Compare what two stages wrote: tensors, and the metrics of every epoch."""
    tensors, others = (read_tensors(path / file, what="", remedy="")[0] for path in (first, second))
    assert difference(tensors, others) < within
    epochs, again = (read_json(path / "history.json") for path in (first, second))
    assert [other.keys() for other in again] == [one.keys() for one in epochs]
    for one, other in zip(epochs, again, strict=True):
        # A divergence is a difference of numbers of order one, and rounded as they are.
        assert other == pytest.approx(one, rel=within, abs=within)


@pytest.mark.parametrize("name", crew.TEACHERS)
def test_a_teacher_is_the_one_of_a_single_process(name: str, alone: Path, together: Path) -> None:
    check_same(alone / name, together / name, teacher_stage.FILE, within=ROUNDING)


@pytest.mark.parametrize("name", crew.STUDENTS)
def test_a_student_and_its_batch_norm_are_those_of_a_single_process(
    name: str, alone: Path, together: Path
) -> None:
    check_same(
        alone / name, together / name, student_stage.FILE, within=1e-3
    )  # batch norm of 3 images


def test_without_rounding_there_is_no_difference(data: Path, alone: Path, together: Path) -> None:
    state, history = torch.load(alone / "exact-0", weights_only=True)
    rounded, _ = torch.load(alone / "nudged-0", weights_only=True)
    # One rounding at the start, and what this training makes of it; each later step rounds anew,
    # by how much depends on the processor.
    within = 10 * len(history) * crew.batches(data).steps * difference(state, rounded)
    assert 0 < within < 1e-8
    for number in (0, 1):
        other, again = torch.load(together / f"exact-{number}", weights_only=True)
        assert difference(state, other) < within
        assert [epoch["loss"] for epoch in again] == pytest.approx(
            [epoch["loss"] for epoch in history],
            rel=1e-6,  # which are added up in fp32
        )


def test_both_end_with_the_same_bits(together: Path) -> None:
    (first, history), (second, again) = (
        torch.load(together / f"exact-{n}", weights_only=True) for n in (0, 1)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert history == again


def test_each_batch_is_divided_without_overlap_or_gap(alone: Path, together: Path) -> None:
    whole, damaged, left_out = torch.load(alone / "shown-0", weights_only=True)
    parts = [torch.load(together / f"shown-{number}", weights_only=True) for number in (0, 1)]

    for epoch in (0, 1):
        first, second = (part[0][epoch] for part in parts)
        assert [one + other for one, other in zip(first, second, strict=True)] == whole[epoch]
        assert not {*chain(*first)} & {*chain(*second)}
    lengths = {(len(one), len(other)) for one, other in zip(first, second, strict=True)}
    assert lengths >= {(1, 2), (0, 2)}  # ragged, and one without any
    assert [part[1:] for part in parts] == [[damaged, left_out]] * 2
    assert len(damaged) == len(DAMAGED)


def test_only_the_first_one_writes(together: Path) -> None:
    names = {path.name for path in together.iterdir()}
    assert {*crew.TEACHERS, *crew.STUDENTS, "kept-0"} < names
    assert not [name for name in names if name.endswith("-not-first") or name == "kept-1"]


def test_what_one_process_knows_all_are_told(together: Path) -> None:
    first, second = (
        torch.load(together / f"told-{number}", weights_only=True) for number in (0, 1)
    )
    for results in (first, second):
        assert results["rows"].tolist() == [[1.0, 1.0]] * 3
        assert results["union"] == {0, 1, 7}
        assert results["any"] == [True, False]
        assert results["first"] == 0
    assert first["gradient"].shape == (0, 2)
    assert second["gradient"].tolist() == [[2.0, 4.0], [6.0, 8.0], [10.0, 12.0]]  # for the mean


def test_more_processes_than_a_batch_has_pictures_are_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "count", lambda: 6)
    with (
        tiny.quick_stages("training.teacher.stage"),
        pytest.raises(BadParams, match="6 processes share batches of 5; set run.processes to at"),
    ):
        crew.run(data, data / "refused", "teacher")


def test_more_processes_than_classes_are_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_tuning, "count", lambda: 4)
    with (
        tiny.quick_stages("training.teacher.stage"),
        pytest.raises(BadParams, match="4 processes for 3 classes that are taught; set run.pro"),
    ):
        crew.run(data, data / "refused", "teacher")


@pytest.mark.parametrize("device", ["mps", "cuda:1"])
def test_a_device_of_one_process_is_refused(device: str) -> None:
    given: dict[str, Any] = {"rank": 0, "world_size": 2, "local_rank": 0, "init_method": "env://"}
    with (
        pytest.raises(BadParams, match=f"device {device} for 2 processes; give cuda"),
        distributed.process_group(device, **given),
    ):
        pass


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    given: dict[str, Any] = {"rank": 1, "world_size": 2, "local_rank": 1, "init_method": "env://"}
    with (
        pytest.raises(BadParams, match=r"run\.processes = 2, but there are 1 GPUs"),
        distributed.process_group("cuda", **given),
    ):
        pass


def test_alone_nothing_is_changed() -> None:
    rows = torch.ones(3, 2)
    assert distributed.gathered(rows) is rows
    assert list(distributed.part([1, 2, 3])) == [1, 2, 3]
    assert (distributed.count(), distributed.rank(), distributed.is_first()) == (1, 0, True)


@pytest.mark.slow
def test_torchrun_can_start_them_too(data: Path, together: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *CREW[1:]]
    done = subprocess.run(
        [*command, str(data), str(tmp_path), "teacher"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    file = f"teacher/{teacher_stage.FILE}"
    assert (tmp_path / file).read_bytes() == (together / file).read_bytes()
