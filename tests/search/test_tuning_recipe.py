"""The measurement of the search: rows that survive a kill, the methods, and the tables."""

from pathlib import Path

import pytest

from pd_core.pipeline.stages.params import Params, load_params
from recipes import tuning
from recipes.tuning import (
    COMPARED,
    COMPARED_TRIALS,
    METHODS,
    SEEDS,
    Results,
    cached,
    papers,
    summary,
)

ROOT = Path(__file__).parents[2]


def test_a_row_that_a_kill_cut_off_is_measured_again(tmp_path: Path) -> None:
    results = Results(tmp_path / "runs.jsonl")
    results.add({"dataset": "greek", "method": "hand", "seed": 1, "student": 70.5})
    with results.file.open("a") as file:
        file.write('{"dataset": "greek", "meth')
    again = Results(tmp_path / "runs.jsonl")
    again.add({"dataset": "greek", "method": "hand", "seed": 2, "student": 71.5})

    read = Results(tmp_path / "runs.jsonl")
    assert [row["seed"] for row in read.rows] == [1, 2]
    assert read.find(dataset="greek", method="hand", seed=2) == again.rows[1]
    assert read.find(dataset="greek", method="tune", seed=2) is None


def test_the_papers_numbers_are_those_of_its_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    hand = load_params(Path("params.yaml"))
    student = papers(hand).for_dataset("embedded_digits").student
    teacher = papers(hand).for_dataset("embedded_digits").teacher

    assert (student.lr, student.epochs, student.kd_weight) == (0.005, 20, 1000)
    assert (teacher.lr, teacher.batch_size, teacher.gpa_mean) == (0.0025, 4, 15)
    assert (student.model, teacher.model) == ("embedded-student", "embedded-teacher")
    assert not student.flip


def test_searches_start_from_the_papers_numbers_on_all_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: dict[str, Params] = {}

    def searched(params: Params, name: str, *_: object) -> Params:
        starts[name] = params
        return params

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tuning, "tuned", searched)
    for work in ("compute_with", "measure_seeds", "compare_cost"):
        monkeypatch.setattr(tuning, work, lambda *_: None)
    tuning.main(tmp_path, tmp_path / "work")

    hand = load_params(Path("params.yaml"))
    assert starts == dict.fromkeys(hand.datasets, papers(hand))


def test_the_tables_have_complete_data_sets_the_test_and_the_share(tmp_path: Path) -> None:
    results = Results(tmp_path / "runs.jsonl")
    gains = {"paper": -9.0, "hand": 0.0, "tune": 1.0}
    for name in ("a", "b", COMPARED):
        for method in METHODS:
            for seed in SEEDS:
                score = 70.0 + gains[method] + seed
                keys = {"dataset": name, "method": method, "seed": seed}
                results.add({**keys, "student": score, "cpu_minutes": 2.0})
        for stage in ("teacher", "student"):
            trials = [{"values": {}, "cpu_minutes": 0.5}] * 4
            results.add({"dataset": name, "search": stage, "trials": trials, "cpu_minutes": 3.0})
    results.add({"dataset": "c", "method": "hand", "seed": 1, "student": 70.0})
    for number in range(1, COMPARED_TRIALS + 1):
        row = {"dataset": COMPARED, "cost_of_trial": number, "trial": 0.5, "cpu_minutes": 2.0}
        results.add(row)
    text = summary(results)

    assert "| a | 63.0 ± 1.0 | 72.0 ± 1.0 | 73.0 ± 1.0 | 6 |" in text
    assert "| **average of 3** | 63.0 | 72.0 | 73.0 | 18 in all |" in text
    assert "- `promptkd tune` against the paper's numbers: +10.0 (p = 0.250, Wilcoxon)" in text
    assert "- `promptkd tune` against hand-tuned: +1.0 (p = 0.250, Wilcoxon)" in text
    assert "took 15.0 CPU minutes" in text
    assert "a share of 0.25" in text
    assert "| c |" not in text


def test_changes_of_a_data_set_keep_its_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    hand = load_params(Path("params.yaml"))
    teacher = cached(hand, "embedded_digits").for_dataset("embedded_digits").teacher

    assert teacher.frozen_features == "cached"
    assert (teacher.batch_size, teacher.lr) == (4, 0.0025)
