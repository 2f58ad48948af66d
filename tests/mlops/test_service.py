"""`promptkd serve`: a registered student over HTTP, by real processes on loopback."""

import base64
import gzip
import io
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from command import promptkd
from conftest import TinyStudent
from PIL import Image
from serving import (
    DATASET,
    Running,
    portable,
    served_project,
    serving,
)
from waiting import wait_until

from pd_core.mlops import tracking
from pd_core.mlops.registry import BUNDLE, CHAMPION, Version, fetch, find, set_alias
from pd_core.mlops.serving import server
from pd_core.models.portable.student import PortableStudent

# MLflow's own: its type hints when it is imported, SQLAlchemy's deprecations when it searches.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]


@pytest.fixture(scope="module")
def student(tiny_student: TinyStudent) -> PortableStudent:
    return portable(tiny_student)


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory,
    empty_database: Path,
    student: PortableStudent,
    picture: bytes,
) -> Path:
    """Return a project with a champion, version 1 of three classes, with a reference."""
    return served_project(tmp_path_factory.mktemp("project"), empty_database, student, picture)


@pytest.fixture(scope="module")
def service(project: Path) -> Iterator[Running]:
    options = ["--most-bytes", "100000", "--most-pixels", "1000000", "--most-pictures", "4"]
    with serving(project, *options, "--upload-seconds", "2") as running:
        yield running


