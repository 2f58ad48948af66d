"""Folders of the stages of one data set."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StagePaths:
    """Folders of the stages of one data set, each written by the stage of its name.

    Attributes:
        prepared: by `prepare`.
        teacher: by `teacher`.
        vectors: by `class_vectors`.
        student: by `student`.
        evaluation: by `evaluate`.
    """

    prepared: Path
    teacher: Path
    vectors: Path
    student: Path
    evaluation: Path
