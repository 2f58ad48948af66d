"""`promptkd repro`: DVC's own files are whole after a kill, and what it left is cleared away."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from command import promptkd
from git_repository import dvc_project
from waiting import alive, wait_until
from zc.lockfile import LockFile

from pd_core.pipeline import dvc

PIPELINE = """
stages:
  first:
    cmd: echo first >> diary && cp source data/one
    deps: [source]
    outs: [data/one]
  second:
    cmd: echo second >> diary && cp data/one data/two
    deps: [data/one]
    outs: [data/two]
"""

# Is killed when it has written a part of dvc.lock.
KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path

import dvc.dvcfile
from dvc.utils.serialize import dumps_yaml, load_yaml
from pd_core.cli.verbs import main


@contextmanager
def killed(path, fs=None):
    data = load_yaml(path) if os.path.exists(path) else {}
    yield data
    text = dumps_yaml(data)
    Path(path).write_text(text[: int(len(text) * part)])
    os.kill(os.getpid(), signal.SIGKILL)


dvc.dvcfile.modify_yaml = killed
part = float(sys.argv.pop())
sys.argv = ["promptkd", "repro"]
main()
"""
# A stage: notes its process, that it was told to end, and whether it sees the variable.
STAGE = """
import os, signal, sys, time
from pathlib import Path


def note(text):
    with open("diary", "a") as file:
        file.write(text + "\\n")


def told(*_):
    note("told")
    if "stubborn" not in sys.argv:
        note("saved")
        sys.exit(75)


signal.signal(signal.SIGTERM, told)
note(os.environ.get("PROMPTKD_END_WITH_PARENT", "not passed on"))
Path("process").write_text(str(os.getpid()))
while True:
    time.sleep(0.05)
"""

# Starts `promptkd repro` as an agent does, and waits to be killed.
PARENT = """
import os, subprocess, sys
environment = {**os.environ, "PROMPTKD_END_WITH_PARENT": "1"}
child = subprocess.Popen([sys.executable, *sys.argv[1:]], env=environment, stdin=subprocess.PIPE)
print(child.pid, flush=True)
child.wait()
"""
PATIENT = "from pd_core.cli.verbs import main; from pd_core.pipeline import dvc; import sys; "
PATIENT += "dvc._PATIENCE = 1.0; sys.argv = ['promptkd', 'repro']; main()"
LEFT = f".{'A1b2C3d4E5' * 2}zz.tmp"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    dvc_project(tmp_path)
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "source").write_text("one\n")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    return tmp_path


def python(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True
    )


def repro(project: Path, *arguments: str) -> str:
    done = promptkd(project, "repro", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stages(project: Path) -> set[str]:
    return set(yaml.safe_load((project / "dvc.lock").read_text())["stages"])


@pytest.mark.parametrize(
    ("part", "first"), [(0.0, True), (0.55, True), (0.97, True), (0.0, False), (0.55, False)]
)
def test_after_a_kill_while_the_lock_file_is_written_no_stage_runs_twice(
    project: Path, part: float, *, first: bool
) -> None:
    if first:
        repro(project, "first")
    (project / ".dvc" / "tmp" / "rwlock").write_text('{"read": {')

    assert python(project, "-c", KILLED, str(part)).returncode == -signal.SIGKILL

    repro(project)
    assert stages(project) == {"first", "second"}
    assert (project / "data" / "two").read_text() == "one\n"
    assert (project / "diary").read_text() == "first\nsecond\n"
    assert not list((project / ".dvc" / "tmp").glob("*dvc.lock"))


def test_stages_taken_out_of_the_lock_file_between_runs_stay_out(project: Path) -> None:
    repro(project)
    (project / "dvc.yaml").write_text(
        "stages:\n  second: {cmd: echo two > data/two, outs: [data/two]}\n"
    )
    (project / "dvc.lock").unlink()
    repro(project)
    assert stages(project) == {"second"}


def test_it_takes_the_arguments_of_dvc_and_gives_its_status(project: Path) -> None:
    assert "Stage 'first' didn't change" not in repro(project)
    assert "Running stage 'first'" in repro(project, "--force", "--single-item", "first")

    done = promptkd(project, "repro", "third")
    assert done.returncode == 255
    assert "'third'" in done.stderr


def test_temporary_files_of_dvc_go_once_no_other_dvc_is_at_work(project: Path) -> None:
    left, mine = project / "data" / "deep" / LEFT, project / "data" / "deep" / ".mine.tmp"
    for path in (left, mine):
        path.write_text("")
    other, seen = LockFile(str(project / ".dvc" / "tmp" / "lock")), []

    def end_other() -> None:
        seen.append(left.exists())
        other.close()

    threading.Timer(3, end_other).start()
    repro(project)
    assert seen == [True]
    assert not left.exists()
    assert mine.exists()


def killed_parent(project: Path, command: str, *arguments: str) -> list[int]:
    """Let a process start `promptkd repro`, kill it when the stage is at work.

    Returns:
        The processes of `promptkd repro` and of the stage.
    """
    (project / "stage.py").write_text(STAGE)
    stage = {"cmd": command, "deps": ["stage.py"], "outs": ["data/never"]}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"endless": stage}}))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments],
        cwd=project,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_until((project / "process").exists)
        parent.kill()
    return [child, int((project / "process").read_text())]


