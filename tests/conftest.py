"""Fixtures and settings of all tests."""

import atexit
import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer.main
from filelock import FileLock
from hypothesis import settings
from ruamel.yaml import YAML

with contextlib.chdir("/"):  # where no `.env` is: flows read it when they are imported
    import flows  # noqa: F401
from pd_core.cli import verbs
from pd_core.mlops import tracking
from pd_core.pipeline.settings import compute_with, telemetry_off

ROOT = Path(__file__).parent.parent

gc.disable()  # until all tests are collected: the millions of imported objects stay
telemetry_off()
compute_with(1)  # tiny models gain nothing from more threads, and lose much on a busy machine

# The same examples every time, and no complaint when a busy machine takes long.
settings.register_profile("promptkd", derandomize=True, deadline=None, database=None)
settings.load_profile("promptkd")


def pytest_collection_finish() -> None:
    """Collect only what the tests make."""
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)  # as `promptkd` does it
    gc.enable()


class _Remembering(YAML):
    """Parses each text once."""

    seen: ClassVar[dict[str, Any]] = {}

    def load(self, stream: Any) -> Any:
        text = stream.getvalue()
        if text not in self.seen:
            self.seen[text] = super().load(StringIO(text))
        return deepcopy(self.seen[text])


@pytest.fixture(scope="session", autouse=True)
def _slow_things_once() -> Iterator[None]:
    """Parse equal parameters, make tokenizer and verbs once; wait less for data workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pd_core.pipeline.stages.params.YAML", _Remembering)
        verbs.add_groups()  # for every verb
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        if open_clip := sys.modules.get("open_clip"):
            patch.setattr(open_clip, "get_tokenizer", cache(open_clip.get_tokenizer))
        if workers := sys.modules.get("torch.utils.data._utils"):
            # Seconds for which torch waits for each worker that it has not told to stop.
            patch.setattr(workers, "MP_STATUS_CHECK_INTERVAL", 0.2)
        yield


@pytest.fixture(autouse=True)
def _collector_as_before() -> Iterator[None]:
    """Undo the collector settings of a command line that a test runs in this process."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    atexit.unregister(gc.freeze)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tracking database without runs: creating one takes seconds, copying it does not."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "database"
    with FileLock(folder.with_suffix(".lock")):  # one for all workers
        if not folder.exists():
            _make_database(folder)
    return folder / tracking.DATABASE


def _make_database(folder: Path) -> None:
    folder.mkdir()
    (folder / "mlflow.db.new").write_bytes(b"half a database, as a killed process leaves it")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tracking.open_store(folder)


@dataclass(frozen=True)
class TinyStudent:
    """An untrained student of three classes, in the folders of the stages."""

    folder: Path  # output of the stage `student`
    vectors: Path  # file of the class vectors
    weights: Path  # of the student's CLIP, random


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> TinyStudent:
    """Write an embedded student with random weights, prompts and projector."""
    import torch
    from safetensors.torch import save_file
    from torch.nn.functional import normalize

    from pd_core.models.class_vectors import ClassVectors
    from pd_core.models.clip import load_clip
    from pd_core.models.embedded import build_embedded
    from pd_core.models.student import Student

    data = tmp_path_factory.mktemp("tiny") / "data"
    tiny = TinyStudent(
        folder=data / "student" / "greek",
        vectors=data / "class_vectors" / "greek" / "class_vectors.safetensors",
        weights=data / "clip.safetensors",
    )
    data.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        save_file(build_embedded("embedded-student").state_dict(), tiny.weights)
        vectors = normalize(torch.randn(3, 16), dim=-1)
    towers = load_clip("embedded-student", tiny.weights)
    student = Student.untrained(towers, feature_width=16, depth=2, length=2, seed=1)
    student.save(tiny.folder / "student.safetensors")
    ClassVectors(("alpha", "beta", "gamma"), vectors, 30.0, "random").save(tiny.vectors)
    return tiny


@pytest.fixture(scope="session")
def benchmark_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clone what is committed, and run the stages of one data set there from an empty cache.

    `E2E=all` runs the whole quickstart instead.
    """
    folder = tmp_path_factory.mktemp("empty") / "promptkd"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PD_")}
    command = ["dvc", "repro", "--quiet", "--force", "--no-run-cache", "evaluate@embedded_greek"]
    if os.environ.get("E2E") == "all":
        command = ["make", "quickstart", f"VIRTUAL_ENV={sys.prefix}", "STAMP="]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**clean, "PATH": programs, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def onnx_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export each network to ONNX once in all tests, since it takes seconds."""
    from pd_core.mlops.export import onnx

    write = onnx.write_onnx

    def write_or_copy(path: Path, network: Any) -> None:
        state = b"".join(value.numpy().tobytes() for value in network.state_dict().values())
        if (key := hash(state)) not in _EXPORTED:
            write(path, network)
            _EXPORTED[key] = path.read_bytes()
        path.write_bytes(_EXPORTED[key])

    monkeypatch.setattr(onnx, "write_onnx", write_or_copy)


_EXPORTED: dict[int, bytes] = {}


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export nothing to ONNX."""
    from pd_core.mlops.export import onnx

    monkeypatch.setattr(onnx, "write_onnx", lambda path, _: path.write_bytes(b"no ONNX"))


@pytest.fixture(scope="session")
def picture() -> bytes:
    """Return a PNG file of coloured noise."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
