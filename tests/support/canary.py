"""Secrets that may appear nowhere, and where to look for them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CANARY = "canary"


SECRETS = {
    "PD_S3_ACCESS_KEY_ID": "canary-s3-id",
    "PD_S3_SECRET_ACCESS_KEY": "canary-s3-secret",
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
    """Refuse everything and repeat what was asked; `healthy` answers /health."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            good = healthy and self.path.endswith("/health")
            body = f"<Code>AccessDenied</Code>{self.path} {self.headers}".encode()
            self.send_response(200 if good else status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815 http.server's names

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()
