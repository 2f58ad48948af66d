"""The errors a user can cause, each with a one-line message; a Python without the packages is one.

What is imported here every Python has.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path


class PdError(Exception):
    """Base of all errors that the user can put right; its text is one line."""

    def __init__(self, message: str) -> None:
        """Keep `message` on one line, whatever it was built from."""
        super().__init__(" ".join(message.split()))


class UnknownName(PdError):
    """A name that is in no catalogue: a data set, a model, a method, a key."""


class BadParams(PdError):
    """A parameter of the wrong type, out of range, or at odds with another one."""


class BadData(PdError):
    """A data set, list or picture that cannot be what it claims to be."""


class MissingFile(PdError):
    """A file or folder that an earlier step, or the user, has to provide."""


class BadArtifact(PdError):
    """An artifact of an earlier stage that does not fit what it is used for."""


class NoSpace(PdError):
    """A disk, or the user's share of it, has no room for what is to be written."""


class Diverged(PdError):
    """A training whose numbers are no longer finite."""


class FailedRun(PdError):
    """A training that ended with something that is no model."""


class Interrupted(PdError):
    """A run that was told to end early, and goes on when it is started again."""


def unknown(kind: str, given: str, known: Iterable[str]) -> UnknownName:
    """Make the error for a name, such as a "data set", that is not among the known ones.

    All known names are listed, in their order; a close one is offered as a guess.
    """
    names = list(known)
    close = difflib.get_close_matches(given, names, n=1)
    guess = f" did you mean '{close[0]}'?" if close else ""
    return UnknownName(f"unknown {kind} '{given}';{guess} known: {', '.join(names)}")


def missing(what: str, path: Path | str, remedy: str) -> MissingFile:
    """Make the error for an absent file, such as a "teacher"; it ends with what to do."""
    return MissingFile(f"{what} not found: '{path}'; {remedy}")


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
