"""Drift of images against the training images: statistics, tests, verdict, reference."""

import json
import math
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pd_core.core.errors import BadArtifact, MissingFile
from pd_core.mlops.drift import (
    DRIFTED,
    FEWEST,
    SAME,
    TOO_FEW,
    Monitor,
    Reference,
    drifted,
    verdict,
)

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")
WIDTH = 32

Floats = NDArray[np.float32]


class World:
    """Output of a student whose images are clouds around their class, of unit length."""

    def __init__(self, *, seed: int = 0, classes: int = len(NAMES)) -> None:
        self._rng = np.random.default_rng(seed)
        self._centres = np.random.default_rng(7).normal(size=(classes, WIDTH))

    def answers(
        self,
        count: int,
        *,
        shift: float = 0.0,
        sharpness: float = 1.0,
        mix: NDArray[np.float64] | None = None,
    ) -> tuple[Floats, Floats]:
        """Return probabilities (count, C) and features (count, D)."""
        labels = self._rng.choice(len(self._centres), count, p=mix)
        raw = self._centres[labels] + self._rng.normal(scale=0.7, size=(count, WIDTH))
        raw[:, 0] += shift
        features = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        logits = sharpness * raw @ self._centres.T / np.sqrt(WIDTH)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        return odds.astype(np.float32), features.astype(np.float32)


def monitor(*, window: int = 400) -> Monitor:
    reference = Reference.of(*World(seed=1).answers(600))
    return Monitor(reference, NAMES, window=window)


def drift(watched: Monitor) -> dict[str, float]:
    tests: dict[str, dict[str, float]] = watched.report()["drift"]["tests"]
    return {name: test["p"] for name, test in tests.items()}


def test_images_as_in_training_are_no_drift() -> None:
    watched = monitor()
    watched.observe(*World(seed=2).answers(400))
    assert watched.report()["drift"]["verdict"] == SAME
    assert all(p > 0.01 for p in drift(watched).values())


def test_images_of_another_kind_are_drift() -> None:
    watched = monitor()
    watched.observe(*World(seed=2).answers(60, shift=2.0))
    report = watched.report()["drift"]
    assert report["verdict"] == DRIFTED
    assert "embeddings" in drifted(report["tests"])
    assert report["tests"]["embeddings"]["distance"] > 0.4


def test_low_confidence_is_drift_of_the_same_images() -> None:
    watched = monitor()
    watched.observe(*World(seed=2).answers(200, sharpness=0.6))
    report = watched.report()
    assert drifted(report["drift"]["tests"]) == ["confidence"]
    confidence = report["confidence"]
    assert confidence["window"]["mean"] < confidence["reference"]["mean"]
    assert confidence["window"]["quantiles"]["0.5"] < confidence["reference"]["quantiles"]["0.5"]


def test_a_class_that_has_become_frequent_is_drift() -> None:
    watched = monitor()
    watched.observe(*World(seed=2).answers(200, mix=np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])))
    report = watched.report()
    assert "classes" in drifted(report["drift"]["tests"])
    first = report["classes"][0]
    assert first["name"] == "alpha"
    assert first["window"] > 2 * first["reference"]


def test_false_alarms_are_as_rare_as_the_level_says() -> None:
    watched, world = monitor(window=100), World(seed=3)
    alarms = 0
    for _ in range(60):
        watched.observe(*world.answers(100))
        tests = watched.report()["drift"]["tests"]
        alarms += verdict(tests, level=0.05) == DRIFTED
    assert alarms <= 8  # three are expected; more than eight by chance once in two hundred


def test_a_few_images_have_no_verdict() -> None:
    watched = monitor()
    watched.observe(*World(seed=2).answers(FEWEST - 1, shift=5.0))
    assert watched.report()["drift"]["verdict"] == TOO_FEW
    assert set(drift(watched).values()) == {None}
    watched.observe(*World(seed=3).answers(1, shift=5.0))
    assert watched.report()["drift"]["verdict"] == DRIFTED


def test_a_repeated_image_counts_once() -> None:
    watched = monitor()
    probabilities, features = World(seed=2).answers(1)
    for _ in range(300):
        watched.observe(probabilities, features)
    report = watched.report()
    assert report["window"] == {"size": 400, "pictures": 300, "different": 1}
    assert report["drift"]["verdict"] == TOO_FEW
    watched.observe(*World(seed=3).answers(100))
    assert watched.report()["drift"]["verdict"] == SAME


