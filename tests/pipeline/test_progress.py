"""Without a terminal, progress is lines now and then, and the last one says that all is done."""

from contextlib import suppress

import pytest

from pd_core.cli import common
from pd_core.cli.common import Reporter
from pd_core.mlops.tracking.recorder import StageRun

TITLE = "teacher embedded_greek"


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().err.splitlines()]


def work(report: Reporter, steps: int = 288) -> None:
    for done in range(steps + 1):
        report.progress(done, 288)


def test_a_stage_ends_with_all_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(TITLE, record=StageRun()) as report:
        work(report)
        report.epoch(1, {"loss": 0.25, "lr": 0.1})
    assert lines(capsys) == [f"{TITLE}: 0/288 steps", f"{TITLE}: 288/288 steps loss 0.25"]


def test_a_last_step_that_was_shown_is_not_shown_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "_SECONDS_BETWEEN_LINES", 0.0)
    with Reporter(TITLE, record=StageRun()) as report:
        work(report)
    assert lines(capsys) == [f"{TITLE}: {done}/288 steps" for done in range(289)]


def test_work_that_failed_does_not_say_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    report = Reporter(TITLE, record=StageRun())
    with suppress(OSError), report:
        work(report, 174)
        raise OSError
    assert lines(capsys) == [f"{TITLE}: 0/288 steps"]


def test_short_work_that_is_no_stage_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter("verify dtd", "pictures") as report:
        work(report)
    assert lines(capsys) == []
