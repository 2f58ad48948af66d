"""Trial of a version: load it with MLflow in a fresh process, and collect its predictions."""

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
from pd_core.core.options import Metric
from pd_core.data.loading.decode import ImageStore
from pd_core.evaluation.metrics import Labels
from pd_core.evaluation.paired_metrics import PairedMetric, compare_by
from pd_core.evaluation.significance import Paired, paired
from pd_core.mlops.registry import INPUT
from pd_core.pipeline.redaction import masked

_ALL = 1_000_000
"""`top` that is more than any student has classes."""
_RESULT, _SCORES = "trial.json", "scores.npy"
_LONGEST = 300  # characters of a reason


@dataclass(frozen=True)
class Predictions:
    """A classifier's predictions for N images.

    Attributes:
        names: its C classes.
        scores: (N, C), the higher the likelier; a row of NaN where there is no prediction.
    """

    names: tuple[str, ...]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Comparison(Paired):
    """Predictions of two classifiers for the same N images, among the classes that both have."""

    classes: int  # that both have
    labels: Labels  # (N,)
    predicted: tuple[Labels, Labels]  # of the first and of the second, (N,) each

    def by(self, metric: Metric, confidence: float) -> PairedMetric:
        """Compare them by a metric, see `compare_by`."""
        return compare_by(metric, self.labels, *self.predicted, confidence=confidence)


def compare(first: Predictions, second: Predictions, labels: Sequence[str]) -> Comparison | None:
    """Compare the predictions of two classifiers for N images with the class names `labels`.

    Only the classes that both have count, and images of these; None if there is no such image.
    """
    shared = sorted(set(first.names) & set(second.names))
    predicted = np.isfinite(first.scores).all(axis=1) & np.isfinite(second.scores).all(axis=1)
    counts = predicted & np.isin(np.asarray(labels), shared)
    if not counts.any():
        return None
    right = np.searchsorted(shared, np.asarray(labels)[counts])
    top = _top1(first, shared)[counts], _top1(second, shared)[counts]
    pairs = paired(top[0] == right, top[1] == right)
    return Comparison(**asdict(pairs), classes=len(shared), labels=right, predicted=top)


def _top1(predictions: Predictions, among: Sequence[str]) -> Labels:
    """Return the position of each image's likeliest name among some: (N,)."""
    columns_of = {name: column for column, name in reversed([*enumerate(predictions.names)])}
    columns = [columns_of[name] for name in among]
    positions: Labels = predictions.scores[:, columns].argmax(axis=1)
    return positions


@dataclass(frozen=True)
class Task:
    """Images and limits of a trial.

    Attributes:
        images: folder or zip file.
        paths: the N images, by path in it.
        batch_size: images in a call.
        warm_ups: calls with a single image before the timed ones.
        timed: calls with a single image that are timed.
        seconds: limit of the whole trial.
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
        loaded: True if MLflow could load the version.
        problem: reason why it gives no predictions; empty if it does.
        load_seconds: time to load it.
        median_ms: median latency for one image.
        p95_ms: 95th percentile of the latency for one image.
        names: its C classes, sorted.
        predicted: indices of the images that are not corrupt.
        predictions: for the N images, NaN for corrupt ones; None if there was a problem.
    """

    loaded: bool = False
    problem: str = ""
    load_seconds: float = 0.0
    median_ms: float = 0.0
    p95_ms: float = 0.0
    names: tuple[str, ...] = ()
    predicted: tuple[int, ...] = ()
    predictions: Predictions | None = None


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
    trial = Trial(**read_json(out / _RESULT)) if (out / _RESULT).is_file() else Trial()
    if trial.problem or ending:
        return replace(trial, problem=trial.problem or ending)
    predictions = Predictions(tuple(trial.names), np.load(out / _SCORES))
    return replace(trial, names=predictions.names, predictions=predictions)


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
    trial = Trial()
    try:
        start = time.perf_counter()
        from mlflow import pyfunc

        loaded = pyfunc.load_model(str(model))
        trial = Trial(loaded=True, load_seconds=time.perf_counter() - start)
        write_json(out / _RESULT, asdict(trial))  # in case that a prediction kills the process
        trial = _predict(loaded, task, out, trial)
    except Exception as error:  # noqa: BLE001 foreign code may raise whatever it likes
        reason = f"{type(error).__name__}: {error}".replace(f"{model}{os.sep}", "")
        trial = replace(trial, problem=_one_line(reason))
    write_json(out / _RESULT, asdict(trial))


def _end_with(parent: int) -> None:
    """End this process when its parent was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _predict(model: Any, task: Task, out: Path, trial: Trial) -> Trial:
    """Time single images, and write the scores of all."""
    first = next((data for batch in _batches(task) for data in batch.values()), None)
    if first is None:
        raise ValueError("there is no intact image to predict")
    times = [_milliseconds(model, first) for _ in range(task.warm_ups + task.timed)]
    median, p95 = np.percentile(times[task.warm_ups :], [50, 95])
    names = tuple(sorted(_output(model, [first], _ALL)["names"][0]))
    scores = np.full((len(task.paths), len(names)), np.nan, np.float32)
    predicted: list[int] = []
    for batch in _batches(task):
        scores[list(batch)] = _probabilities(model, list(batch.values()), names)
        predicted.extend(batch)
    np.save(out / _SCORES, scores)
    return replace(
        trial,
        names=names,
        predicted=tuple(predicted),
        median_ms=float(median),
        p95_ms=float(p95),
    )


def _batches(task: Task) -> Iterator[dict[int, bytes]]:
    """Read the images as a user would send them, by index; corrupt ones are left out."""
    root = Path(task.images)
    store = ImageStore(root, keep_bytes=0)
    archive = zipfile.ZipFile(root) if root.suffix == ".zip" else None

    def read(path: str) -> bytes | None:
        try:
            store.open(path)
        except BadData:
            return None
        return archive.read(path) if archive else (store.root / path).read_bytes()

    for start in range(0, len(task.paths), task.batch_size):
        files = enumerate(map(read, task.paths[start : start + task.batch_size]), start)
        if batch := {index: data for index, data in files if data is not None}:
            yield batch


def _milliseconds(model: Any, image: bytes) -> float:
    """Return the latency for one image."""
    start = time.perf_counter()
    _output(model, [image], 5)
    return 1000 * (time.perf_counter() - start)


def _output(model: Any, images: list[bytes], top: int) -> Any:
    """Classify images; earlier releases' versions name no column, and accept any name."""
    return model.predict({INPUT: images}, params={"top": top})


def _probabilities(model: Any, images: list[bytes], names: tuple[str, ...]) -> NDArray[np.float32]:
    """Classify images: (B, C), in the order of the names."""
    frame = _output(model, images, _ALL)
    rows = np.empty((len(images), len(names)), np.float32)
    for row, labels, values in zip(rows, frame["names"], frame["probabilities"], strict=True):
        if sorted(labels) != list(names):
            raise ValueError("the predictions for two images have different sets of names")
        by_name = dict(zip(labels, values, strict=True))
        row[:] = [by_name[name] for name in names]
    return rows


def _one_line(text: str) -> str:
    return masked(" ".join(text.split()))[:_LONGEST]


if __name__ == "__main__":
    _model, _task, _out = map(Path, sys.argv[1:])
    _given = json.loads(_task.read_text())
    main(_model, Task(**{**_given, "paths": tuple(_given["paths"])}), _out)
