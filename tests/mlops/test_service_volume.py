"""The service with many uploads: all test images, a thousand malformed ones, many clients."""

import socket
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import malformed
import numpy as np
import psutil
import pytest
import torch
import trainings
from conftest import TinyStudent
from malformed import Upload
from miniatures import prepare_config
from serving import champion, new_project, portable, serving
from torch.nn.functional import normalize

from benchmarks.load import measure
from benchmarks.load.measure import Target
from benchmarks.load.students import EMBEDDED
from pd_core.data.catalog import prepare
from pd_core.data.loading.prepared import read_prepared
from pd_core.mlops.fold import fold
from pd_core.models.class_vectors import ClassVectors, distilled
from pd_core.models.clip import load_clip
from pd_core.models.portable.student import PortableStudent
from pd_core.models.student import Student

pytestmark = [
    # MLflow's own: its type hints when it is imported, SQLAlchemy's deprecations in a search.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

DATASET = "embedded_greek"
COUNT = 1000
MOST_MEMORY = 300 * 2**20  # a decoded bomb alone takes 200 MB


@pytest.mark.usefixtures("onnx_once")
def test_served_probabilities_are_those_of_the_stage_for_every_test_image(
    tmp_path: Path, empty_database: Path, picture: bytes
) -> None:
    prepare.run(DATASET, tmp_path / DATASET, prepare_config(shots=4), data_root=tmp_path, seed=1)
    content = read_prepared(tmp_path / DATASET)
    names = tuple(content.classes)
    student = Student.untrained(load_clip("embedded-student", None), feature_width=64, seed=3)
    directions = torch.randn(len(names), 64, generator=torch.Generator().manual_seed(0))
    vectors = ClassVectors(names, normalize(directions, dim=-1), 30.0, "random")
    evaluated = distilled(student.eval(), vectors)
    expected = torch.from_numpy(trainings.logits(evaluated, content)).softmax(dim=-1).numpy()
    with zipfile.ZipFile(content.images) as archive:
        images = [archive.read(path) for path, _ in content.test]
    served = PortableStudent(fold(student, vectors.vectors), {"names": names})
    champion(new_project(tmp_path / "project", empty_database), served, picture)

    with serving(tmp_path / "project") as running, ThreadPoolExecutor(16) as clients:

        def probabilities(image: bytes) -> list[float]:
            rows = running.post(f"/predict?top={len(names)}", image).json()["predictions"]
            by_name = {row["name"]: row["probability"] for row in rows}
            return [by_name[name] for name in names]

        output = np.array(list(clients.map(probabilities, images)))

    assert output.shape == (len(content.test), len(names))
    assert (output.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert np.abs(output - expected).max() < 1e-5


def status(url: str, upload: Upload) -> str:
    """Send an upload; return the response's status, or the error in its place."""
    parts = urlsplit(url)
    address = (str(parts.hostname), int(parts.port or 0))
    try:
        with socket.create_connection(address, timeout=60) as connection:
            connection.sendall(upload.sent())
            response = connection.makefile("rb")
            first = response.readline().decode("latin-1")
            rest = response.read1(4096).decode("latin-1")
    except OSError as error:
        return type(error).__name__
    assert "Traceback" not in rest
    assert ".py" not in rest
    return first[9:12]


def memory(process: psutil.Process) -> int:
    family = [process, *process.children(recursive=True)]
    return sum(member.memory_info().rss for member in family)


@pytest.mark.usefixtures("onnx_once")
def test_each_of_a_thousand_malformed_uploads_gets_a_4xx(
    tmp_path: Path, empty_database: Path, tiny_student: TinyStudent, picture: bytes
) -> None:
    champion(new_project(tmp_path, empty_database), portable(tiny_student), picture)
    options = {
        "--most-bytes": malformed.MOST_BYTES,
        "--most-pixels": malformed.MOST_PIXELS,
        "--most-pictures": malformed.MOST_PICTURES,
        "--upload-seconds": 0.5,
    }
    arguments = [str(word) for pair in options.items() for word in pair]
    uploads = list(malformed.uploads(7, COUNT))
    with serving(tmp_path, *arguments) as running, ThreadPoolExecutor(16) as senders:
        expected = running.post("/predict", picture).json()
        process = psutil.Process(running.process.pid)
        children = process.children(recursive=True)
        before = memory(process)

        statuses = list(senders.map(lambda upload: status(running.url, upload), uploads))

        wrong = Counter(
            (upload.kind, code)
            for upload, code in zip(uploads, statuses, strict=True)
            if not code.startswith("4")
        )
        assert not wrong
        assert running.post("/predict", picture).json() == expected
        assert process.children(recursive=True) == children  # nothing had to be restarted
        assert memory(process) - before < MOST_MEMORY
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with measure.target(EMBEDDED) as running:
        yield running


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return measure.write_picture(tmp_path / "picture.png", 32, 32)


def test_at_saturation_there_are_no_errors_and_memory_does_not_grow(
    target: Target, image: Path
) -> None:
    rows = {row.what: row for row in measure.saturation(target, image, seconds=12)}

    assert rows["errors at saturation"].value == 0
    assert rows["answers in a second"].value > 50
    assert rows["p99 of the latency"].value < 10_000
    # In six seconds; a request that stays in memory would make it hundreds.
    assert rows["growth of memory after the first seconds"].value < 60


def test_classification_keeps_up_with_decoding(target: Target, image: Path) -> None:
    # `make load` asks for 0.6, on two quiet cores. Without batches it would be below 0.2.
    row = measure.small_student(target, image, seconds=3, rounds=3, least=0.6)

    assert row.value > 0.3
    assert row.note.endswith(" 0 errors")
