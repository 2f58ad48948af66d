"""Errors that users can cause, with one-line messages; imports the standard library only."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path


class PdError(Exception):
    """Base of all errors that users can correct; the message is one line."""

    def __init__(self, message: str) -> None:
        """Join the lines of `message`."""
        super().__init__(" ".join(message.split()))


class UnknownName(PdError):
    """An unknown name of a data set, model, method or key."""


class BadParams(PdError):
    """A parameter of the wrong type, out of range, or in conflict with another one."""


class BadData(PdError):
    """An invalid data set, list or image."""


class MissingFile(PdError):
    """A missing file or folder, of an earlier stage or the user."""


class BadArtifact(PdError):
    """A corrupt artifact, or one that does not fit its use."""


class NoSpace(PdError):
    """A full disk or quota."""


class Diverged(PdError):
    """A training with losses or weights that are not finite."""


class FailedRun(PdError):
    """A training that ended without a usable model."""


class Interrupted(PdError):
    """A run stopped early by a signal; it resumes when it is started again."""


def unknown(kind: str, given: str, known: Iterable[str]) -> UnknownName:
    """Make the error for an unknown name of a kind, such as "data set", with all valid names."""
    names = list(known)
    close = difflib.get_close_matches(given, names, n=1)
    guess = f" did you mean '{close[0]}'?" if close else ""
    return UnknownName(f"unknown {kind} '{given}';{guess} known: {', '.join(names)}")


def missing(what: str, path: Path | str, remedy: str) -> MissingFile:
    """Make the error for a missing file, such as a "teacher"."""
    return MissingFile(f"{what} not found: '{path}'; {remedy}")


OLDEST = (3, 11)
"""Oldest supported version of Python."""

_REQUIRED = ("dvc", "mlflow", "open_clip", "prefect", "pydantic_settings", "torch", "typer")


def require() -> None:
    """Exit with status 2 if this Python lacks packages, as where the environment is not active."""
    if lacking := _lacking():
        sys.stderr.write(f"error: '{sys.executable}' lacks {lacking}; {activation()}\n")
        raise SystemExit(2)


def activation() -> str:
    """Return the command that activates the project's environment."""
    environment = Path(__file__).parents[2] / ".venv"
    install = "" if environment.exists() else "run `make install`, then "
    return f"{install}activate the environment: `source {environment}/bin/activate`"


def _lacking() -> str:
    if sys.version_info < OLDEST:
        return "Python 3.11's features (it is {}.{})".format(*sys.version_info)
    return ", ".join(name for name in _REQUIRED if find_spec(name) is None)
