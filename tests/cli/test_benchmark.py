"""All data sets run several at a time; how far they are is shown, and why one failed."""

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from waiting import alive, wait_until

from pd_core.cli import benchmark
from pd_core.cli.benchmark import SHARES, DataSet, State, progress_table, run_all, seconds_left
from pd_core.core.errors import FailedRun, Interrupted
from pd_core.pipeline.processes import EXIT_STATUS, Ended
from pd_core.pipeline.stages.params import load_params

ROOT = Path(__file__).parents[2]
OUTPUT = """\
Stage 'prepare@greek' didn't change, skipping
Running stage 'teacher@greek':
> PYTHONPATH=. python3 -m pd_core teacher greek
teacher greek: 72/288 steps loss 1.2
"""


def read(text: str, name: str = "greek") -> DataSet:
    """Return what is known of a running data set that has printed a text."""
    dataset = DataSet(name)
    dataset.start()
    for line in text.splitlines():
        dataset.read(line)
    return dataset


def test_the_stage_and_its_part_are_read_from_what_is_printed() -> None:
    dataset = read(OUTPUT)
    assert (dataset.stage, dataset.done) == ("teacher", {"prepare": 1.0, "teacher": 0.25})
    assert dataset.skipped == {"prepare"}
    assert list(dataset.tail) == ["teacher greek: 72/288 steps loss 1.2"]

    dataset.read("Running stage 'class_vectors@greek':")
    assert dataset.done["teacher"] == 1.0
    assert (dataset.stage, list(dataset.tail)) == ("class_vectors", [])
    dataset.end(0)
    assert (dataset.state, dataset.stage, dataset.done["class_vectors"]) == (State.DONE, "", 1.0)


def test_an_error_of_dvc_before_the_first_stage_is_kept() -> None:
    error = "ERROR: failed to reproduce 'evaluate@greek': No such file: 'data/prepare/greek'"
    assert list(read(error).tail) == [error]


def test_the_time_left_is_that_of_the_shares_that_are_left_without_what_was_kept() -> None:
    assert seconds_left([DataSet("greek")], 10.0) is None
    half = read("".join(f"Stage '{s}@greek' is cached\n" for s in SHARES if s != "student"))
    half.read("Running stage 'student@greek':")
    half.read("student greek: 1/4 steps")
    assert seconds_left([half], 30.0) == pytest.approx(90.0)
    waiting = DataSet("latin")
    share = SHARES["student"]
    assert seconds_left([half, waiting], 30.0) == pytest.approx(
        30.0 * (0.75 * share + 1.0) / (0.25 * share)
    )
    half.end(2)
    assert seconds_left([half, waiting], 30.0) == pytest.approx(30.0 / (0.25 * share))


def test_the_shares_are_those_of_all_stages_of_a_data_set() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    others = ("code", "report", "tuned_student", "cross_validate")
    assert list(SHARES) == [name for name in stages if name not in others]
    assert sum(SHARES.values()) == pytest.approx(1.0)


def shown(width: int, datasets: Sequence[DataSet]) -> list[str]:
    """Return the lines of the live view on a terminal of a width."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(progress_table(datasets, 100.0))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_all_data_sets_of_the_benchmark_have_a_line_each_on_80_columns() -> None:
    names = list(load_params(ROOT / "params.yaml").datasets)
    first = read(OUTPUT, names[0])
    first.started, first.ended = 1.0, 900.0
    lines = shown(80, [first, *map(DataSet, names[1:])])
    assert len(lines) == len(names) + 2
    assert [line.split()[0] for line in lines[1:-1]] == names
    assert lines[1].split()[1:4] == ["kept", "25%", "-"]
    assert lines[1].split()[-1] == "14:59"
    assert lines[-1].startswith("0 of 11 data sets done, 1 min 40 s so far, about ")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a DVC project with two data sets, of which one fails."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    command = 'echo "evaluate ${key}: 3/4 steps"; echo "error: no luck" >&2; exit ${item}'
    stage = {"foreach": {"good": 0, "bad": 2}, "do": {"cmd": command}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate": stage}}))
    return tmp_path


def test_a_failure_shows_the_stages_last_lines_and_the_other_data_sets_go_on(project: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    view = benchmark._Lines(console)
    bad, good = run_all(["bad", "good"], jobs=1, logs=project / "logs", on_change=view.show)

    assert (good.state, bad.state, bad.stage) == (State.DONE, State.FAILED, "evaluate")
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "bad: started"
    assert lines[1].startswith("bad: failed after ")
    assert lines[2:5] == [
        f"bad failed in stage evaluate, exit status {bad.status}:",
        "    evaluate bad: 3/4 steps",
        "    error: no luck",
    ]
    assert lines[5] == "good: started"
    assert lines[6].startswith("good: done after ")
    assert "; 1 of 2 data sets done, 1 failed, " in lines[6]
    assert len(lines) == 7
    assert "error: no luck" in (project / "logs" / "bad.log").read_text()


@pytest.mark.parametrize(
    ("status", "error"), [(EXIT_STATUS, Interrupted), (2, FailedRun)], ids=["told", "failed"]
)
def test_a_failure_is_an_error_and_the_same_command_goes_on(
    status: int, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(benchmark, "LOGS", tmp_path)
    monkeypatch.setattr(benchmark, "run", lambda *_: Ended(status, ()))
    with pytest.raises(error, match="start the same command again"):
        benchmark.benchmark(jobs=3)


RUN = """
from pathlib import Path
from pd_core.cli import benchmark
from pd_core.pipeline import processes

processes.end_at_once()
benchmark.run_all(["long"], jobs=1, logs=Path("logs"), on_change=lambda *_: None)
"""


def test_what_is_told_to_end_ends_its_stages_too(project: Path) -> None:
    command = "echo $$ > process; exec sleep 100"
    (project / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": {"evaluate": {"foreach": ["long"], "do": {"cmd": command}}}})
    )
    with subprocess.Popen(
        [sys.executable, "-c", RUN],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        wait_until(
            lambda: (project / "process").exists() and bool((project / "process").read_text())
        )
        running.terminate()
        assert running.stderr is not None
        assert "terminated by SIGTERM" in running.stderr.read()
    assert not alive(int((project / "process").read_text()))
