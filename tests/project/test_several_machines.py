"""A benchmark by agents in clones of their own: computed once, and then everywhere by DVC.

Real stages with short trainings; Prefect, MLflow and S3 are servers on loopback. Each clone stands
for a machine: what they share goes through the servers.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from agents import (
    DATASETS,
    DVC,
    ROOT,
    STAGES,
    Server,
    agent,
    clone,
    environment,
    serving,
)
from git_repository import commit, git
from mlflow import MlflowClient
from mlflow_server import mlflow_server
from ruamel.yaml import YAML
from s3_server import BUCKET, endpoint
from waiting import wait_until

__all__ = ["endpoint"]

SECRET = "a-secret-of-the-store"
SHORT = {"teacher": {"epochs": 1, "warmup_epochs": 0}, "student": {"epochs": 1, "warmup_epochs": 0}}

WANTED = [f"evaluate@{name}" for name in DATASETS]
ALL_STAGES = sorted(f"{stage}@{name}" for stage in STAGES for name in DATASETS)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@dataclass(frozen=True)
class Machines:
    """A finished benchmark of two agents: its Prefect server, clones, MLflow and settings."""

    server: Server
    run: str  # the benchmark's flow run
    coordinator: Path  # the clone in which it was started
    start: str  # the commit of all clones
    mlflow: str
    variables: dict[str, str]


def shortened(folder: Path) -> Path:
    """Clone this repository, with trainings of one epoch."""
    clone(ROOT, folder)
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    for block, values in SHORT.items():
        params[block].update(values)
    yaml.dump(params, folder / "params.yaml")
    commit(folder)
    return folder


def run(folder: Path, *command: str, **variables: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def machines(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path, endpoint: str
) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("machines")
    coordinator = shortened(folder / "coordinator")
    start = git(coordinator, "rev-parse", "HEAD")
    with ExitStack() as stack:
        mlflow, _ = stack.enter_context(mlflow_server(empty_database, folder / "mlflow"))
        server = stack.enter_context(serving(folder, coordinator))
        variables = {
            "PD_DVC_REMOTE": f"s3://{BUCKET}/dvc",
            "PD_S3_ENDPOINT_URL": endpoint,
            "PD_S3_ACCESS_KEY_ID": "key-of-the-store",
            "PD_S3_SECRET_ACCESS_KEY": SECRET,
            "PD_MLFLOW_TRACKING_URI": mlflow,
        }
        for gpu in ("0", "1"):
            own = clone(coordinator, folder / f"gpu-{gpu}")
            stack.enter_context(agent(own, server.api, "--gpu", gpu, **variables))
        stack.enter_context(agent(coordinator, server.api, **variables))
        run_id = server.run("benchmark/quickstart", "benchmark", datasets=list(DATASETS))
        state = server.ended(run_id, seconds=1200)
        assert state["type"] == "COMPLETED", (state, server.log(run_id))
        yield Machines(server, run_id, coordinator, start, mlflow, variables)


def promptkd_repro(machines: Machines, folder: Path, commit: str) -> str:
    """Bring the data sets up to date on another machine; return DVC's output."""
    clone(machines.coordinator, folder)
    git(folder, "checkout", "--quiet", commit)
    command = [sys.executable, "-m", "pd_core", "repro", "--pull", *WANTED]
    return run(folder, *command, **machines.variables)


def test_the_coordinator_has_everything_and_commits_the_lock_once(machines: Machines) -> None:
    folder = machines.coordinator
    for name in DATASETS:
        for stage in STAGES:
            assert any((folder / "data" / stage / name).iterdir())
    assert git(folder, "rev-list", "--count", f"{machines.start}..HEAD") == "1"
    assert git(folder, "diff", "--name-only", machines.start, "HEAD") == "dvc.lock"
    assert git(folder, "status", "--porcelain", "-uno") == ""


def test_every_stage_was_computed_once_by_one_of_the_agents(machines: Machines) -> None:
    rows = json.loads(machines.server.artifacts()["stages-quickstart"])
    assert sorted(row["stage"] for row in rows) == ALL_STAGES
    assert {row["state"] for row in rows} == {"computed"}
    assert len({row["slot"] for row in rows}) == 2
    assert all("student hm" in row["metrics"] for row in rows if "evaluate" in row["stage"])
    wait_until(machines.server.never_double_booked, "all slots are free", seconds=20)


def test_mlflow_has_each_stage_and_the_flow_leads_there(machines: Machines) -> None:
    client = MlflowClient(machines.mlflow)
    experiment = client.get_experiment_by_name("promptkd-quickstart")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.level = 'stage'")
    names = [f"{run.data.tags['stage']}@{run.data.tags['dataset']}" for run in runs]
    assert sorted(names) == ALL_STAGES
    assert {run.data.tags["mlflow.source.git.commit"] for run in runs} == {machines.start}
    link = machines.server.artifacts()["mlflow-embedded-greek"]
    assert f"{machines.mlflow}/#/experiments/{experiment.experiment_id}/runs/" in link


def test_agents_leave_their_clones_as_they_were_committed(machines: Machines) -> None:
    for gpu in ("0", "1"):
        folder = machines.coordinator.parent / f"gpu-{gpu}"
        assert git(folder, "status", "--porcelain", "-uno") == ""
        assert git(folder, "rev-parse", "HEAD") == machines.start


def test_no_secret_is_in_any_record(machines: Machines) -> None:
    for file in machines.server.home.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file
    for file in machines.coordinator.parent.glob("*.log"):
        assert SECRET not in file.read_text(), file
    for folder in machines.coordinator.parent.glob("*/.dvc"):
        assert SECRET not in (folder / "config.local").read_text()


def computed(output: str) -> set[str]:
    """Return the stages that DVC has run rather than taken from its cache or the remote."""
    return set(re.findall(r"Running stage '([^']+)'", output))


def test_another_machine_gets_all_stages_without_computing_any(
    machines: Machines, tmp_path: Path
) -> None:
    before = promptkd_repro(machines, tmp_path / "third", machines.start)  # by the run cache alone
    assert computed(before) <= {"code"}  # each machine hashes its own code
    head = git(machines.coordinator, "rev-parse", "HEAD")
    after = promptkd_repro(machines, tmp_path / "fourth", head)
    assert computed(after) <= {"code"}  # each machine hashes its own code
    clones = (machines.coordinator, tmp_path / "third", tmp_path / "fourth")
    for name in DATASETS:
        for stage in STAGES:
            first, *others = [contents(folder / "data" / stage / name) for folder in clones]
            assert first
            assert others == [first, first]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".gitignore"}


def test_plain_dvc_works_as_well(machines: Machines, tmp_path: Path) -> None:
    folder = clone(machines.coordinator, tmp_path / "fifth")
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET}
    variables = machines.variables
    for command in (
        ["remote", "add", "--local", "--default", "any", variables["PD_DVC_REMOTE"]],
        ["remote", "modify", "--local", "any", "endpointurl", variables["PD_S3_ENDPOINT_URL"]],
        ["repro", "--pull", *WANTED[:1]],
    ):
        output = run(folder, *DVC, *command, **keys)
    assert computed(output) <= {"code"}  # each machine hashes its own code