def rows(answer: requests.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    predictions: list[Any] = answer.json()["predictions"]
    return predictions


def refused(answer: requests.Response, status: int) -> str:
    """Check that a response is a refusal without secrets, and return its reason."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"detail"}
    detail: str = answer.json()["detail"]
    assert "\n" not in detail
    assert not re.search(r"Traceback|\.py|/tmp|0x[0-9a-f]{6}", detail)
    return detail


def pairs(predictions: Any) -> list[tuple[str, Any]]:
    return [(row["name"], pytest.approx(row["probability"], abs=1e-6)) for row in predictions]


# Predictions


def test_an_image_is_classified_as_by_the_student(
    service: Running, student: PortableStudent, picture: bytes
) -> None:
    response = service.post("/predict", picture, headers={"Content-Type": "image/png"})
    form = service.post("/predict", files={"file": picture})

    assert pairs(rows(response)) == pairs(rows(form)) == student.classify(picture)
    assert (response.json()["model"], response.json()["version"]) == ("promptkd-greek", 1)
    assert len(rows(service.post("/predict?top=2", picture))) == 2


def test_a_batch_is_classified_in_its_order(
    service: Running, student: PortableStudent, picture: bytes
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (50, 20), "teal").save(file, format="JPEG")
    images = [picture, file.getvalue(), picture]
    expected = [student.classify(image) for image in images]

    form = [("files", image) for image in images]
    texts = [base64.b64encode(image).decode() for image in images]
    texts[1] = f"data:image/jpeg;base64,{texts[1]}"
    for response in (
        service.post("/predict/batch", files=form),
        service.post("/predict/batch", json={"images": texts}),
    ):
        assert [pairs(ranking) for ranking in rows(response)] == expected


# Refusals


def test_a_malformed_request_is_refused_with_the_reason(service: Running, picture: bytes) -> None:
    csv = service.post("/predict", b"a,b", headers={"Content-Type": "text/csv"})
    assert "text/csv" in refused(csv, 415)
    for path, body, reason in (
        ("/predict", {"data": picture[:100]}, "cannot be read"),
        ("/predict", {"data": b""}, "cannot be read"),
        ("/predict", {"files": {"other": picture}}, "'file'"),
        ("/predict?top=none", {"data": picture}, "top = none"),
        ("/predict/batch", {"json": {"images": []}}, "at least one"),
        ("/predict/batch", {"json": [1]}, "base64"),
        ("/predict/batch", {"json": {"images": ["?"]}}, "image 0 is not base64"),
        ("/predict/batch", {"files": [("files", picture), ("files", b"none")]}, "image 1: "),
    ):
        assert reason in refused(requests.post(service.url + path, timeout=60, **body), 400)


def test_a_path_is_not_read_in_place_of_an_image(
    service: Running, picture: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(picture)
    for text in (str(path), base64.b64encode(str(path).encode()).decode()):
        refused(service.post("/predict/batch", json={"images": [text]}), 400)
    refused(service.post("/predict", str(path).encode()), 400)


def test_a_format_that_is_a_program_is_not_opened(service: Running) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format="EPS")
    refused(service.post("/predict", file.getvalue()), 400)


def test_uploads_are_limited_in_bytes_pixels_and_number(service: Running, picture: bytes) -> None:
    assert "100000 bytes" in refused(service.post("/predict", bytes(100_001)), 413)
    assert "100000 bytes" in refused(service.post("/predict", iter([bytes(99_999)] * 2)), 413)
    assert "image 1 has" in refused(
        service.post("/predict/batch", files=[("files", picture), ("files", bytes(100_001))]), 413
    )
    assert "4" in refused(service.post("/predict/batch", files=[("files", picture)] * 5), 400)
    text = base64.b64encode(picture).decode()
    assert "4" in refused(service.post("/predict/batch", json={"images": [text] * 5}), 400)
    for size in ((1001, 1000), (1, 100_000)):  # the second grows when its side is resized
        file = io.BytesIO()
        Image.new("1", size).save(file, format="PNG")
        assert "pixels" in refused(service.post("/predict", file.getvalue()), 400)


def test_an_upload_that_stops_is_ended_by_the_timeout(service: Running) -> None:
    def slowly() -> Iterator[bytes]:
        yield b"a"
        time.sleep(3)
        yield b"b"

    assert "within 2 seconds" in refused(service.post("/predict", slowly()), 408)


def test_unknown_paths_and_methods_are_refused_in_json(service: Running) -> None:
    refused(service.get("/nowhere"), 404)
    refused(service.get("/docs"), 404)  # it would load its code from elsewhere
    refused(service.get("/predict"), 405)


# State


def test_health_and_model_are_reported(service: Running) -> None:
    assert service.get("/health").json() == {"status": "alive"}
    assert service.get("/ready").json() == {"status": "ready"}
    assert set(service.get("/openapi.json").json()["paths"]) >= {"/predict", "/predict/batch"}
    model = service.get("/model").json()
    expected = {
        "name": "promptkd-greek",
        "version": 1,
        "aliases": ["champion"],
        "dataset": "greek",
        "image_size": 32,
        "max_upload_bytes": 100_000,
        "classes": ["alpha", "beta", "gamma"],
    }
    assert expected.items() <= model.items()
    assert model["facts"]["profile"] == "quickstart"


def test_the_page_may_run_its_own_code_only(service: Running) -> None:
    response = service.get("/")
    assert "<title>" in response.text
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert re.search(
        r"default-src 'none'; script-src 'sha256-[\w+/]{43}='; style-src 'sha256-",
        response.headers["Content-Security-Policy"],
    )


def test_requests_and_predictions_are_counted(service: Running, picture: bytes) -> None:
    def number(name: str) -> float:
        match = re.search(rf"^{re.escape(name)} (\S+)$", service.get("/metrics").text, re.M)
        return float(match[1]) if match else 0.0

    names = [
        'promptkd_requests_total{route="/predict",status="200"}',
        'promptkd_requests_total{route="/predict",status="400"}',
        'promptkd_requests_total{route="other",status="404"}',
    ]
    before = [number(name) for name in names]
    observed = service.get("/monitoring").json()["pictures"]

    service.post("/predict", picture)
    service.post("/predict", b"none")
    service.get("/nowhere/again")

    assert [number(name) for name in names] == [count + 1 for count in before]
    assert number('promptkd_model_info{name="promptkd-greek",version="1"}') == 1
    assert number("promptkd_waiting_pictures") == 0
    assert number("promptkd_batch_pictures_count") > 0
    assert number("promptkd_window_pictures") == observed + 1
    assert service.get("/monitoring").json()["pictures"] == observed + 1


# Start, change, end


def test_a_taken_port_and_an_unknown_model_are_refused_in_one_line(
    service: Running, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = service.url.rpartition(":")[2]
    listen, sockets = server.listen, ExitStack()  # a process would close them at its end
    monkeypatch.setattr(server, "listen", lambda *at: sockets.enter_context(listen(*at)))
    for arguments, reason in (
        ([DATASET, "--port", port], "cannot listen"),
        (["greeek", "--port", "0"], "did you mean"),
        ([f"{DATASET}/7", "--port", "0"], "unknown version"),
    ):
        with sockets:
            done = promptkd(project, "serve", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert reason in done.stderr


class Clients:
    """Clients that send requests all the time, and the responses."""

    def __init__(self, running: Running, picture: bytes, count: int = 4) -> None:
        self.versions: list[int] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(running, picture)) for _ in range(count)
        ]

    def _ask(self, running: Running, picture: bytes) -> None:
        with requests.Session() as session:
            while not self._stop.is_set():
                answer = session.post(f"{running.url}/predict", data=picture, timeout=60)
                if answer.status_code == 200:
                    self.versions.append(answer.json()["version"])
                else:
                    self.failures.append(answer.text)

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def own_project(project: Path, tmp_path: Path) -> Path:
    """Copy the project, so that the aliases of its registry may be moved."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("params.yaml", tracking.DATABASE):
        shutil.copyfile(project / name, folder / name)
    return folder


def new_champion(store: str, folder: Path, *, spoilt: bool = False) -> Version:
    """Register a copy of version 1 as champion."""
    first = find(store, f"{DATASET}/1")
    model = fetch(store, first, folder)
    if spoilt:
        (model / BUNDLE / "student.safetensors").write_bytes(b"no weights")
    made = tracking.client(store).create_model_version(first.name, str(model))
    version = find(store, f"{DATASET}/{made.version}")
    set_alias(store, version, CHAMPION)
    return version


@pytest.mark.slow
def test_a_moved_alias_is_followed_and_no_request_is_dropped(
    own_project: Path, picture: bytes, tmp_path: Path
) -> None:
    store = tracking.open_store(own_project)
    with serving(own_project, "--poll", "0.2") as running, Clients(running, picture) as clients:
        process = psutil.Process(running.process.pid)
        wait_until(lambda: 1 in clients.versions)
        processes = len(process.children(recursive=True))

        second = new_champion(store, tmp_path / "second")
        wait_until(lambda: second.number in clients.versions)
        wait_until(
            lambda: len(process.children(recursive=True)) == processes
        )  # the old one has ended
        assert running.get("/model").json()["version"] == second.number
        assert "promptkd_versions_taken_over_total 1.0" in running.get("/metrics").text
        assert "took over from version 1" in running.log.read_text()

        new_champion(store, tmp_path / "third", spoilt=True)
        wait_until(lambda: "cannot be loaded" in running.log.read_text())
        answered = len(clients.versions)
        time.sleep(1)  # several polls
        assert clients.versions[answered:][-1] == second.number
        assert running.log.read_text().count("cannot be loaded") == 1
        assert clients.failures == []


@pytest.mark.slow
def test_keys_rate_limit_and_origins_are_set_by_the_environment_and_options(
    own_project: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, origin = "0123456789abcdef", {"Origin": "https://example.org"}
    monkeypatch.setenv("PD_SERVE_API_KEYS", f"another-key-0123456789,{key}")
    options = ["--per-minute", "10000", "--cors-origin", origin["Origin"]]
    with serving(own_project, *options) as running:
        headers = origin | {"Authorization": f"Bearer {key}", "Content-Encoding": "gzip"}
        response = running.post("/predict", gzip.compress(picture), headers=headers)
        assert rows(response)
        assert response.headers["Access-Control-Allow-Origin"] == origin["Origin"]
        assert "key is required" in refused(running.post("/predict", picture), 401)
        assert "key is required" in refused(running.post("/predict", bytes(10**7)), 401)
        assert requests.head(running.url + "/health", timeout=60).headers["Content-Length"]
        assert key not in running.log.read_text()


def test_an_origin_with_a_path_is_refused_in_one_line(project: Path) -> None:
    done = promptkd(project, "serve", DATASET, "--port", "0", "--cors-origin", "https://x/y")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "like https://example.org" in done.stderr


@pytest.mark.slow
def test_a_killed_model_process_is_restarted(own_project: Path, picture: bytes) -> None:
    with serving(own_project, "--poll", "0.2") as running:
        assert rows(running.post("/predict", picture))
        for child in psutil.Process(running.process.pid).children(recursive=True):
            child.kill()
        assert running.post("/predict", picture).status_code == 503
        assert running.get("/health").status_code == 200
        wait_until(lambda: running.get("/ready").status_code == 200)
        assert rows(running.post("/predict", picture))


@pytest.mark.slow
def test_no_process_outlives_a_service_that_is_killed(own_project: Path) -> None:
    with serving(own_project, status=-signal.SIGKILL) as running:
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert children
        running.process.kill()
        wait_until(lambda: not any(child.is_running() for child in children))


@pytest.mark.slow
def test_open_requests_are_finished_before_the_end(own_project: Path, picture: bytes) -> None:
    with serving(own_project) as running:
        statuses: list[int] = []

        def send() -> None:
            form = [("files", picture)] * 64
            statuses.append(running.post("/predict/batch", files=form).status_code)

        threads = [threading.Thread(target=send) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: "waiting_pictures 0" not in running.get("/metrics").text)
        running.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert statuses == [200] * 3