@pytest.mark.parametrize("shell", ["", " && true"], ids=["alone", "below a shell"])
def test_it_ends_with_the_process_that_started_it_and_the_stage_saves_first(
    project: Path, shell: str
) -> None:
    command = f"{sys.executable} stage.py{shell}"
    processes = killed_parent(project, command, "-m", "pd_core", "repro")
    wait_until(lambda: not any(alive(process) for process in processes))
    assert (project / "diary").read_text() == "not passed on\ntold\nsaved\n"


def test_what_does_not_end_when_told_so_is_killed(project: Path) -> None:
    command = f"{sys.executable} stage.py stubborn"
    processes = killed_parent(project, command, "-c", PATIENT)
    wait_until(lambda: not any(alive(process) for process in processes))
    assert (project / "diary").read_text() == "not passed on\ntold\n"


def test_a_stage_that_dvc_starts_after_it_was_told_to_end_is_told_as_well(project: Path) -> None:
    deaf = "trap '' TERM; touch ready; sleep 1; echo one > data/one"
    stages_ = {
        "deaf": {"cmd": deaf, "outs": ["data/one"]},
        "next": {"cmd": "sleep 100", "deps": ["data/one"], "outs": ["data/two"]},
    }
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages_}))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "pd_core", "repro"]
    with subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        wait_until((project / "ready").exists)
        process.terminate()
        assert process.stderr is not None
        assert b"stopped: terminated by SIGTERM" in process.stderr.read()
    assert process.returncode == 75
    assert stages(project) == {"deaf"}


def test_without_the_variable_it_does_not_mind_that_its_input_ends(project: Path) -> None:
    assert "PROMPTKD_END_WITH_PARENT" not in os.environ
    assert python(project, "-m", "pd_core", "repro").returncode == 0


def test_outside_a_project_it_is_refused_in_one_line(tmp_path: Path) -> None:
    done = promptkd(tmp_path, "repro")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("known", [False, True])
def test_stages_that_read_the_same_code_run_at_a_time(project: Path, *, known: bool) -> None:
    stage = "{{cmd: sleep 2 && echo {0} > data/{0}, deps: [data/code/core.txt], outs: [data/{0}]}}"
    code = f"{{cmd: {sys.executable} -m pd_core code, outs: [data/code]}}"
    (project / "dvc.yaml").write_text(
        f"stages:\n  code: {code}\n  one: {stage.format('one')}\n  two: {stage.format('two')}\n"
    )
    if known:
        assert promptkd(project, "repro", "code").returncode == 0
    command = [sys.executable, "-m", "pd_core", "repro"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    running = [
        subprocess.Popen([*command, name], cwd=project, env=environment) for name in ("one", "two")
    ]
    assert [process.wait(90) for process in running] == [0, 0]
    assert all((project / "data" / name).is_file() for name in ("one", "two"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dependencies_are_collected_only_once_another_has_written_the_lock_file(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repro(project)
    monkeypatch.chdir(project)
    file = project / "dvc.lock"
    whole = file.read_text()
    lock = LockFile(str(project / ".dvc" / "tmp" / "lock"))
    file.write_text("")  # as at the start of writing

    def finish() -> None:
        file.write_text(whole)
        lock.close()

    writer = threading.Timer(1.0, finish)
    writer.start()
    assert dvc._with_dependencies(["second"], project / ".dvc" / "tmp") == ["first", "second"]
    writer.join()
