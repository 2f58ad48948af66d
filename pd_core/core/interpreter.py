"""Whether a Python has what this package needs; what is imported here every Python has."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

OLDEST = (3, 11)
"""Python's version."""

_REQUIRED = ("dvc", "mlflow", "open_clip", "prefect", "pydantic_settings", "torch", "typer")


def require() -> None:
    """End in one line, with status 2, if this Python cannot run the package.

    So ends a stage in a shell whose environment is not active, where DVC finds another `python3`.
    """
    if lacking := _lacking():
        sys.stderr.write(
            f"error: '{sys.executable}' was started, which lacks {lacking}; {activation()}\n"
        )
        raise SystemExit(2)


def activation() -> str:
    """Return what to type for a Python that has everything."""
    environment = Path(__file__).parents[2] / ".venv"
    install = "" if environment.exists() else "run `make install`, then "
    return f"{install}activate the environment: `source {environment}/bin/activate`"


def _lacking() -> str:
    if sys.version_info < OLDEST:
        return "Python 3.11's features (it is {}.{})".format(*sys.version_info)
    return ", ".join(name for name in _REQUIRED if find_spec(name) is None)
