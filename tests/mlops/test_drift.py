"""Statistics of what a student sees, and tests that tell other pictures from those of training."""

import json
import math
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pd_core.core.errors import BadArtifact, MissingFile
from pd_core.mlops import drift as monitoring
from pd_core.mlops.drift import DRIFTED, SAME, TOO_FEW, Monitor, Reference

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")
WIDTH = 32

Floats = NDArray[np.float32]


class World:
    """A student's answers: pictures are clouds around their class, in features of length one."""

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


def test_pictures_as_in_training_are_no_drift() -> None:
    watched = monitor()
    watched.observe(*World(seed=2).answers(400))
    assert watched.report()["drift"]["verdict"] == SAME
    assert all(p > 0.01 for p in drift(watched).values())


def test_pictures_of_another_kind_are_drift() -> None:
    watched = monitor()
    watched.observe(*World(seed=2).answers(60, shift=2.0))
    report = watched.report()["drift"]
    assert report["verdict"] == DRIFTED
    assert "embeddings" in monitoring.drifted(report["tests"])
    assert report["tests"]["embeddings"]["distance"] > 0.4


def test_a_doubtful_student_is_drift_although_the_pictures_are_the_same() -> None:
    watched = monitor()
    watched.observe(*World(seed=2).answers(200, sharpness=0.6))
    report = watched.report()
    assert monitoring.drifted(report["drift"]["tests"]) == ["confidence"]
    confidence = report["confidence"]
    assert confidence["window"]["mean"] < confidence["reference"]["mean"]
    assert confidence["window"]["quantiles"]["0.5"] < confidence["reference"]["quantiles"]["0.5"]


def test_a_class_that_has_become_frequent_is_drift() -> None:
    watched = monitor()
    watched.observe(*World(seed=2).answers(200, mix=np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])))
    report = watched.report()
    assert "classes" in monitoring.drifted(report["drift"]["tests"])
    first = report["classes"][0]
    assert first["name"] == "alpha"
    assert first["window"] > 2 * first["reference"]


def test_false_alarms_are_as_rare_as_the_level_says() -> None:
    watched, world = monitor(window=100), World(seed=3)
    alarms = 0
    for _ in range(60):
        watched.observe(*world.answers(100))
        tests = watched.report()["drift"]["tests"]
        alarms += monitoring.verdict(tests, level=0.05) == DRIFTED
    assert alarms <= 8  # three are expected; more than eight by chance once in two hundred


def test_of_a_few_pictures_nothing_is_said() -> None:
    watched = monitor()
    watched.observe(*World(seed=2).answers(monitoring.FEWEST - 1, shift=5.0))
    assert watched.report()["drift"]["verdict"] == TOO_FEW
    assert set(drift(watched).values()) == {None}
    watched.observe(*World(seed=3).answers(1, shift=5.0))
    assert watched.report()["drift"]["verdict"] == DRIFTED


def test_a_picture_that_comes_again_and_again_counts_once() -> None:
    watched = monitor()
    probabilities, features = World(seed=2).answers(1)
    for _ in range(300):
        watched.observe(probabilities, features)
    report = watched.report()
    assert report["window"] == {"size": 400, "pictures": 300, "different": 1}
    assert report["drift"]["verdict"] == TOO_FEW
    watched.observe(*World(seed=3).answers(100))
    assert watched.report()["drift"]["verdict"] == SAME


@pytest.mark.parametrize("batch", [1, 7, 50, 64, 170])
def test_the_window_holds_the_last_pictures_whatever_the_batches(batch: int) -> None:
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
    assert [one["total"] for one in report["classes"]] == totals
    shares = [one["window"] for one in report["classes"]]
    assert shares == [one["window"] for one in expected["classes"]]


def test_several_threads_lose_no_picture() -> None:
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
    assert sum(one["total"] for one in report["classes"]) == report["pictures"]


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


def test_more_classes_than_pictures_are_no_drift() -> None:
    world = World(seed=1, classes=500)
    watched = Monitor(Reference.of(*world.answers(600)), [str(label) for label in range(500)])
    watched.observe(*world.answers(100))
    assert watched.report()["drift"]["verdict"] == SAME


def test_one_class_is_always_the_same_class() -> None:
    world = World(seed=1, classes=1)
    watched = Monitor(Reference.of(*world.answers(100)), ["only"])
    watched.observe(*world.answers(100))
    assert drift(watched)["classes"] == 1.0


def test_a_reference_comes_back_as_it_was_and_gives_the_same_bytes(tmp_path: Path) -> None:
    reference = Reference.of(*World().answers(20))
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    reference.save(first)
    again = Reference.load(first)
    again.save(second)
    assert first.read_bytes() == second.read_bytes()
    for name in ("features", "predicted", "confidence"):
        np.testing.assert_array_equal(getattr(again, name), getattr(reference, name))
    assert again.predicted.dtype == np.int64


def test_a_file_that_holds_no_reference_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    with pytest.raises(MissingFile, match="register the student again"):
        Reference.load(path)
    Reference.of(*World().answers(20)).save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadArtifact, match="cannot be read"):
        Reference.load(path)


@pytest.mark.parametrize("damage", ["shorter", "not finite", "flat", "empty"])
def test_a_reference_that_cannot_be_is_refused(damage: str) -> None:
    probabilities, features = World().answers(20)
    good = Reference.of(probabilities, features)
    bad = {
        "shorter": (features, good.predicted[1:], good.confidence),
        "not finite": (features * np.float32("nan"), good.predicted, good.confidence),
        "flat": (features[:, 0], good.predicted, good.confidence),
        "empty": (features[:0], good.predicted[:0], good.confidence[:0]),
    }[damage]
    with pytest.raises(ValueError, match="shape|finite"):
        Reference(*bad)


def test_a_reference_to_other_classes_is_refused() -> None:
    reference = Reference.of(*World().answers(100))
    with pytest.raises(BadArtifact, match="and there are 2 classes"):
        Monitor(reference, NAMES[:2])
