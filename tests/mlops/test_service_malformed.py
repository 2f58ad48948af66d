"""A thousand malformed uploads: each is refused, and the service goes on."""

import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import malformed
import psutil
import pytest
from conftest import TinyStudent
from malformed import Upload
from serving import champion, new_project, serving

from pd_core.mlops import predictor

# MLflow's own: its type hints when it is imported, SQLAlchemy's deprecations when it searches.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.slow,
]

COUNT = 1000
MOST_MEMORY = 300 * 2**20  # beyond what it took before; a decoded bomb alone takes 200 MB


def status(url: str, upload: Upload) -> str:
    """Send an upload; return the answer's status, or what came in its place."""
    parts = urlsplit(url)
    address = (str(parts.hostname), int(parts.port or 0))
    try:
        with socket.create_connection(address, timeout=60) as connection:
            connection.sendall(upload.sent())
            answer = connection.makefile("rb")
            first = answer.readline().decode("latin-1")
            rest = answer.read1(4096).decode("latin-1")
    except OSError as error:
        return type(error).__name__
    assert "Traceback" not in rest
    assert ".py" not in rest
    return first[9:12]


def memory(process: psutil.Process) -> int:
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("onnx_once")
def test_each_of_a_thousand_malformed_uploads_gets_a_4xx(
    tmp_path: Path, empty_database: Path, tiny_student: TinyStudent, picture: bytes
) -> None:
    store = new_project(tmp_path, empty_database)
    student = predictor.stand_alone(
        tiny_student.folder / "student.safetensors", tiny_student.vectors, tiny_student.weights
    )
    champion(store, student, picture)
    options = {
        "--most-bytes": malformed.MOST_BYTES,
        "--most-pixels": malformed.MOST_PIXELS,
        "--most-pictures": malformed.MOST_PICTURES,
        "--upload-seconds": 0.5,
    }
    arguments = [str(word) for pair in options.items() for word in pair]
    given = list(malformed.uploads(7, COUNT))
    with serving(tmp_path, *arguments) as running, ThreadPoolExecutor(16) as senders:
        expected = running.post("/predict", picture).json()
        process = psutil.Process(running.process.pid)
        children = process.children(recursive=True)
        before = memory(process)

        statuses = list(senders.map(lambda upload: status(running.url, upload), given))

        wrong = Counter(
            (upload.kind, answer)
            for upload, answer in zip(given, statuses, strict=True)
            if not answer.startswith("4")
        )
        assert not wrong
        assert len(statuses) == COUNT
        assert running.post("/predict", picture).json() == expected
        assert process.children(recursive=True) == children  # nothing had to be started again
        assert memory(process) - before < MOST_MEMORY
        assert "Traceback" not in running.log.read_text()
