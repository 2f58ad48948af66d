"""Secrets that may appear nowhere, and the search for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from http_server import Handler, http_server

CANARY = "canary"
SECRETS = {
    "PD_S3_ACCESS_KEY_ID": "canary-s3-id",
    "PD_S3_SECRET_ACCESS_KEY": "canary-s3-secret",
    "PD_SERVE_API_KEYS": "canary-serve-first, canary-serve-second",
    "AWS_ACCESS_KEY_ID": "canary-aws-id",
    "AWS_SECRET_ACCESS_KEY": "canary-aws-secret",
    "MLFLOW_TRACKING_USERNAME": "me",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow",
    "PREFECT_API_KEY": "canary-prefect",
}
LOGIN = "me:canary-login"


def search(folder: Path) -> list[Path]:
    """Return the files below a folder that hold a secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if CANARY.encode() in path.read_bytes()]


def with_login(address: str) -> str:
    return address.replace("://", f"://{LOGIN}@")


@contextmanager
def hostile_server(healthy: bool, status: int = 403) -> Iterator[str]:
    """Refuse all requests and repeat them in the answer; if `healthy`, answer /health."""

    class Hostile(Handler):
        def answer(self) -> None:
            good = healthy and self.path.endswith("/health")
            body = f"<Code>AccessDenied</Code>{self.path} {self.headers}".encode()
            self.send_response(200 if good else status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815 http.server's names

    with http_server(Hostile) as address:
        yield address
