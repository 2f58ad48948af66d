"""The benchmarks compare what is the same, and store what they find."""

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import trainings
from torch import Tensor, nn

from benchmarks import ROOT, outcome, predict, promptsrc, reference, sizes, text_gradients
from benchmarks.__main__ import PARTS, main
from benchmarks.outcome import PICTURE, RESULTS, TABLE, Outcome, Row, Series
from benchmarks.picture import draw
from benchmarks.timing import Line, Turns, Work, check_agreement, take_turns
from pd_core.models import class_vectors
from pd_core.models.clip import imagenet_templates
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.training.teacher import prompt_tuning

NAMES = list(tiny.NAMES)
MARKS = {
    **dict.fromkeys(("embedded", "scaling", "scale"), [pytest.mark.slow]),
    # torch's compiler takes a minute, and uses what torch deprecates.
    "gpu": [pytest.mark.slow, pytest.mark.filterwarnings("ignore")],
}
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(autouse=True, scope="module")
def _restored() -> Iterator[None]:
    with tiny.torch_restored():
        yield


@pytest.fixture
def teacher() -> Teacher:
    towers = sizes.build(sizes.TINY_LARGE)
    return Teacher.untrained(towers, text_length=2, text_depth=2, image_depth=2, seed=1)


def assert_same_gradients(module: nn.Module, ours: Tensor, plain: Tensor) -> None:
    weights = list(module.parameters())
    actual, expected = (torch.autograd.grad(loss, weights) for loss in (ours, plain))
    # A bias before batch norm has none but rounding's, hence one scale for all.
    largest = max(float(gradient.abs().max()) for gradient in expected)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * largest)


def test_a_step_of_distillation_is_that_of_the_plain_path(teacher: Teacher) -> None:
    towers = sizes.build(sizes.TINY_SMALL)
    views = sizes.images(towers, 4)
    student = Student.untrained(towers, feature_width=teacher.towers.joint_width, seed=1).train()
    vectors = class_vectors.build(teacher, NAMES)
    tokens = reference.tokenize(teacher.towers, teacher.texts(NAMES))

    answers = trainings.live(teacher, vectors).logits(trainings.batch(views))
    ours = trainings.distillation_step(student, views, answers, vectors).loss
    plain = reference.distillation_loss(teacher, student, views, tokens)

    assert float(plain.detach()) > 0.01
    torch.testing.assert_close(ours, plain, **CLOSE)
    assert_same_gradients(student, ours, plain)


def test_a_step_of_promptsrc_is_that_of_the_plain_path(teacher: Teacher) -> None:
    views, labels = sizes.images(teacher.towers, 4), torch.tensor([0, 4, 2, 2])
    tokens = reference.tokenize(teacher.towers, teacher.texts(NAMES))
    frozen = promptsrc.frozen_text(teacher.towers, len(NAMES))

    plan = teacher.text_plan(NAMES)
    ours = trainings.promptsrc_step(
        teacher, views, labels, tokens=plan, frozen_text=frozen
    ).loss.total
    plain = reference.promptsrc_loss(teacher, views, labels, tokens, frozen)

    torch.testing.assert_close(ours, plain, **CLOSE)
    assert_same_gradients(teacher, ours, plain)


def test_frozen_text_features_are_those_of_the_plain_path() -> None:
    towers = sizes.build(sizes.TINY_SMALL)

    ours = prompt_tuning.frozen_text_features(towers, NAMES, 5)
    plain = reference.frozen_text(towers, NAMES, imagenet_templates(5))

    torch.testing.assert_close(ours, plain, **CLOSE)


@pytest.mark.parametrize("part", [pytest.param(part, marks=MARKS.get(part, [])) for part in PARTS])
def test_every_part_can_be_measured(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_gradients, "_in_a_process_of_its_own", lambda *_: (1.0, 1.0))
    monkeypatch.setattr(predict, "_peak", lambda *_: 1.0)
    module = importlib.import_module(f"benchmarks.{part}")
    lines: list[str] = []

    measured = module.measure(module.TINY, lines.append)

    assert lines
    # An extrapolation from two moments may come out on the wrong side of zero.
    assert all(row.value >= 0 for row in measured.rows if "extrapolated" not in row.note)
    assert Outcome.from_json(json.loads(json.dumps(measured.as_json()))) == measured
    table = outcome.table({part: measured})
    assert all(f"| {part} | {row.what} |" in table for row in measured.rows)


def test_every_choice_of_names_has_the_longest() -> None:
    longest = "Mexican hairless dog (xoloitzcuintli)"

    for count in (1, 10, 37, 1000):
        names = sizes.class_names(count)
        assert len(set(names)) >= count - 2  # ImageNet has two names twice
        assert longest in names


