"""From an empty folder to a served model and back, each step one command, by real processes.

It works in a clone of what is committed. `E2E=all` runs the whole quickstart first instead of the
stages of one data set.
"""

import base64
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from serving import Running, serving

from pd_core.artifacts import read_json
from pd_core.data.prepared import read_prepared

ROOT = Path(__file__).parents[1]
NAME = "embedded_digits"
MODEL = f"promptkd-{NAME}"
ADDED = "steam locomotive"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def environment(project: Path) -> dict[str, str]:
    """Let the clone's code run, with this environment's programs."""
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join([programs, os.environ["PATH"]])
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PD_")}
    return {**clean, "PATH": path, "PYTHONPATH": str(project)}


def run(project: Path, *command: str) -> str:
    done = subprocess.run(
        command,
        cwd=project,
        env=environment(project),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def promptkd(project: Path, *arguments: str) -> str:
    return run(project, sys.executable, "-m", "pd_core.cli", *arguments)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clone the repository and run the stages from an empty cache."""
    folder = tmp_path_factory.mktemp("empty") / "promptkd"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    if os.environ.get("E2E") == "all":
        run(folder, "make", "quickstart", f"VIRTUAL_ENV={sys.prefix}", "STAMP=")
    else:
        run(folder, "dvc", "repro", "--quiet", "--force", "--no-run-cache", f"evaluate@{NAME}")
    return folder


@pytest.fixture(scope="module")
def promoted(project: Path) -> str:
    return promptkd(project, "registry", "promote", NAME)


@pytest.fixture(scope="module")
def service(project: Path, promoted: str) -> Iterator[Running]:
    assert f"version 1 of '{MODEL}' is champion, after none" in promoted
    with serving(project, "--poll", "0.5", dataset=NAME, code=project) as running:
        yield running


def pictures(project: Path) -> tuple[list[bytes], list[dict[str, Any]]]:
    """Return the test pictures' files, and what `evaluate` wrote about each."""
    rows = read_json(project / "data" / "evaluate" / NAME / "predictions.json")
    with zipfile.ZipFile(read_prepared(project / "data" / "prepare" / NAME).images) as archive:
        return [archive.read(row["path"]) for row in rows], rows


def answered_by(service: Running, version: int) -> None:
    """Wait until a version answers."""
    end = time.monotonic() + 60
    while service.get("/model").json()["version"] != version:
        assert time.monotonic() < end, f"version {version} did not take over"
        time.sleep(0.2)


def test_every_test_picture_is_served_as_evaluate_predicted_it(
    project: Path, service: Running
) -> None:
    files, rows = pictures(project)
    names = service.get("/model").json()["classes"]
    wanted = [names[row["student"][1]] for row in rows]
    served = []
    for start in range(0, len(files), 50):
        batch = [base64.b64encode(file).decode() for file in files[start : start + 50]]
        answer = service.post("/predict/batch?top=1", json={"images": batch})
        assert answer.status_code == 200, answer.text
        served += [prediction[0]["name"] for prediction in answer.json()["predictions"]]
    assert served == wanted
    single = service.post("/predict?top=1", files[0], headers={"Content-Type": "image/png"})
    assert single.json()["predictions"][0]["name"] == wanted[0]


def test_a_class_is_added_promoted_served_and_rolled_back(project: Path, service: Running) -> None:
    promptkd(project, "classes", "add", NAME, ADDED)
    assert ADDED not in service.get("/model").json()["classes"]
    said = promptkd(project, "registry", "promote", NAME)
    assert f"version 2 of '{MODEL}' is champion, after 1" in said
    answered_by(service, 2)
    assert service.get("/model").json()["classes"][-1] == ADDED
    said = promptkd(project, "registry", "rollback", NAME)
    assert f"version 1 of '{MODEL}' is champion again" in said
    answered_by(service, 1)
    assert ADDED not in service.get("/model").json()["classes"]
    (project / "zero.png").write_bytes(pictures(project)[0][0])
    assert "%" in promptkd(project, "predict", NAME, "zero.png")
    history = promptkd(project, "registry", "history", NAME, "--json")
    assert history.count('"state": "done"') == 3


def test_code_that_is_not_committed_is_refused_and_the_champion_stays(
    project: Path, service: Running
) -> None:
    code = project / "pd_core" / "losses.py"
    before = code.read_text()
    code.write_text(before + "# edited\n")
    try:
        promptkd(project, "registry", "register", NAME)
        done = subprocess.run(
            [sys.executable, "-m", "pd_core.cli", "registry", "promote", f"{NAME}/2"],
            cwd=project,
            env=environment(project),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        code.write_text(before)
    assert done.returncode == 2
    assert "not committed" in done.stdout
    promptkd(project, "registry", "register", NAME)
    assert "would become champion" in promptkd(
        project, "registry", "promote", f"{NAME}/2", "--dry-run"
    )
    assert service.get("/model").json()["version"] == 1


def test_mlflow_serves_the_same_model_as_it_is(project: Path, promoted: str) -> None:
    assert promoted
    files, rows = pictures(project)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"sqlite:///{project / 'mlflow.db'}"
    command = ["mlflow", "models", "serve", "-m", f"models:/{MODEL}/1", "--env-manager", "local"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--host", "127.0.0.1"],
        cwd=project,
        env={**environment(project), "PYTHONPATH": "", "MLFLOW_TRACKING_URI": uri},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        body = {"inputs": [base64.b64encode(file).decode() for file in files[:20]]}
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/ping", process)
        answer = requests.post(f"{url}/invocations", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        bad = requests.post(f"{url}/invocations", json={"inputs": ["no picture"]}, timeout=60)
        assert bad.status_code == 400
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)
    classes = read_prepared(project / "data" / "prepare" / NAME).classes
    got = [row["names"][0] for row in answer.json()["predictions"]]
    assert got == [classes[row["student"][1]] for row in rows[:20]]
    assert np.allclose([sum(row["probabilities"]) for row in answer.json()["predictions"]], 1, 0.5)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 90
    while True:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < end, "the server did not start"
        try:
            if requests.get(url, timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            time.sleep(0.3)
