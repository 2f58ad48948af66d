"""How an agent tells a run that is at work from one that was killed."""

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from waiting import alive, wait_until

from flows.slots import Note


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


def note(process: subprocess.Popen[bytes]) -> Note:
    return Note("run", process.pid, psutil.Process(process.pid).create_time())


def test_a_run_is_alive_while_its_process_is(process: subprocess.Popen[bytes]) -> None:
    noted = note(process)
    assert noted.is_alive
    process.kill()
    process.wait()
    assert not noted.is_alive


def test_a_killed_run_that_nobody_has_waited_for_is_not_alive(
    process: subprocess.Popen[bytes],
) -> None:
    noted = note(process)
    process.kill()
    wait_until(lambda: not alive(process.pid))
    assert psutil.pid_exists(process.pid)
    assert not noted.is_alive


def test_another_process_with_the_id_of_a_killed_run_is_not_that_run(
    process: subprocess.Popen[bytes],
) -> None:
    noted = note(process)
    assert not Note(noted.run, noted.process, noted.started - 100).is_alive
