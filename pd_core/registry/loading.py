"""A registered student in memory, by the code that lies with it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pd_core.errors import PdError
from pd_core.masking import masked
from pd_core.registry.store import Version, fetch


def load(store: str, version: Version) -> Any:
    """Load a version's student.

    Args:
        store: what `tracking.open_store` returned.
        version: to load.

    Returns:
        A `PortableStudent`, of the version's own code.

    Raises:
        PdError: its files are not there, or cannot be loaded.
    """
    import mlflow

    with TemporaryDirectory() as folder:
        model = fetch(store, version, Path(folder))
        try:
            return mlflow.pyfunc.load_model(str(model)).unwrap_python_model().student
        except Exception as error:  # its code may do anything
            reason = masked(" ".join(str(error).split()))[:300] or type(error).__name__
            raise PdError(
                f"version {version.number} of '{version.name}' cannot be loaded ({reason}); "
                f"serve another one, or register it again"
            ) from None
