"""A headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect
from websockets.sync.connection import Connection

_FLAGS = (
    "--headless",
    "--no-sandbox",  # a container's root has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
_SECONDS = 30.0  # a busy machine takes long to start it


class Browser:
    """A tab.

    Attributes:
        asked: addresses of all requests of the page.
        failed: requests without an answer, or with a status of 400 or more.
        complaints: errors and warnings on the console, and uncaught exceptions.
    """

    def __init__(self, connection: Connection) -> None:
        self.asked: list[str] = []
        self.failed: list[str] = []
        self.complaints: list[str] = []
        self._connection = connection
        self._calls = 0
        self._loaded = False
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        self._loaded = False
        answer = self._call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"
        until = time.monotonic() + _SECONDS
        while not self._loaded:
            self._receive(until)

    def forget(self) -> None:
        """Clear the recorded requests and complaints."""
        for noted in (self.asked, self.failed, self.complaints):
            noted.clear()

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page; promises are awaited."""
        answer = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Wait until an expression is true in the page."""
        until = time.monotonic() + _SECONDS
        while not self.evaluate(script):
            text = self.evaluate("document.body.innerText")
            assert time.monotonic() < until, f"never came: {script}; the page says: {text}"
            time.sleep(0.02)

    def set_file(self, selector: str, path: Path) -> None:
        """Choose a file, as a user does in the dialogue."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def press(self, key: str) -> None:
        """Press and release a key, for example "Tab"."""
        for kind in ("rawKeyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, **_CODES[key])

    def show(self, *, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """Set the window's size, the colour scheme, and touch for a phone."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        self._call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        calm = {"name": "prefers-reduced-motion", "value": "reduce"}
        self._call("Emulation.setEmulatedMedia", features=[scheme, calm])

    def screenshot(self, path: Path) -> None:
        """Write a screenshot as a PNG file."""
        answer = self._call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        until = time.monotonic() + _SECONDS
        while True:
            answer = self._receive(until)
            if answer.get("id") == self._calls:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, until: float) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._connection.recv(until - time.monotonic()))
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, about: dict[str, Any]) -> None:
        match event:
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.asked.append(about["request"]["url"])
            case "Network.loadingFailed":
                self.failed.append(about["errorText"])
            case "Network.responseReceived" if about["response"]["status"] >= 400:
                self.failed.append(f"{about['response']['status']} {about['response']['url']}")
            case "Log.entryAdded" if about["entry"]["level"] in ("error", "warning"):
                self.complaints.append(about["entry"]["text"])
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "warning"):
                self.complaints.append(str(about["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(about["exceptionDetails"]))


_CODES = {
    "Tab": {"windowsVirtualKeyCode": 9},
    "Enter": {"windowsVirtualKeyCode": 13},
}


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Run Chromium while the block runs; its profile is in an empty folder."""
    program = shutil.which("chromium")
    assert program, "no chromium; install Debian's package `chromium`"
    with subprocess.Popen(
        [program, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            with connect(_tab(folder / "DevToolsActivePort"), max_size=None) as connection:
                yield Browser(connection)
        finally:
            process.terminate()


def _tab(port_file: Path) -> str:
    """Wait for the only tab; return its WebSocket address."""
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        if port_file.is_file() and (lines := port_file.read_text().splitlines()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list") as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError(f"chromium did not start within {_SECONDS:.0f} s")
