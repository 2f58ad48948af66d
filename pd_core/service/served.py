"""What is served: a version of the registry, its student, and what watches its answers.

Shapes: B pictures, S pixels, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from pd_core.registry.store import Version


class Answers(Protocol):
    """What a student says: `probabilities` (B, C) and unit `features` (B, D), fp32."""

    @property
    def probabilities(self) -> NDArray[Any]: ...  # noqa: D102

    @property
    def features(self) -> NDArray[Any]: ...  # noqa: D102


class Student(Protocol):
    """What the service wants of a student; `pd_core.portable` has it."""

    names: tuple[str, ...]
    image_size: int
    info: Mapping[str, Any]

    def crop(self, picture: bytes, *, most_pixels: int) -> NDArray[Any]:
        """Decode a picture, (S, S, 3); a ValueError says what is wrong with it."""

    def answers(self, pixels: NDArray[Any]) -> Answers:
        """Classify pictures (B, S, S, 3); one caller at a time."""


class Monitor(Protocol):
    """What keeps statistics of the answers; `pd_core.monitoring` has it."""

    def observe(self, probabilities: NDArray[Any], features: NDArray[Any]) -> None:
        """Take note of answers (B, C) and (B, D)."""

    def report(self) -> dict[str, Any]:
        """Compare with the training pictures."""

    def gauges(self) -> dict[str, float]:
        """Return the same as numbers by name."""


@dataclass(frozen=True, eq=False)
class Served:
    """A loaded version.

    Attributes:
        version: where it comes from.
        student: what answers.
        monitor: what watches the answers, if anything does.
    """

    version: Version
    student: Student
    monitor: Monitor | None = None


class Ranking(NamedTuple):
    """A picture's answer: the probability of every class (C,), and who gave it."""

    probabilities: NDArray[Any]
    served: Served

    def best(self, top: int) -> list[dict[str, Any]]:
        """Return the likeliest classes, as `{"name": ..., "probability": ...}`."""
        order = (-self.probabilities).argsort(kind="stable")[:top]
        names = self.served.student.names
        return [
            {"name": names[label], "probability": float(self.probabilities[label])}
            for label in order.tolist()
        ]
