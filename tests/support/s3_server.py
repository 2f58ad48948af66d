"""An S3 server on loopback, with a bucket, and users who may do some things only."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from pd_core.pipeline.settings import Settings

BUCKET = "promptkd-test"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client("s3", address).create_bucket(Bucket=BUCKET)
    yield address
    server.stop()


def client(service: str, endpoint: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
    )


def user_with(endpoint: str, *actions: str) -> Settings:
    """Make a user who may do some things only; return settings with its credentials."""
    iam, name = client("iam", endpoint), f"user-{uuid.uuid4()}"
    iam.create_user(UserName=name)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    allowed = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=policy)
    return Settings(
        dvc_remote=f"s3://{BUCKET}/some/prefix",
        mirror=f"s3://{BUCKET}/some/prefix",
        s3_endpoint_url=endpoint,
        s3_access_key_id=SecretStr(key["AccessKeyId"]),
        s3_secret_access_key=SecretStr(key["SecretAccessKey"]),
    )


@contextmanager
def rights_checked(endpoint: str) -> Iterator[None]:
    """Let the server look at rights from the next request on."""
    requests.post(f"{endpoint}/moto-api/reset-auth", data=b"0", timeout=5)
    yield
    requests.post(f"{endpoint}/moto-api/reset-auth", data=b"Infinity", timeout=5)
