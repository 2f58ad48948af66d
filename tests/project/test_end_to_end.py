"""From an empty folder to a served model and back, each step one command, by real processes.

It works in a clone of what is committed; `E2E=all` runs the whole quickstart there first.
"""

import base64
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import requests
import torch
import trainings
from agents import environment
from documents import block
from serving import Running, serving
from waiting import free_port, wait_until

from pd_core.core.artifacts import read_json
from pd_core.data.loading.prepared import read_prepared
from pd_core.mlops import tracking
from pd_core.mlops.predictor import load_bundle
from pd_core.mlops.registry import BUNDLE, fetch, find
from pd_core.models.class_vectors import ClassVectors, distilled
from pd_core.models.clip import load_clip
from pd_core.models.student import Student

NAME = "embedded_greek"
MODEL = f"promptkd-{NAME}"
ADDED = "steam locomotive"

pytestmark = [pytest.mark.slow, pytest.mark.ci, pytest.mark.timeout(3600)]


def run(project: Path, *command: str, status: int = 0) -> str:
    done = subprocess.run(
        command, cwd=project, env=environment(project), capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def promptkd(project: Path, *arguments: str, status: int = 0) -> str:
    return run(project, sys.executable, "-m", "pd_core", *arguments, status=status)


@pytest.fixture(scope="module")
def project(benchmark_project: Path) -> Path:
    return benchmark_project


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


def wait_for_version(service: Running, version: int) -> None:
    wait_until(
        lambda: service.get("/model").json()["version"] == version,
        f"version {version} is served",
        seconds=60,
    )


def evaluated(project: Path) -> tuple[list[int], Any]:
    """Classify the test images as `evaluate` does: best labels, probabilities (N, C)."""
    data = project / "data"
    towers = load_clip("embedded-student", None)
    student = Student.load(data / "student" / NAME / "student.safetensors", towers)
    vectors = ClassVectors.load(data / "class_vectors" / NAME / "class_vectors.safetensors")
    logits = trainings.logits(distilled(student, vectors), read_prepared(data / "prepare" / NAME))
    return logits.argmax(axis=1).tolist(), torch.from_numpy(logits).softmax(dim=-1).numpy()


def test_the_run_of_evaluate_keeps_the_predictions_to_be_compared(project: Path) -> None:
    store = tracking.open_store(project)
    run_id = find(store, f"{NAME}/1").run_id
    assert run_id is not None
    kept = tracking.client(store).list_artifacts(run_id)
    assert "predictions.json" in [file.path for file in kept]


def test_every_test_picture_is_served_as_evaluate_predicted_it(
    project: Path, service: Running
) -> None:
    files, rows = pictures(project)
    names = service.get("/model").json()["classes"]
    best, probabilities = evaluated(project)
    assert best == [row["student"][1] for row in rows]
    off = 0.0
    for start in range(0, len(files), 50):
        batch = [base64.b64encode(file).decode() for file in files[start : start + 50]]
        answer = service.post(f"/predict/batch?top={len(names)}", json={"images": batch})
        assert answer.status_code == 200, answer.text
        for place, ranking in enumerate(answer.json()["predictions"], start=start):
            assert ranking[0]["name"] == names[best[place]]
            served = {guess["name"]: guess["probability"] for guess in ranking}
            row = [served[name] for name in names]
            off = max(off, float(np.abs(row - probabilities[place]).max()))
    assert off < 1e-5
    single = service.post("/predict?top=1", files[0], headers={"Content-Type": "image/png"})
    assert single.json()["predictions"][0]["name"] == names[best[0]]


def test_onnx_answers_as_evaluate_did_for_every_test_picture(
    project: Path, promoted: str, tmp_path: Path
) -> None:
    assert promoted
    store = f"sqlite:///{project / 'mlflow.db'}"
    folder = fetch(store, find(store, f"{NAME}/1"), tmp_path) / BUNDLE
    student = load_bundle(folder)
    pixels = np.stack([student.crop(file) for file in pictures(project)[0]])
    session = onnxruntime.InferenceSession(str(folder / "student.onnx"))
    probabilities_of = session.run(["probabilities"], {"pixels": pixels})[0]
    best, probabilities = evaluated(project)
    assert probabilities_of.argmax(axis=1).tolist() == best
    assert np.abs(probabilities_of - probabilities).max() < 1e-4


def test_a_class_is_added_promoted_served_and_rolled_back(project: Path, service: Running) -> None:
    promptkd(project, "classes", "add", NAME, ADDED)
    assert ADDED not in service.get("/model").json()["classes"]
    output = promptkd(project, "registry", "promote", NAME)
    assert f"version 2 of '{MODEL}' is champion, after 1" in output
    wait_for_version(service, 2)
    assert service.get("/model").json()["classes"][-1] == ADDED
    output = promptkd(project, "registry", "rollback", NAME)
    assert f"version 1 of '{MODEL}' is champion again" in output
    wait_for_version(service, 1)
    assert ADDED not in service.get("/model").json()["classes"]
    (project / "zero.png").write_bytes(pictures(project)[0][0])
    assert "%" in promptkd(project, "predict", NAME, "zero.png")
    history = promptkd(project, "registry", "history", NAME, "--json")
    assert history.count('"state": "done"') == 3


def test_code_that_is_not_committed_is_refused_and_the_champion_stays(
    project: Path, service: Running
) -> None:
    code = project / "pd_core" / "training" / "loop" / "losses.py"
    before = code.read_text()
    code.write_text(before + "# edited\n")
    try:
        promptkd(project, "registry", "register", NAME)
        output = promptkd(project, "registry", "promote", f"{NAME}/2", status=2)
    finally:
        code.write_text(before)
    assert "not committed" in output
    promptkd(project, "registry", "register", NAME)
    assert "would become champion" in promptkd(
        project, "registry", "promote", f"{NAME}/2", "--dry-run"
    )
    assert service.get("/model").json()["version"] == 1


def test_the_documented_lines_use_the_champion(project: Path, promoted: str) -> None:
    assert promoted
    (project / "picture.png").write_bytes(pictures(project)[0][0])
    output = run(project, sys.executable, "-c", block("python", "import mlflow"))
    assert "greek" in output


def test_mlflow_serves_the_same_model_as_it_is(project: Path, promoted: str) -> None:
    assert promoted
    files, rows = pictures(project)
    port = free_port()
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
        body = {"inputs": {"image": [base64.b64encode(file).decode() for file in files[:20]]}}
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/ping"), "the model server is up", process, seconds=90)
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


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == requests.codes.ok
    except requests.ConnectionError:
        return False
