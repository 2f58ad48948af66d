"""`promptkd tune` as a command: stopped, killed and resumed, two trials at a time, and applied."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import psutil
import pytest
import short_project
import short_search
from git_repository import commit, git
from short_project import NAME, run
from short_search import trials
from waiting import wait_until

from pd_core.pipeline import experiment
from pd_core.pipeline.processes import EXIT_STATUS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TUNE = ("tune", NAME, "--jobs", "2", "--trials")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A repository with all stages before the student."""
    folder = short_project.make(tmp_path_factory.mktemp("tune") / "project", empty_database)
    (folder / "params.yaml").write_text((short_project.ROOT / "params.yaml").read_text())
    short_search.shorten(folder / "params.yaml")
    git(folder, "init", "--quiet")
    (folder / ".gitignore").write_text("/data/\n/mlflow.db\n/mlruns/\n/mlartifacts/\n")
    commit(folder)
    short_search.run_until_student(folder)
    return folder


def ended(project: Path, count: int) -> Callable[[], bool]:
    return lambda: len(trials(project)) >= count


def start(project: Path, count: int, until: Callable[[], bool]) -> subprocess.Popen[str]:
    """Start a search in the background, and wait."""
    process = short_project.start(project, *TUNE, str(count))
    wait_until(until, "the search is as far", process, seconds=200)
    return process


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


@pytest.mark.ci
def test_a_search_that_is_stopped_and_killed_has_every_trial_once(project: Path) -> None:
    for count in (1, 2):
        process = start(project, 5, ended(project, count))
        members = family(process)
        time.sleep(0.4 * count)
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == EXIT_STATUS, output
        assert "stopped: terminated by SIGTERM" in output
        assert "Traceback" not in output
        _, alive = psutil.wait_procs(members, timeout=30)
        assert not alive
    process = start(project, 5, ended(project, 3))
    members = family(process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(members, timeout=90)  # which notice that their parent has ended
    assert not alive
    before = {trial.number: trial.values for trial in trials(project)}

    output = run(project, *TUNE, "5")
    after = trials(project)
    assert [trial.number for trial in after] == [1, 2, 3, 4, 5]
    assert before.items() <= {trial.number: trial.values for trial in after}.items()
    assert re.search(r"5 trials, \d of them pruned; \d+\.\d minutes of processor", output)
    assert sorted(name.rpartition("-")[2] for name in experiment.recorded(project)) == [*"12345"]
    assert recorded_in_mlflow(project) == [f"trial {number}" for number in range(1, 6)]


def recorded_in_mlflow(project: Path) -> list[str]:
    """Return the names of the runs below that of the search, which is one."""
    client = mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(experiments)
    searches = [each for each in runs if each.info.run_name == f"tune student@{NAME}"]
    assert len(searches) == 1
    parent = searches[0].info.run_id
    return sorted(
        str(each.info.run_name)
        for each in runs
        if each.data.tags.get("mlflow.parentRunId") == parent
    )


def test_the_best_values_are_shown_as_a_diff_and_written_by_apply(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    shown = run(project, *TUNE, "5")
    assert (project / "params.yaml").read_text() == text
    new = re.findall(r"^\+( .+# tuned: 5 trials, validation)$", shown, re.MULTILINE)
    assert any(line.startswith("      kd_weight: ") for line in new)

    run(project, *TUNE, "5", "--apply")
    written = (project / "params.yaml").read_text().splitlines()
    assert [line for line in written if line not in text.splitlines() and "tuned:" in line] == new
    # The search is the same one, whose first trial had the values of before.
    assert "has the best values already" in run(project, *TUNE, "5")
