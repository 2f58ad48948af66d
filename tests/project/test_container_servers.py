"""Servers of the containers, started here by the commands that compose.yaml has for them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from container_files import LOGIN, ROOT, compose
from moto.server import ThreadedMotoServer
from waiting import free_port

BUCKET = "promptkd"
NAME = {"Host": "mlflow:5000"}  # what a container asks for
PROGRAMS = Path(sys.executable).parent


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
def started(name: str, state: Path, **environment: str) -> Iterator[str]:
    """A service that is well, as its health check says; it has to end when it is told to.

    Args:
        name: of the service.
        state: a folder in place of the volume at `/state`.
        environment: in place of what the service is given.

    Yields:
        Its address on this machine.
    """
    service = compose(LOGIN)["services"][name]
    port = service["ports"][0].rpartition(":")[2]
    here = {port: str(free_port()), "0.0.0.0": "127.0.0.1", "/state": str(state)}
    given = {key: replaced(value, here) for key, value in service["environment"].items()}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    log = state / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            command(service["command"], here),
            cwd=ROOT,
            env={**inherited, **given, **environment},
            stdout=file,
            stderr=file,
        )
    try:
        check = command(service["healthcheck"]["test"][1:], here)
        while subprocess.run(check, capture_output=True, check=False).returncode != 0:
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{here[port]}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def command(words: list[str], here: Mapping[str, str]) -> list[str]:
    """Return a container's command for this machine."""
    program, *rest = (replaced(word, here) for word in words)
    return [str(PROGRAMS / program), *rest]


def replaced(text: str, here: Mapping[str, str]) -> str:
    # Other names of the server stay as they are.
    if text.startswith("--allowed-hosts="):
        return text
    for in_container, on_this_machine in here.items():
        text = text.replace(in_container, on_this_machine)
    return text


def post(address: str, path: str, **body: Any) -> Any:
    """Send a request to the tracking server."""
    answer = requests.post(f"{address}/api/2.0/mlflow/{path}", json=body, headers=NAME, timeout=30)
    assert answer.ok, answer.text
    return answer.json()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_tracking_server_answers_by_its_name_and_keeps_files_in_the_store(
    tmp_path: Path,
) -> None:
    with (
        store() as (s3, client),
        started("mlflow", tmp_path, MLFLOW_S3_ENDPOINT_URL=s3) as address,
    ):
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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_prefect_server_is_well_once_it_is_set_up_and_its_page_finds_it(
    tmp_path: Path,
) -> None:
    with started("prefect", tmp_path) as address:
        page = requests.get(f"{address}/ui-settings", timeout=30).json()
        pool = requests.get(f"{address}/api/work_pools/promptkd", timeout=30)

    assert page["api_url"] == f"{address}/api"
    assert pool.ok, pool.text
    assert (tmp_path / "prefect.db").exists()
