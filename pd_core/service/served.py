"""What is served: a version of the registry, its student, and what watches its answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pd_core.monitoring import Monitor
from pd_core.registry.store import Version
from pd_core.service.worker import Worker


@dataclass(frozen=True, eq=False)
class Served:
    """A loaded version.

    Attributes:
        version: where it comes from.
        worker: what answers.
        monitor: what compares the answers with those to training pictures; None without these.
    """

    version: Version
    worker: Worker
    monitor: Monitor | None = None


class Ranking(NamedTuple):
    """A picture's answer: the probability of every class (C,), and who gave it."""

    probabilities: NDArray[np.float32]
    served: Served

    def best(self, top: int) -> list[dict[str, Any]]:
        """Return the likeliest classes, as `{"name": ..., "probability": ...}`."""
        order = (-self.probabilities).argsort(kind="stable")[:top]
        names = self.served.worker.facts.names
        return [
            {"name": names[label], "probability": float(self.probabilities[label])}
            for label in order.tolist()
        ]
