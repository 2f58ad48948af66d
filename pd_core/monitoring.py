"""What a student sees and says in service, beside what it saw and said in training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pd_core.errors import BadArtifact


@dataclass(frozen=True)
class Reference:
    """What a student says about N pictures that it was trained on.

    Attributes:
        features: (N, D), fp32, of unit length.
        predicted: (N,), int64, the likeliest label.
        confidence: (N,), fp32, its probability.
    """

    features: NDArray[np.float32]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]

    @classmethod
    def of(cls, probabilities: NDArray[np.float32], features: NDArray[np.float32]) -> Reference:
        """Keep what matters of answers: probabilities (N, C), features (N, D)."""
        return cls(features, probabilities.argmax(axis=1), probabilities.max(axis=1))

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        save_file(dict(vars(self)), path)

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read it.

        Raises:
            BadArtifact: the file is not there, or not what was written.
        """
        try:
            return cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise BadArtifact(f"'{path}' is no reference ({error}); register it again") from None