def fake(part: str, given: argparse.Namespace) -> Outcome:
    row = Row(f"{part} took", 2.0 if given.tiny else 1.0, low=0.5, high=3, clock="cpu", most=1.5)
    return Outcome((row,), machine={"cores": "2"})


def test_a_part_alone_keeps_the_rows_of_the_others(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path)], run=fake) == 0
    before = (tmp_path / TABLE).read_text()
    assert main(["--out", str(tmp_path), "--only", "scaling", "--tiny"], run=fake) == 0

    assert [line.split(" | ")[0] for line in before.splitlines() if " took |" in line] == [
        f"| {part}" for part in PARTS
    ]
    old = "| scaling | scaling took | at most 1.5 | 1 (cpu) | 0.5 to 3 |  | met |  |"
    new = "| scaling | scaling took | at most 1.5 | 2 (cpu) | 0.5 to 3 |  | **missed** |  |"
    assert (tmp_path / TABLE).read_text() == before.replace(old, new) != before
    assert list(json.loads((tmp_path / RESULTS).read_text())) == list(PARTS)


def test_an_unknown_part_is_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path), "--only", "startup,speed"], run=fake) == 2

    assert capfd.readouterr().err == f"no part 'speed'; there are: {', '.join(PARTS)}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_part_for_a_gpu_is_passed_over_without_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path), "--only", "gpu"]) == 0

    assert capfd.readouterr().err == "gpu: passed over, it needs a GPU\n"
    assert not list(tmp_path.iterdir())


def test_a_part_that_fails_costs_no_other_its_rows(tmp_path: Path) -> None:
    def run(part: str, given: argparse.Namespace) -> Outcome:
        if part == "promptsrc":
            raise subprocess.CalledProcessError(1, "promptsrc")
        return fake(part, given)

    assert main(["--out", str(tmp_path), "--only", "promptsrc, startup"], run=run) == 1
    assert list(outcome.read(tmp_path)) == ["startup"]


def test_series_have_a_table_and_a_picture(tmp_path: Path) -> None:
    series = Series("a step", "classes", ((1.0, 2.0), (2.0, 3.0)), "1 s + 1 s a class")

    run = ["--out", str(tmp_path), "--only", "scaling"]
    assert main(run, run=lambda *_: Outcome((), (series,))) == 0
    row = "| a step | classes | 1: 2 s, 2: 3 s | 1 s + 1 s a class |"
    assert row in (tmp_path / TABLE).read_text()
    assert (tmp_path / PICTURE).read_bytes() == draw([series])


def test_sides_that_compute_something_else_are_not_compared() -> None:
    check_agreement({"ours": 1.0, "theirs": 1.0005})
    for wrong in (1.01, float("nan")):
        with pytest.raises(RuntimeError, match="do not compute the same"):
            check_agreement({"ours": 1.0, "theirs": wrong})


def test_a_ratio_is_of_medians_and_spreads_over_the_rounds() -> None:
    sides = {"ours": (1.0, 2.0, 6.0), "theirs": (4.0, 4.0, 4.0)}
    walls = {"ours": 1.0, "theirs": 2.0}
    turns = Turns(
        {name: [{"cpu": cpu, "wall": walls[name]} for cpu in cpus] for name, cpus in sides.items()}
    )
    row = turns.row("a step", "ours", "theirs", most=0.5)

    assert (row.value, row.low, row.high, row.other) == (0.5, 0.25, 1.5, 0.5)
    assert row.verdict == "met"
    assert turns.row("a step", "ours", "theirs", least=0.6).verdict == "**missed**"


def test_sides_take_turns_after_one_that_is_not_measured() -> None:
    calls: list[str] = []

    def work(name: str) -> float:
        calls.append(name)
        return 1.0

    sides: dict[str, Work] = {name: partial(work, name) for name in ("a", "b")}
    turns = take_turns(sides, rounds=2, note=lambda _: None)

    assert calls == ["a", "b"] * 3
    assert [len(seconds) for seconds in turns.seconds.values()] == [2, 2]


def test_a_line_says_how_well_it_fits() -> None:
    line = Line.through([1, 2, 3], [3.0, 5.0, 7.0])

    assert (line.start, line.slope, line.at(10)) == pytest.approx((1, 2, 21))
    assert (line.explained, line.residual) == pytest.approx((1, 0))
    assert Line.through([1, 2, 3], [3.0, 6.0, 7.0]).residual == pytest.approx(2 / 18)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_parts_run_in_processes_of_their_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert list(outcome.read(tmp_path)) == list(PARTS)
    assert str(ROOT) not in (tmp_path / TABLE).read_text()
