"""`mlflow models serve` classifies images that it is sent, and reads no file of its machine."""

import base64
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import TinyStudent
from fastapi.testclient import TestClient
from serving import champion, portable
from tracked import load_model, store
from waiting import free_port, wait_until

from pd_core.mlops.registry.gate import check_files

__all__ = ["store"]  # a fixture

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("no_onnx"),
]


@pytest.fixture
def server(store: str, tiny_student: TinyStudent, picture: bytes) -> Iterator[TestClient]:
    """Run the application of `mlflow models serve`, in this process."""
    from mlflow.pyfunc.scoring_server import init

    champion(store, portable(tiny_student), picture)
    model = load_model(store, "models:/promptkd-greek@champion")
    with TestClient(init(model)) as client:
        yield client


def forms_of(value: str) -> list[dict[str, Any]]:
    """Return all forms of a request with one image that MLflow documents."""
    return [
        {"inputs": {"image": [value]}},
        {"inputs": {"image": value}},
        {"inputs": [value]},
        {"inputs": [{"image": value}]},
        {"instances": [value]},
        {"instances": [{"image": value}]},
        {"dataframe_split": {"columns": ["image"], "data": [[value]]}},
        {"dataframe_records": [{"image": value}]},
    ]


def test_each_form_of_a_request_is_classified(server: TestClient, picture: bytes) -> None:
    text = base64.b64encode(picture).decode()
    answers = [server.post("/invocations", json=body) for body in forms_of(text)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    body = {"inputs": {"image": [text, text]}, "params": {"top": 2}}
    rows = server.post("/invocations", json=body).json()["predictions"]
    assert [len(row["names"]) for row in rows] == [2, 2]


def test_a_path_is_not_read_and_nothing_is_told_of_it(
    server: TestClient, picture: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(picture)
    texts = (str(path), "/etc/passwd", "/no/such/file", "picture.png", f"file://{path}")
    for body in (body for text in texts for body in forms_of(text)):
        answer = server.post("/invocations", json=body)
        assert answer.status_code == 400
        assert "a text that is not base64" in answer.text


def test_what_is_no_image_is_refused_in_terms_of_a_request(server: TestClient) -> None:
    text = base64.b64encode(b"no image").decode()
    for body in forms_of(text):
        answer = server.post("/invocations", json=body)
        assert answer.status_code == 400
        assert "give an image file of BMP, GIF" in answer.text
        assert "path" not in answer.text


@pytest.mark.slow
@pytest.mark.ci
def test_the_server_of_the_documentation_leaves_the_version_as_it_was_registered(
    store: str, tiny_student: TinyStudent, picture: bytes, tmp_path: Path
) -> None:
    version = champion(store, portable(tiny_student), picture)
    port = free_port()
    model = ["-m", "models:/promptkd-greek@champion", "--env-manager", "local"]
    process = subprocess.Popen(
        ["mlflow", "models", "serve", *model, "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, "MLFLOW_TRACKING_URI": store},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(f"{url}/ping"), "the model server is up", process, seconds=90)
        text = base64.b64encode(picture).decode()
        body = {"inputs": {"image": [text]}}
        assert requests.post(f"{url}/invocations", json=body, timeout=60).status_code == 200
        (tmp_path / "picture.png").write_bytes(picture)
        body = {"inputs": {"image": [str(tmp_path / "picture.png")]}}
        assert requests.post(f"{url}/invocations", json=body, timeout=60).status_code == 400
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
    assert check_files(store, version).passed


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == requests.codes.ok
    except requests.ConnectionError:
        return False
