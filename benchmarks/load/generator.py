"""A load generator: a process that keeps many connections busy, as cheaply as Python allows.

`python -m benchmarks.load.generator HOST PORT PATH FILE CONNECTIONS SECONDS` posts a file over and
over and prints what came back as one line of JSON, see `Load`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT


@dataclass(frozen=True)
class Load:
    """Result of a load test.

    Attributes:
        rate: responses per second.
        statuses: number of responses by status; "broken" for broken connections.
        latencies: in milliseconds, by quantile: "0.5", "0.9", "0.99", "1".
    """

    rate: float
    statuses: dict[str, int]
    latencies: dict[str, float]

    @property
    def errors(self) -> int:
        """Number of responses that are not 200."""
        return sum(self.statuses.values()) - self.statuses.get("200", 0)


def start(
    port: int, path: str, file: Path, *, connections: int, seconds: float
) -> subprocess.Popen[str]:
    """Start the load on a server on loopback, in a process of its own."""
    arguments = ["127.0.0.1", port, path, file, connections, seconds]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load.generator", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> Load:
    """Wait for the result."""
    output, _ = process.communicate()
    assert process.returncode == 0
    return Load(**json.loads(output))


class _Client(asyncio.Protocol):
    """A connection that sends a request after each response."""

    transport: asyncio.Transport

    def __init__(self, request: bytes, log: _Log) -> None:
        self._request = request
        self._log = log
        self._answer = b""
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self._begun = time.perf_counter()
        if self._begun >= self._log.deadline:
            self.transport.close()
        else:
            self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, complete, body = self._answer.partition(b"\r\n\r\n")
        if not complete:
            return
        lowered = head.lower()
        length = int(lowered.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._answer = b""
        self._log.latencies.append(time.perf_counter() - self._begun)
        self._log.statuses[head[9:12].decode()] += 1
        if b"connection: close" not in lowered:
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None or time.perf_counter() < self._log.deadline:
            self._log.statuses["broken"] += 1
        self.ended.set_result(None)


class _Log:
    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()


async def _load(host: str, port: int, request: bytes, connections: int, seconds: float) -> Load:
    begun = time.perf_counter()
    log = _Log(begun + seconds)
    loop = asyncio.get_running_loop()
    pairs = [
        await loop.create_connection(lambda: _Client(request, log), host, port)
        for _ in range(connections)
    ]
    await asyncio.gather(*(client.ended for _, client in pairs))
    ordered = sorted(log.latencies) or [0.0]
    last = len(ordered) - 1
    quantiles = {str(part): 1000 * ordered[round(part * last)] for part in (0.5, 0.9, 0.99, 1)}
    return Load(len(ordered) / (time.perf_counter() - begun), dict(log.statuses), quantiles)


def _main(host: str, port: str, path: str, file: str, connections: str, seconds: str) -> None:
    body = Path(file).read_bytes()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    load = asyncio.run(
        _load(host, int(port), head.encode() + body, int(connections), float(seconds))
    )
    sys.stdout.write(json.dumps(load.__dict__))


if __name__ == "__main__":
    _main(*sys.argv[1:])
