"""Processes that are started together end together, and what was wrong is said once."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import RunProcsResult
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from waiting import alive, wait_until

from pd_core.cli import verbs
from pd_core.core.errors import BadParams, FailedRun
from pd_core.pipeline import processes

ROOT = Path(__file__).parents[2]
START = (
    "import os, sys, time, signal; from pd_core.pipeline import processes;"
    " me = processes.this_worker(); "
)


def worker(code: str) -> list[str]:
    """Return the command of a worker, which is called `me` in its code."""
    return [sys.executable, "-c", START + code]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_each_is_told_which_one_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    note = f"open(f'{tmp_path}/{{me.rank}}', 'w').write(f'{{me.world_size}} {{me.local_rank}}')"
    assert processes.launch(worker(f"{note}; print('number', me.rank)"), 3) == 0

    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert [(tmp_path / str(number)).read_text() for number in range(3)] == ["3 0", "3 1", "3 2"]
    assert capfd.readouterr().out == "number 0\n"


def test_this_process_is_none_of_them() -> None:
    assert processes.this_worker() is None


def test_others_than_the_parameters_say_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(BadParams, match=r"run\.processes = 3, but 2 were started; make them equal"),
        verbs._process_group(processes.this_worker(), "cpu", 3),
    ):
        pass


def test_what_another_than_the_first_says_is_shown_if_it_fails(
    capfd: pytest.CaptureFixture[str],
) -> None:
    lost = f"time.sleep(0.3) or sys.exit({processes.LOST})"
    code = f"sys.exit({lost} if me.rank == 0 else sys.stderr.write('error: no\\n') and 2)"
    assert processes.launch(worker(code), 2) == 2
    assert capfd.readouterr().err == "error: no\n"


def test_what_all_say_is_shown_once(capfd: pytest.CaptureFixture[str]) -> None:
    ignore = "signal.signal(15, signal.SIG_IGN); "  # as `promptkd` does when it reports an error
    code = f"{ignore}time.sleep(me.rank); sys.stderr.write('error: no\\n'); sys.exit(2)"
    assert processes.launch(worker(code), 2) == 2
    assert capfd.readouterr().err == "error: no\n"


def test_one_that_does_not_notice_is_ended() -> None:
    began = time.monotonic()
    assert processes.launch(worker("sys.exit(2) if me.rank == 0 else time.sleep(60)"), 2) == 2
    assert time.monotonic() - began < 20


def test_one_that_is_killed_is_named() -> None:
    code = (
        "os.kill(os.getpid(), 9) if me.rank == 1 else "
        f"time.sleep(0.3) or sys.exit({processes.LOST})"
    )
    with pytest.raises(FailedRun, match="process 1 of 2 was ended by SIGKILL; start the same"):
        processes.launch(worker(code), 2)


def started(folder: Path, code: str, *, first: str = "") -> subprocess.Popen[str]:
    """Start two members from a process of its own, and wait until both are at work."""
    ready = f"open('{folder}/' + str(os.getpid()), 'w'); "
    parent = (
        "import signal, sys; from pd_core.pipeline import processes;"
        f" processes.end_at_once(); sys.exit(processes.launch({worker(first + ready + code)!r}, 2))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.PIPE, text=True)
    while len(list(folder.iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_being_told_to_end_is_passed_on(tmp_path: Path) -> None:
    process = started(
        tmp_path, "time.sleep(60)", first="signal.signal(15, lambda *_: sys.exit(75)); "
    )
    process.terminate()
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 75


def test_a_worker_that_gets_a_second_signal_while_it_ends_has_been_interrupted() -> None:
    ends = {1: -signal.SIGTERM, 0: processes.EXIT_STATUS}  # in the order in which they came
    failures = {rank: ProcessFailure(rank, 0, code, "") for rank, code in ends.items()}
    result = RunProcsResult({}, failures, {}, {})

    assert processes._status(result, "", interrupted=True) == processes.EXIT_STATUS


def test_members_that_were_not_ready_to_be_told_end_as_if_they_were(tmp_path: Path) -> None:
    process = started(tmp_path, "time.sleep(60)")
    process.terminate()
    assert "Interrupted: terminated by SIGTERM" in process.communicate()[1]


def test_members_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    process = started(tmp_path, "processes.end_with_launcher(); time.sleep(60)")
    process.kill()
    process.communicate()

    members = [int(path.name) for path in tmp_path.iterdir()]
    wait_until(lambda: not any(alive(member) for member in members))
