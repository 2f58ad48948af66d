"""An HTTP server on loopback whose files can be made to misbehave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from http_server import Handler, http_server


@dataclass
class Served:
    """A file, and the way it is served.

    Attributes:
        content: its bytes.
        etag: its version; none if empty.
        ranges: honour the header `Range`.
        cuts: bytes after which the connection breaks, an entry for each of the next requests.
        statuses: statuses of the next requests, in place of an answer.
        content_type: of the answers.
        announced: send a `Content-Length`.
        honours_if_range: refuse a part of another version.
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

    class Files(Handler):
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

    with http_server(Files) as address:
        running = FileServer(address)
        running.files = files
        yield running
