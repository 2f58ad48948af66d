"""Servers of the containers, started here by the command that compose.yaml has for them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from container_files import LOGIN, compose
from moto.server import ThreadedMotoServer

BUCKET = "promptkd"
NAME = {"Host": "mlflow:5000"}  # what a container asks for


@contextmanager
def store() -> Iterator[tuple[str, Any]]:
    """An S3 server with the bucket: its address, and a client of it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    key, secret = LOGIN.values()
    client = boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
    )
    client.create_bucket(Bucket=BUCKET)
    yield address, client
    server.stop()


@contextmanager
def tracking_server(state: Path, s3: str) -> Iterator[str]:
    """The service `mlflow`, with its state in a folder; it has to end when it is told to."""
    service = compose(LOGIN)["services"]["mlflow"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"=0.0.0.0": "=127.0.0.1", "--port=5000": f"--port={port}", "/state": str(state)}
    program, *words = service["command"]
    for in_container, on_this_machine in here.items():
        assert sum(in_container in word for word in words) == 1
        words = [word.replace(in_container, on_this_machine) for word in words]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    settings = {**service["environment"], "MLFLOW_S3_ENDPOINT_URL": s3}
    log = state / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [Path(sys.executable).parent / program, *words],
            env={**inherited, **settings},
            stdout=file,
            stderr=file,
        )
    try:
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=5).ok
    except requests.ConnectionError:
        return False


def post(address: str, path: str, **body: Any) -> Any:
    """Ask the tracking server for something."""
    answer = requests.post(f"{address}/api/2.0/mlflow/{path}", json=body, headers=NAME, timeout=30)
    assert answer.ok, answer.text
    return answer.json()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_tracking_server_answers_by_its_name_and_keeps_files_in_the_store(
    tmp_path: Path,
) -> None:
    with store() as (s3, client), tracking_server(tmp_path, s3) as address:
        experiment = post(address, "experiments/create", name="one")["experiment_id"]
        run = post(address, "runs/create", experiment_id=experiment)["run"]["info"]
        place = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
        put = requests.put(
            f"{address}/api/2.0/mlflow-artifacts/artifacts/{place}/file",
            data=b"content",
            headers=NAME,
            timeout=30,
        )
        asked = f"{address}/api/2.0/mlflow/experiments/get?experiment_id={experiment}"
        elsewhere = requests.get(asked, headers={"Host": "elsewhere:5000"}, timeout=30)
        stored = client.get_object(Bucket=BUCKET, Key=f"mlflow/{place}/file")["Body"].read()

    assert put.ok, put.text
    assert elsewhere.status_code == 403
    assert stored == b"content"
    assert (tmp_path / "mlflow.db").exists()
