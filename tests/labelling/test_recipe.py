"""The recipe that measures chosen labels goes on where it was ended, and compares equal runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pd_core.data.catalog.embedded import DOMAINS
from pd_core.labelling.selection import Method
from recipes import labelling

ROOT = Path(__file__).parents[2]
RANDOM, BADGE = str(Method.RANDOM), str(Method.BADGE)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "PARAMS", ROOT / "params.yaml")
    monkeypatch.chdir(tmp_path)


def test_every_arm_runs_on_every_data_set_and_seed_once() -> None:
    rows = list(labelling.runs())
    assert len(rows) == len(set(rows)) == 11 * 3 * 5


def test_finished_runs_are_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[Any, ...]] = []

    def run(_params: Any, dataset: str, seed: int, arm: str) -> labelling.Accuracies:
        started.append((dataset, seed, arm))
        if len(started) in (4, 8):
            raise KeyboardInterrupt
        return {"teacher": 60.0, "student": 50.0}

    monkeypatch.setattr(labelling, "run", run)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            labelling.main()
    rows = list(labelling.runs())
    assert started == [*rows[:4], *rows[3:7]]
    assert "6 of 165 runs" in (labelling.REPORT / "summary.md").read_text()


def test_methods_are_compared_over_the_runs_that_both_have() -> None:
    results: labelling.Results = {
        RANDOM: runs_of([50.0, 60.0, 70.0]),
        BADGE: runs_of([51.0, 62.0, 73.0]),
    }
    results[BADGE]["embedded_digits"][2] = {"teacher": 1.0, "student": 99.0}  # not in the other
    compared = labelling.summary(results)
    assert compared.keys() == {BADGE}
    assert compared[BADGE]["student"] == {"datasets": 3, "runs": 3, "difference": 2.0, "p": 0.25}
    assert compared[BADGE]["teacher"]["difference"] == 4.0
    assert "| badge | student | 3 | +2.00 | p = 0.25 |" in labelling.markdown(results)


def test_results_that_are_read_again_are_the_same() -> None:
    results = {RANDOM: runs_of([50.0, 60.0]), BADGE: runs_of([51.0])}
    labelling.write_report(results)
    assert labelling.read_results() == results


def runs_of(students: Iterable[float]) -> dict[str, dict[int, labelling.Accuracies]]:
    """Return runs of the first data sets with seed 1."""
    rows = zip(DOMAINS, students, strict=False)
    return {name: {1: {"teacher": 2 * student, "student": student}} for name, student in rows}
