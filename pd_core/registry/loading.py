"""A registered student in memory, by the code that lies with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pd_core.errors import BadArtifact
from pd_core.masking import masked


def load(model: Path) -> Any:
    """Load a version's student.

    Args:
        model: what `store.fetch` returned.

    Returns:
        A `PortableStudent`, of the version's own code.

    Raises:
        BadArtifact: it cannot be loaded.
    """
    import mlflow

    try:
        return mlflow.pyfunc.load_model(str(model)).unwrap_python_model().student
    except Exception as error:  # its code may do anything
        reason = masked(" ".join(str(error).split()))[:300] or type(error).__name__
        raise BadArtifact(
            f"the model cannot be loaded ({reason}); register it again, or take another version"
        ) from None
