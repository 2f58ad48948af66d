"""A project with a registered student, and its service as a process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from conftest import TinyStudent
from PIL import Image

from pd_core.mlops import tracking
from pd_core.mlops.export import onnx
from pd_core.mlops.predictor import stand_alone
from pd_core.mlops.registry import CHAMPION, Version, find, set_alias
from pd_core.mlops.registry.register import Origin, register
from pd_core.models.portable.student import PortableStudent

ROOT = Path(__file__).parents[2]
DATASET = "greek"


@dataclass(frozen=True)
class Running:
    """A service: its address, its process, and its stderr."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def post(self, path: str, body: Any = None, **rest: Any) -> requests.Response:
        return requests.post(self.url + path, data=body, timeout=60, **rest)

    def get(self, path: str, **rest: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=60, **rest)


def new_project(folder: Path, database: Path) -> str:
    """Make a folder with parameters and an empty database; return the store."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copyfile(database, folder / tracking.DATABASE)
    return tracking.open_store(folder)


def champion(store: str, student: PortableStudent, picture: bytes, **rest: Any) -> Version:
    """Register a student and make it champion."""
    origin = Origin(profile="quickstart", dataset=DATASET)
    made = register(store, student, origin, example=picture, **rest)
    version = find(store, f"{DATASET}/{made.version}")
    set_alias(store, version, CHAMPION)
    return version


def portable(tiny: TinyStudent) -> PortableStudent:
    """Fold the outputs of the stages into one student."""
    return stand_alone(tiny.folder / "student.safetensors", tiny.vectors, tiny.weights)


def served_project(folder: Path, database: Path, student: PortableStudent, picture: bytes) -> Path:
    """Make a project with a champion, version 1 of three classes, with a reference."""
    store = new_project(folder, database)
    pixels = np.random.default_rng(1).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    images = [Image.fromarray(array) for array in pixels]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "write_onnx", lambda path, _: path.write_bytes(b"no ONNX"))  # unread
        champion(store, student, picture, reference=images)
    return folder


@contextmanager
def serving(
    project: Path, *arguments: str, dataset: str = DATASET, code: Path = ROOT, status: int = 0
) -> Iterator[Running]:
    """Serve the champion during the block; after it the service has to end with a status."""
    path = project / "serve.log"
    with path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pd_core", "serve", dataset, "--port", "0", *arguments],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(code)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert " at http://" in line, path.read_text()
    try:
        yield Running(line.split()[-1], process, path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == status, path.read_text()
    finally:
        process.kill()
        process.stdout.close()