@pytest.mark.parametrize("batch", [1, 64, 170])
def test_the_window_has_the_last_images_whatever_the_batch_size(batch: int) -> None:
    watched, world = monitor(window=50), World(seed=2)
    probabilities, features = world.answers(170)
    for start in range(0, 170, batch):
        watched.observe(probabilities[start : start + batch], features[start : start + batch])
    fresh = monitor(window=50)
    fresh.observe(probabilities[-50:], features[-50:])
    report, expected = watched.report(), fresh.report()
    assert report["pictures"] == 170
    assert report["window"] == expected["window"]
    now, then = report["confidence"]["window"], expected["confidence"]["window"]
    assert now["mean"] == pytest.approx(then["mean"])
    assert now["quantiles"] == pytest.approx(then["quantiles"])
    totals = np.bincount(probabilities.argmax(axis=1), minlength=len(NAMES)).tolist()
    assert [row["total"] for row in report["classes"]] == totals
    shares = [row["window"] for row in report["classes"]]
    assert shares == [row["window"] for row in expected["classes"]]


def test_several_threads_lose_no_image() -> None:
    watched = monitor()
    probabilities, features = World(seed=2).answers(8)

    def work() -> None:
        for _ in range(200):
            watched.observe(probabilities, features)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = watched.report()
    assert report["pictures"] == 4 * 200 * 8
    assert sum(row["total"] for row in report["classes"]) == report["pictures"]


def test_the_report_is_json_from_the_first_moment() -> None:
    watched = monitor()
    empty = json.loads(json.dumps(watched.report(), allow_nan=False))
    assert empty["pictures"] == 0
    assert empty["confidence"]["window"] is None
    watched.observe(*World(seed=2).answers(100))
    full = json.loads(json.dumps(watched.report(), allow_nan=False))
    assert full["pictures"] == 100
    assert full == watched.report()


def test_the_gauges_are_the_reports_numbers_under_prometheus_names() -> None:
    watched = monitor()
    before = watched.gauges()
    assert math.isnan(before["promptkd_drifted"])
    assert math.isnan(before["promptkd_drift_embeddings_p"])
    watched.observe(*World(seed=2).answers(100, shift=2.0))
    after, report = watched.gauges(), watched.report()
    assert before.keys() == after.keys()
    assert all(re.fullmatch(r"promptkd_[a-z_]+", name) for name in after)
    assert after["promptkd_drifted"] == 1.0
    assert after["promptkd_window_pictures"] == 100.0
    embeddings = report["drift"]["tests"]["embeddings"]
    assert after["promptkd_drift_embeddings_distance"] == embeddings["distance"]


@pytest.mark.parametrize("classes", [1, 500])
def test_one_class_and_more_classes_than_images_are_no_drift(classes: int) -> None:
    world = World(seed=1, classes=classes)
    watched = Monitor(Reference.of(*world.answers(600)), [str(label) for label in range(classes)])
    watched.observe(*world.answers(100))
    assert watched.report()["drift"]["verdict"] == SAME


def test_a_reference_is_restored_and_written_with_the_same_bytes(tmp_path: Path) -> None:
    reference = Reference.of(*World().answers(20))
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    reference.save(first)
    again = Reference.load(first)
    again.save(second)
    assert first.read_bytes() == second.read_bytes()
    np.testing.assert_array_equal(again.features, reference.features)
    assert again.predicted.dtype == np.int64


def test_a_missing_and_a_corrupt_reference_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    with pytest.raises(MissingFile, match="register the student again"):
        Reference.load(path)
    Reference.of(*World().answers(20)).save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadArtifact, match="cannot be read"):
        Reference.load(path)


@pytest.mark.parametrize("damage", ["shorter", "not finite", "flat", "empty"])
def test_an_inconsistent_reference_is_refused(damage: str) -> None:
    good = Reference.of(*World().answers(20))
    features, predicted, confidence = good.features, good.predicted, good.confidence
    arrays = {
        "shorter": (features, predicted[1:], confidence),
        "not finite": (features * np.float32("nan"), predicted, confidence),
        "flat": (features[:, 0], predicted, confidence),
        "empty": (features[:0], predicted[:0], confidence[:0]),
    }[damage]
    with pytest.raises(ValueError, match="shape|finite"):
        Reference(*arrays)


def test_a_reference_of_other_classes_is_refused() -> None:
    reference = Reference.of(*World().answers(100))
    with pytest.raises(BadArtifact, match="2 classes"):
        Monitor(reference, NAMES[:2])
