"""An agent tells a flow run in progress from a killed one."""

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from waiting import alive, wait_until

from flows.slots import Record


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


def record(process: subprocess.Popen[bytes]) -> Record:
    return Record("run", process.pid, psutil.Process(process.pid).create_time())


def test_a_run_is_alive_until_its_process_is_a_zombie(process: subprocess.Popen[bytes]) -> None:
    run = record(process)
    assert run.is_alive
    process.kill()
    wait_until(lambda: not alive(process.pid))
    assert psutil.pid_exists(process.pid)
    assert not run.is_alive
    process.wait()
    assert not run.is_alive


def test_another_process_with_the_id_of_a_killed_run_is_not_that_run(
    process: subprocess.Popen[bytes],
) -> None:
    run = record(process)
    assert not Record(run.run, run.process, run.started - 100).is_alive
