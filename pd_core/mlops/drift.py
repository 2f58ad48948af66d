"""Drift of a served student's images against its training images.

Two-sample tests compare a window of the last images with the training images:

- embeddings: Kolmogorov-Smirnov on each leading principal component of the training images'
  features, with Bonferroni's correction;
- confidence: Kolmogorov-Smirnov on the probability of the predicted class;
- classes: chi-squared on the counts of the predicted classes, rare ones pooled.

The tests assume independent images, and consecutive requests are not: a repeated image (a probe, a
retry) therefore counts once, and fewer than `FEWEST` different images give no verdict. An album of
one place is drift by these tests, and rightly so.

Shapes: B images of a batch, N of the reference, C classes, D features (unit length), K components.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pd_core.core.artifacts import understood
from pd_core.core.atomic import write_bytes
from pd_core.core.errors import BadArtifact, missing

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

WINDOW = 1000  # images
FEWEST = 50  # different images; fewer would reveal only the crassest drift
LEVEL = 0.001  # of false alarms: one in six weeks, if it is checked every hour

TOO_FEW, SAME, DRIFTED = "too few", "same", "drifted"

_COMPONENTS = 16  # of 128; 95 to 99% of the variance of the embedded students' features
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_EXPECTED = 5.0  # least expected count of a cell for chi-squared's approximation
_DECIMALS = 3  # the same image in another batch differs in the seventh
_REMEDY = "register the student again"


@dataclass(frozen=True)
class Reference:
    """Output of a student for its training images.

    Attributes:
        features: (N, D).
        predicted: (N,) labels of the predicted classes.
        confidence: (N,) their probabilities.
    """

    features: Floats
    predicted: Labels
    confidence: Floats

    def __post_init__(self) -> None:
        """Refuse wrong shapes and numbers that are not finite."""
        count = len(self.features)
        if self.features.ndim != 2 or not count:
            raise ValueError(f"features of shape {self.features.shape}, not (N, D)")
        for name in ("predicted", "confidence"):
            if (shape := getattr(self, name).shape) != (count,):
                raise ValueError(f"{name} of shape {shape}, not ({count},)")
        if not np.isfinite(self.features).all() or not np.isfinite(self.confidence).all():
            raise ValueError("numbers that are not finite")

    @classmethod
    def of(cls, probabilities: Floats, features: Floats) -> Self:
        """Reduce probabilities (N, C) and features (N, D) to a reference."""
        predicted, confidence = _top_1(probabilities)
        return cls(np.asarray(features, np.float32), predicted, confidence)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file written by `save`.

        Raises:
            MissingFile: there is no such file.
            BadArtifact: it is not a reference.
        """
        if not path.is_file():
            raise missing("reference", path, _REMEDY)
        try:
            tensors = load(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise BadArtifact(f"reference '{path}' cannot be read ({error}); {_REMEDY}") from None
        with understood(path, what="reference", remedy=_REMEDY):
            return cls(tensors["features"], tensors["predicted"], tensors["confidence"])

    def save(self, path: Path) -> None:
        """Write it as safetensors, reproducible to the byte.

        Raises:
            PdError: the folder cannot be written.
        """
        tensors: dict[str, NDArray[Any]] = {
            "features": self.features,
            "predicted": self.predicted,
            "confidence": self.confidence,
        }
        write_bytes(path, save(tensors))


class Monitor:
    """Thread-safe running statistics of a student's predictions."""

    def __init__(self, reference: Reference, names: Sequence[str], *, window: int = WINDOW) -> None:
        """Start without images; the last `window` are compared with the reference.

        Raises:
            BadArtifact: the reference has other classes.
        """
        if not 0 <= reference.predicted.min() <= reference.predicted.max() < len(names):
            raise BadArtifact(
                f"the reference has labels from {reference.predicted.min()} to "
                f"{reference.predicted.max()}, and there are {len(names)} classes; {_REMEDY}"
            )
        self._names = tuple(names)
        self._reference = reference
        self._centre, self._components = _principal(reference.features)
        self._expected = self._project(reference.features)  # (N, K)
        self._lock = threading.Lock()
        self._total = 0
        self._counts = np.zeros(len(names), np.int64)
        self._predicted = np.zeros(window, np.int64)
        self._confidence = np.zeros(window, np.float32)
        self._projected = np.zeros((window, self._expected.shape[1]), np.float32)
        self._last: tuple[int, dict[str, Any]] | None = None

    def observe(self, probabilities: Floats, features: Floats) -> None:
        """Add a batch: probabilities (B, C) and features (B, D)."""
        predicted, confidence = _top_1(probabilities)
        projected = self._project(features)
        size = len(self._predicted)
        with self._lock:
            self._counts += np.bincount(predicted, minlength=len(self._counts))
            self._total += len(predicted)
            indices = np.arange(self._total - len(predicted), self._total)[-size:] % size
            self._predicted[indices] = predicted[-size:]
            self._confidence[indices] = confidence[-size:]
            self._projected[indices] = projected[-size:]

    def report(self) -> dict[str, Any]:
        """Compare the window with the reference, in milliseconds.

        Returns:
            Values of JSON: `pictures`, the number of all images; `window`: its `size`, the
            `pictures` in it and the number of `different` ones; `classes`, a list with `name`,
            `total` of all images, and the shares in the `window` and the `reference`;
            `confidence` of `window` (None if it is empty) and `reference`, each with `mean` and
            `quantiles`; `drift`: `verdict`, `level`, `fewest` and `tests`, each with the largest
            `distance` (0 to 1) and `p`, None if there are too few images.
        """
        with self._lock:
            if self._last is not None and self._last[0] == self._total:
                return self._last[1]
            total, counts = self._total, self._counts.copy()
            held = min(total, len(self._predicted))
            predicted = self._predicted[:held].copy()
            confidence = self._confidence[:held].copy()
            projected = self._projected[:held].copy()
        different = np.unique(projected.round(_DECIMALS), axis=0, return_index=True)[1]
        tests = self._tests(predicted[different], confidence[different], projected[different])
        report = {
            "pictures": total,
            "window": {"size": len(self._predicted), "pictures": held, "different": len(different)},
            "classes": self._classes(counts, predicted),
            "confidence": {
                "window": _summary(confidence) if held else None,
                "reference": _summary(self._reference.confidence),
            },
            "drift": {"verdict": verdict(tests), "level": LEVEL, "fewest": FEWEST, "tests": tests},
        }
        with self._lock:
            self._last = total, report
        return report

    def gauges(self) -> dict[str, float]:
        """Return the report's numbers as Prometheus gauges, NaN where there is none."""
        report = self.report()
        window, drift = report["confidence"]["window"], report["drift"]
        values = {
            "promptkd_window_pictures": report["window"]["pictures"],
            "promptkd_window_different_pictures": report["window"]["different"],
            "promptkd_window_confidence_mean": window["mean"] if window else None,
            "promptkd_reference_confidence_mean": report["confidence"]["reference"]["mean"],
            "promptkd_drifted": {TOO_FEW: None, SAME: False, DRIFTED: True}[drift["verdict"]],
        }
        for name, test in drift["tests"].items():
            values[f"promptkd_drift_{name}_distance"] = test["distance"]
            values[f"promptkd_drift_{name}_p"] = test["p"]
        return {name: math.nan if value is None else float(value) for name, value in values.items()}

    def _project(self, features: Floats) -> Floats:
        """Map (B, D) to (B, K)."""
        return np.asarray((features - self._centre) @ self._components, np.float32)

    def _tests(
        self, predicted: Labels, confidence: Floats, projected: Floats
    ) -> dict[str, dict[str, float | None]]:
        if len(predicted) < FEWEST:
            names = ("embeddings", "confidence", "classes")
            return {name: {"distance": None, "p": None} for name in names}
        size = len(self._names)
        results = {
            "embeddings": _kolmogorov_smirnov(self._expected, projected),
            "confidence": _kolmogorov_smirnov(
                self._reference.confidence[:, None], confidence[:, None]
            ),
            "classes": _chi_squared(
                np.bincount(self._reference.predicted, minlength=size),
                np.bincount(predicted, minlength=size),
            ),
        }
        return {name: {"distance": distance, "p": p} for name, (distance, p) in results.items()}

    def _classes(self, counts: Labels, predicted: Labels) -> list[dict[str, Any]]:
        size = len(self._names)
        window = np.bincount(predicted, minlength=size) / max(len(predicted), 1)
        reference = np.bincount(self._reference.predicted, minlength=size)
        shares = reference / len(self._reference.predicted)
        return [
            {"name": name, "total": total, "window": now, "reference": before}
            for name, total, now, before in zip(
                self._names, counts.tolist(), window.tolist(), shares.tolist(), strict=True
            )
        ]


def verdict(tests: Mapping[str, Any], *, level: float = LEVEL) -> str:
    """Return `TOO_FEW`, `SAME` or `DRIFTED` for a report's tests.

    `level` is the rate of false alarms of all tests together.
    """
    if any(test["p"] is None for test in tests.values()):
        return TOO_FEW
    return DRIFTED if drifted(tests, level=level) else SAME


def drifted(tests: Mapping[str, Any], *, level: float = LEVEL) -> list[str]:
    """Return the names of a report's significant tests; see `verdict`."""
    return [
        name
        for name, test in tests.items()
        if test["p"] is not None and test["p"] * len(tests) < level
    ]


def _top_1(probabilities: Floats) -> tuple[Labels, Floats]:
    predicted = probabilities.argmax(axis=1)
    confidence = np.take_along_axis(probabilities, predicted[:, None], axis=1)[:, 0]
    return predicted.astype(np.int64), confidence.astype(np.float32)


def _principal(features: Floats) -> tuple[Floats, Floats]:
    """Return the mean (D,) and the leading principal directions (D, K)."""
    centre = features.mean(axis=0)
    directions = np.linalg.svd(features - centre, full_matrices=False)[2]  # (min(N, D), D)
    return centre, directions[:_COMPONENTS].T.copy()


def _kolmogorov_smirnov(reference: Floats, window: Floats) -> tuple[float, float]:
    """Compare (N, K) and (M, K) by column: largest distance, smallest corrected p."""
    from scipy.stats import ks_2samp

    result = ks_2samp(reference, window, axis=0, method="asymp")
    p = min(1.0, float(result.pvalue.min()) * reference.shape[1])
    return float(result.statistic.max()), p


def _chi_squared(reference: Labels, window: Labels) -> tuple[float, float]:
    """Compare two histograms (C,): total variation distance, and p."""
    from scipy.stats import chi2_contingency

    shares = np.abs(reference / reference.sum() - window / window.sum())
    table = _pooled(np.stack([reference, window]))
    p = float(chi2_contingency(table, correction=False).pvalue) if table.shape[1] > 1 else 1.0
    return float(shares.sum() / 2), p


def _pooled(table: Labels) -> Labels:
    """Pool rare classes, the rarest first, until every cell's expected count is large enough.

    The order depends on sums over both rows, not on their difference. Counts (2, C) become (2, at
    most C).
    """
    enough = _EXPECTED * table.sum() / table.sum(axis=1).min()
    pools = [np.zeros(2, np.int64)]
    for column in table.T[np.argsort(table.sum(axis=0), kind="stable")]:
        if pools[-1].sum() >= enough:
            pools.append(np.zeros(2, np.int64))
        pools[-1] += column
    if len(pools) > 1 and pools[-1].sum() < enough:
        pools[-2] += pools.pop()
    return np.stack(pools, axis=1)


def _summary(values: Floats) -> dict[str, Any]:
    quantiles = np.quantile(values.astype(np.float64), _QUANTILES).tolist()
    return {
        "mean": float(values.mean(dtype=np.float64)),
        "quantiles": {str(at): value for at, value in zip(_QUANTILES, quantiles, strict=True)},
    }
