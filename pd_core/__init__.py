"""PromptKD: unsupervised prompt distillation for vision-language models (CVPR 2024).

The public names are few, and they load on first use: ``import pd_core`` itself imports neither
torch nor open_clip.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pd_core.core.errors import PdError
    from pd_core.mlops.predictor import load_student
    from pd_core.models.class_vectors import ClassVectors
    from pd_core.models.student import Student
    from pd_core.models.teacher import Teacher

__all__ = ["ClassVectors", "PdError", "Student", "Teacher", "load_student"]

_HOME = {
    "ClassVectors": "pd_core.models.class_vectors",
    "PdError": "pd_core.core.errors",
    "Student": "pd_core.models.student",
    "Teacher": "pd_core.models.teacher",
    "load_student": "pd_core.mlops.predictor",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'pd_core' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return sorted(__all__)
