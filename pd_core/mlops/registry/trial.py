"""Load a version with MLflow in a fresh process, and compare its predictions with another's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pd_core.core.artifacts import read_json, write_json
from pd_core.core.errors import BadData
from pd_core.data.loading.decode import ImageStore
from pd_core.evaluation.significance import Paired, paired
from pd_core.pipeline.redaction import masked

_ALL = 1_000_000
"""More names than any student has: an answer holds all classes."""
_RESULT, _SCORES = "trial.json", "scores.npy"
_LONGEST = 300  # characters of a reason


@dataclass(frozen=True)
class Answers:
    """A classifier's answers to N images.

    Attributes:
        names: its C classes.
        scores: (N, C), the higher the likelier; a row of NaN where there is no answer.
    """

    names: tuple[str, ...]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Comparison(Paired):
    """How often two classifiers are right about the same images, among so many shared classes."""

    classes: int


def compare(first: Answers, second: Answers, labels: Sequence[str]) -> Comparison | None:
    """Compare two classifiers' answers to N images, whose right names are `labels`.

    Only classes that both know count, and images of these; None if there is no such image.
    """
    shared = sorted(set(first.names) & set(second.names))
    answered = np.isfinite(first.scores).all(axis=1) & np.isfinite(second.scores).all(axis=1)
    counts = answered & np.isin(np.asarray(labels), shared)
    if not counts.any():
        return None
    right = np.asarray(labels)[counts]
    one, other = (_choices(answers, shared)[counts] == right for answers in (first, second))
    return Comparison(**asdict(paired(one, other)), classes=len(shared))


def _choices(answers: Answers, among: Sequence[str]) -> NDArray[np.str_]:
    """Return each image's likeliest name among some: (N,)."""
    columns = [answers.names.index(name) for name in among]
    chosen: NDArray[np.str_] = np.asarray(among)[answers.scores[:, columns].argmax(axis=1)]
    return chosen


@dataclass(frozen=True)
class Task:
    """Images for a trial, and its limits.

    Attributes:
        images: folder or zip file.
        paths: the N images, by path in it.
        batch_size: images in a call.
        warm_ups: calls with a single image before time is taken.
        timed: calls with a single image that are timed.
        seconds: that the whole trial may take.
    """

    images: str
    paths: tuple[str, ...]
    batch_size: int
    warm_ups: int
    timed: int
    seconds: float


@dataclass(frozen=True)
class Trial:
    """The outcome of a trial.

    Attributes:
        loaded: whether MLflow could load the version.
        problem: why it did not load, or did not answer; empty if it did both.
        load_seconds: time to load it.
        median_ms: time for one image, half of them took less.
        p95_ms: time for one image, 95 of 100 took less.
        names: its C classes, sorted.
        answered: indices of the images that are not corrupt.
        answers: to the N images, NaN for corrupt ones; None if there was a problem.
    """

    loaded: bool = False
    problem: str = ""
    load_seconds: float = 0.0
    median_ms: float = 0.0
    p95_ms: float = 0.0
    names: tuple[str, ...] = ()
    answered: tuple[int, ...] = ()
    answers: Answers | None = None


def run(model: Path, task: Task, out: Path) -> Trial:
    """Try a version's folder, which holds `MLmodel`, in a process that works in the new `out`."""
    out.mkdir(parents=True)
    write_json(out / "task.json", asdict(task))
    command = [sys.executable, "-m", __spec__.name, str(model), str(out / "task.json"), str(out)]
    try:
        done = subprocess.run(
            command, cwd=out, env=_environment(), capture_output=True, timeout=task.seconds
        )
        ending = _ending(done.returncode, done.stderr)
    except subprocess.TimeoutExpired:
        ending = f"it took more than {task.seconds:g} s"
    found = Trial(**read_json(out / _RESULT)) if (out / _RESULT).is_file() else Trial()
    if found.problem or ending:
        return replace(found, problem=found.problem or ending)
    answers = Answers(tuple(found.names), np.load(out / _SCORES))
    return replace(found, names=answers.names, answers=answers)


def _environment() -> dict[str, str]:
    """Return this process's environment, with this package on the path and pickles refused."""
    root = str(Path(__file__).resolve().parents[3])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }


