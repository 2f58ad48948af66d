"""An HTTP server on loopback whose files can be made to misbehave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Served:
    """A file, and how it is served.

    Attributes:
        content: its bytes.
        etag: its version; none if empty.
        ranges: whether a part of it can be asked for.
        cuts: bytes after which the connection breaks, an entry for each of the next requests.
        statuses: statuses of the next requests, in place of an answer.
        content_type: what it says that it is.
        announced: whether its size is said beforehand.
        honours_if_range: whether a part of another version is refused.
        asked: the `Range` of every request; empty where there was none.
        versions: the `If-Range` of every request; empty where there was none.
    """

    content: bytes
    etag: str = '"1"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    content_type: str = "application/octet-stream"
    announced: bool = True
    honours_if_range: bool = True
    asked: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)


class FileServer:
    """Files by path, and where they are."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.files: dict[str, Served] = {}

    def url(self, path: str) -> str:
        """Return the address of a file."""
        return f"{self.base}/{path}"

    def add(self, path: str, content: bytes) -> Served:
        """Serve a file."""
        self.files[path] = Served(content)
        return self.files[path]


@pytest.fixture
def server() -> Iterator[FileServer]:
    """Run a server during a test."""
    with file_server() as running:
        yield running


@contextmanager
def file_server() -> Iterator[FileServer]:
    """Run a server while the block runs."""
    files: dict[str, Served] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            served = files.get(self.path.lstrip("/"))
            if served is None:
                self.send_error(404)
                return
            asked = self.headers.get("Range", "")
            served.asked.append(asked)
            served.versions.append(self.headers.get("If-Range", ""))
            if served.statuses:
                self.send_error(served.statuses.pop(0))
                return
            self._send(served, asked)

        def _send(self, served: Served, asked: str) -> None:
            size, start = len(served.content), 0
            version = self.headers.get("If-Range") if served.honours_if_range else None
            same = version in (None, served.etag)
            if asked and served.ranges and same:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= size:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{size}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            else:
                self.send_response(200)
            body = served.content[start:]
            if served.etag:
                self.send_header("ETag", served.etag)
            self.send_header("Content-Type", served.content_type)
            if served.announced:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if served.cuts:
                body = body[: served.cuts.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            del args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    running = FileServer(f"http://127.0.0.1:{server.server_address[1]}")
    running.files = files
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
