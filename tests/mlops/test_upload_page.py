"""The upload page in a real browser: names and percentages of an image.

Once with the real service; a fake one gives unusual responses at unusual times.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, browser
from conftest import TinyStudent
from http_server import Handler, http_server
from PIL import Image
from serving import champion, new_project, portable, serving

from pd_core.mlops.serving import app

pytestmark = [pytest.mark.slow, pytest.mark.ci]

SCREENS = {"desk": (1280, 900), "phone": (390, 844), "narrow": (320, 640)}
LONG = "small letter final sigma " + "with_a_name_that_has_no_place_to_break_" * 2
BUSY = "the service is busy; try again in a moment"


@dataclass
class FakeService:
    """Fake service with the same ranking for every PNG file; everything else is refused.

    Attributes:
        url: its address.
        version: of its model.
        ranking: classes and their probabilities.
        slow: an image whose response waits for `go_on`.
        types: content types of the uploads.
        key: API key that is required; none if empty.
    """

    url: str = ""
    version: int = 3
    ranking: list[tuple[str, float]] = field(default_factory=list)
    slow: bytes = b""
    go_on: threading.Event = field(default_factory=threading.Event)
    types: list[str] = field(default_factory=list)
    key: str = ""

    def reset(self) -> None:
        self.version, self.slow, self.types, self.key = 3, b"", [], ""
        self.ranking = [("capital <b>gamma</b>", 0.9321), (LONG, 0.0678), ("nu", 0.00004)]

    def model(self) -> dict[str, Any]:
        names = [name for name, _ in self.ranking] * 40
        return {"name": "promptkd-embedded_greek", "version": self.version, "classes": names}

    def predict(self, body: bytes) -> tuple[int, dict[str, Any]]:
        if self.slow and body == self.slow:
            self.go_on.wait(20)
            return 503, {"detail": BUSY}
        if not body.startswith(b"\x89PNG"):
            return 400, {"detail": "the picture cannot be read (no picture); give a PNG file"}
        predictions = [{"name": name, "probability": share} for name, share in self.ranking]
        model = {"model": "promptkd-embedded_greek", "version": self.version}
        return 200, {**model, "predictions": predictions}


@pytest.fixture(scope="module", name="running")
def _running() -> Iterator[FakeService]:
    fake = FakeService()

    class Page(Handler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # noqa: N802
            if self.path == "/":
                self._send(200, app.TEXT.encode(), "text/html; charset=utf-8")
            elif fake.key and self.headers["Authorization"] != f"Bearer {fake.key}":
                self._send(401, b'{"detail": "an API key is required"}')
            elif self.path == "/model":
                self._send(200, json.dumps(fake.model()).encode())
            else:
                self._send(404, b'{"detail": "no such page"}')

        def do_POST(self) -> None:  # noqa: N802
            assert self.path == "/predict?top=5"
            fake.types.append(self.headers["Content-Type"])
            status, answer = fake.predict(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(status, json.dumps(answer).encode())

        def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for header in app.HEADERS.items():
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(body)

    with http_server(Page) as address:
        fake.url = f"{address}/"
        yield fake


@pytest.fixture(scope="module", name="tab")
def _tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture(name="fake")
def _fake(running: FakeService) -> FakeService:
    running.reset()
    return running


@pytest.fixture(name="opened")
def _opened(tab: Browser, fake: FakeService) -> Browser:
    visit(tab, fake.url)
    return tab


@pytest.fixture(name="png")
def _png(tmp_path: Path, picture: bytes) -> Path:
    path = tmp_path / "my picture.png"
    path.write_bytes(picture)
    return path


def visit(tab: Browser, url: str) -> None:
    """Open the page afresh."""
    tab.open("about:blank")
    tab.forget()
    tab.show(width=1280, height=900)
    tab.open(url)
    tab.wait_for("!document.getElementById('facts').hidden")


def shown(opened: Browser) -> list[list[str]]:
    """Wait for the ranking; return names and percentages."""
    opened.wait_for("!document.getElementById('answers').hidden")
    rows: list[list[str]] = opened.evaluate(
        "[...document.querySelectorAll('.answer')].map((row) => "
        "[row.querySelector('.name').textContent, row.querySelector('.share').textContent])"
    )
    return rows


def refused(opened: Browser) -> str:
    """Wait for the reason that the page shows."""
    opened.wait_for("!document.getElementById('error').hidden")
    return str(opened.evaluate("document.getElementById('reason').textContent"))


def text_of(opened: Browser, name: str) -> str:
    return str(opened.evaluate(f"document.getElementById('{name}').textContent"))


@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")
def test_with_the_real_service_the_page_shows_the_students_ranking(
    tab: Browser, empty_database: Path, tiny_student: TinyStudent, png: Path, tmp_path: Path
) -> None:
    student = portable(tiny_student)
    store = new_project(tmp_path / "project", empty_database)
    champion(store, student, png.read_bytes())
    bad = tmp_path / "damaged.png"
    bad.write_bytes(png.read_bytes()[:100])
    with serving(tmp_path / "project") as service:
        visit(tab, service.url)
        tab.set_file("#file", png)
        expected = [[name, f"{share:.1%}"] for name, share in student.classify(png)]
        assert shown(tab) == expected
        assert text_of(tab, "model") == "promptkd-greek"
        assert text_of(tab, "count") == "3 classes"
        assert tab.complaints == []
        assert tab.failed == []
        tab.set_file("#file", bad)
        assert "cannot be read" in refused(tab)
        assert [failure[:4] for failure in tab.failed] == ["400 "]


def test_a_chosen_image_is_classified_by_the_pages_own_server(
    opened: Browser, fake: FakeService, png: Path
) -> None:
    opened.set_file("#file", png)
    assert shown(opened) == [["capital <b>gamma</b>", "93.2%"], [LONG, "6.8%"], ["nu", "< 0.1%"]]
    assert fake.types == ["image/png"]
    assert text_of(opened, "title") == "my picture.png"
    opened.wait_for("document.getElementById('preview').naturalWidth === 40")
    assert text_of(opened, "spoken") == "capital <b>gamma</b>, 93.2%"
    bars = "[...document.querySelectorAll('.fill')].map((bar) => parseFloat(bar.style.width))"
    assert opened.evaluate(bars) == pytest.approx([93.21, 6.78, 0.004])
    assert opened.complaints == []
    assert opened.failed == []
    own = (fake.url, f"blob:{fake.url}", "data:")
    assert opened.asked
    assert all(address.startswith(own) for address in opened.asked)


def test_the_model_is_described(opened: Browser) -> None:
    assert text_of(opened, "model") == "promptkd-embedded_greek"
    assert text_of(opened, "version") == "version 3"
    assert text_of(opened, "count") == "120 classes"
    assert opened.evaluate("document.querySelectorAll('#classes li').length") == 120
    assert opened.evaluate("document.title") == "promptkd-embedded_greek: try a picture"


def test_a_required_api_key_is_asked_for(tab: Browser, fake: FakeService, png: Path) -> None:
    fake.key = "0123456789abcdef"
    tab.open("about:blank")
    tab.open(fake.url)
    assert refused(tab) == "Enter the API key."
    for key in ("wrong", fake.key):
        tab.wait_for("!document.getElementById('entry').hidden")
        tab.evaluate(
            f"{{ const field = document.getElementById('key'); field.value = '{key}';"
            " field.dispatchEvent(new Event('change')); }"
        )
    tab.wait_for("!document.getElementById('facts').hidden")
    assert text_of(tab, "model") == "promptkd-embedded_greek"
    assert tab.evaluate("document.getElementById('entry').hidden")
    tab.set_file("#file", png)
    assert len(shown(tab)) == 3


def test_the_reason_of_a_refusal_is_shown_until_the_next_image(
    opened: Browser, fake: FakeService, png: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "notes.txt"
    bad.write_text("no picture")
    opened.set_file("#file", bad)
    assert refused(opened) == "The picture cannot be read (no picture); give a PNG file."
    assert fake.types == ["application/octet-stream"]  # for the server to look what it is
    assert opened.evaluate("document.getElementById('answers').hidden")
    assert opened.failed == [f"400 {opened.evaluate('location.href')}predict?top=5"]
    assert len(opened.complaints) == 1  # the browser's own line about the status
    opened.set_file("#file", png)
    assert len(shown(opened)) == 3
    assert opened.evaluate("document.getElementById('error').hidden")


def test_a_late_response_does_not_replace_that_of_a_later_image(
    opened: Browser, fake: FakeService, png: Path, tmp_path: Path
) -> None:
    first = tmp_path / "slow.png"
    first.write_bytes(png.read_bytes() + b"slow")
    fake.slow = first.read_bytes()
    fake.go_on.clear()
    opened.set_file("#file", first)
    opened.wait_for("!document.getElementById('waiting').hidden")
    opened.set_file("#file", png)
    shown(opened)
    fake.go_on.set()
    opened.wait_for(
        "performance.getEntriesByType('resource').filter("
        "(entry) => entry.name.includes('predict')).length === 2"
    )
    assert len(shown(opened)) == 3
    assert opened.evaluate("document.getElementById('error').hidden")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_can_be_dropped_and_pasted(opened: Browser, png: Path, way: str) -> None:
    encoded = base64.b64encode(png.read_bytes()).decode()
    event = {
        "drop": "new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})",
        "paste": "new ClipboardEvent('paste', {clipboardData: data, bubbles: true})",
    }[way]
    opened.evaluate(
        f"""{{
        const bytes = Uint8Array.from(atob("{encoded}"), (letter) => letter.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "given.png", {{ type: "image/png" }}));
        document.getElementById("drop").dispatchEvent({event});
        }}"""
    )
    assert len(shown(opened)) == 3
    assert text_of(opened, "title") == "given.png"


def test_a_version_that_came_while_the_page_was_open_is_described(
    opened: Browser, fake: FakeService, png: Path
) -> None:
    fake.version = 4
    opened.set_file("#file", png)
    shown(opened)
    opened.wait_for("document.getElementById('version').textContent === 'version 4'")


def test_a_server_that_is_down_is_reported(opened: Browser, png: Path) -> None:
    opened.evaluate("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    opened.set_file("#file", png)
    assert refused(opened) == "The server does not answer. Is it still running?"


def test_the_keyboard_reaches_the_picture_first_and_sees_where_it_is(opened: Browser) -> None:
    opened.press("Tab")
    assert opened.evaluate("document.activeElement.id") == "file"
    outline = "getComputedStyle(document.getElementById('drop')).outlineStyle"
    assert opened.evaluate(outline) == "solid"


def test_every_input_has_a_label_and_the_answer_is_spoken(opened: Browser) -> None:
    labels = "[...document.querySelectorAll('input')].every((one) => one.labels.length === 1)"
    assert opened.evaluate(labels)
    assert opened.evaluate("document.getElementById('spoken').ariaLive") == "polite"
    assert opened.evaluate("document.documentElement.lang") == "en-GB"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_everything_fits_on_the_screen_and_is_seen(
    opened: Browser, fake: FakeService, png: Path, tmp_path: Path, screen: str, dark: bool
) -> None:
    width, height = SCREENS[screen]
    phone = screen != "desk"
    opened.show(width=width, height=height, dark=dark, phone=phone)
    opened.open(fake.url)
    opened.wait_for("!document.getElementById('facts').hidden")
    opened.evaluate("document.querySelector('details').open = true")
    opened.set_file("#file", png)
    shown(opened)
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    overflowing = (
        "[...document.querySelectorAll('.page *:not(.unseen)')]"
        ".filter((one) => one.getBoundingClientRect().right > innerWidth"
        " || one.clientWidth && one.scrollWidth > one.clientWidth + 1).map((one) => one.className)"
    )
    assert opened.evaluate(overflowing) == []
    camera = "getComputedStyle(document.querySelector('.camera')).display !== 'none'"
    assert opened.evaluate(camera) == phone
    picture = tmp_path / "page.png"
    opened.screenshot(picture)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape == (height, width, 3)
    ground = pixels[5, 5].mean()
    assert ground < 60 if dark else ground > 200
    accent = [154, 167, 255] if dark else [64, 81, 211]
    assert (pixels == accent).all(axis=-1).sum() > 500  # the first answer's bar