def _ending(status: int, errors: bytes) -> str:
    if status == 0:
        return ""
    lines = errors.decode(errors="replace").strip().splitlines() or [""]
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return _one_line(f"its process {how}: {lines[-1]}".rstrip(": "))


def main(model: Path, task: Task, out: Path) -> None:
    """Load and try the version; runs in the new process."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    reached = Trial()
    try:
        begun = time.perf_counter()
        from mlflow import pyfunc

        loaded = pyfunc.load_model(str(model))
        reached = Trial(loaded=True, load_seconds=time.perf_counter() - begun)
        _write(out, reached)
        reached = _ask(loaded, task, out, reached)
    except Exception as error:  # noqa: BLE001 foreign code may raise whatever it likes
        reason = f"{type(error).__name__}: {error}".replace(f"{model}{os.sep}", "")
        reached = replace(reached, problem=_one_line(reason))
    _write(out, reached)


def _end_with(parent: int) -> None:
    """End this process when the one that waits for it was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _ask(model: Any, task: Task, out: Path, reached: Trial) -> Trial:
    pictures = _Pictures(task)
    first = next((data for batch in pictures.batches() for data in batch.values()), None)
    if first is None:
        raise ValueError("there is no undamaged picture to ask about")
    times = _times(model, first, task)
    names = tuple(sorted(model.predict([first], params={"top": _ALL})["names"][0]))
    scores = np.full((len(task.paths), len(names)), np.nan, np.float32)
    answered: list[int] = []
    for batch in pictures.batches():
        scores[list(batch)] = _probabilities(model, list(batch.values()), names)
        answered.extend(batch)
    np.save(out / _SCORES, scores)
    return replace(
        reached,
        names=names,
        answered=tuple(answered),
        median_ms=float(np.percentile(times, 50)),
        p95_ms=float(np.percentile(times, 95)),
    )


class _Pictures:
    """The task's images as files, as a user would send them."""

    def __init__(self, task: Task) -> None:
        root = Path(task.images)
        self._task = task
        self._store = ImageStore(root, keep_bytes=0)
        self._zip = zipfile.ZipFile(root) if root.suffix == ".zip" else None

    def batches(self) -> Iterator[dict[int, bytes]]:
        """Read them, by index in the list; corrupt ones are not the version's fault."""
        size, paths = self._task.batch_size, self._task.paths
        for start in range(0, len(paths), size):
            files = enumerate(map(self._read, paths[start : start + size]), start)
            if batch := {place: data for place, data in files if data is not None}:
                yield batch

    def _read(self, path: str) -> bytes | None:
        try:
            self._store.open(path)
        except BadData:
            return None
        return self._zip.read(path) if self._zip else (self._store.root / path).read_bytes()


def _times(model: Any, picture: bytes, task: Task) -> list[float]:
    """Return the milliseconds that an image takes, each time; warming up does not count."""
    times: list[float] = []
    for _ in range(task.warm_ups + task.timed):
        begun = time.perf_counter()
        model.predict([picture], params={"top": 5})
        times.append(1000 * (time.perf_counter() - begun))
    return times[task.warm_ups :]


def _probabilities(
    model: Any, pictures: list[bytes], names: tuple[str, ...]
) -> NDArray[np.float32]:
    """Classify images: (B, C), in the order of the names."""
    frame = model.predict(pictures, params={"top": _ALL})
    rows = np.empty((len(pictures), len(names)), np.float32)
    for row, said, values in zip(rows, frame["names"], frame["probabilities"], strict=True):
        if sorted(said) != list(names):
            raise ValueError("two pictures are answered with different sets of names")
        by_name = dict(zip(said, values, strict=True))
        row[:] = [by_name[name] for name in names]
    return rows


def _write(out: Path, trial: Trial) -> None:
    write_json(out / _RESULT, asdict(replace(trial, answers=None)))


def _one_line(text: str) -> str:
    return masked(" ".join(text.split()))[:_LONGEST]


if __name__ == "__main__":
    _model, _task, _out = map(Path, sys.argv[1:])
    _given = json.loads(_task.read_text())
    main(_model, Task(**{**_given, "paths": tuple(_given["paths"])}), _out)
