"""The frame of `promptkd doctor`: each check returns what it found and, if wrong, the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, Queue
from threading import Thread

from pd_core.core.errors import PdError
from pd_core.pipeline.redaction import masked

SECONDS = 60.0
"""A check's time: importing torch from a cold network disk takes half of it."""


class Mark(StrEnum):
    """How good what was found is."""

    OK = "ok"
    WARNING = "warning"  # works, but not as it should, or not everything
    WRONG = "wrong"  # something that the profile needs does not work


@dataclass(frozen=True)
class Finding:
    """One line of the result: what was looked at, how good it is, what to do if it is not."""

    subject: str
    mark: Mark
    found: str
    remedy: str = ""


Check = Callable[[], Finding | Iterable[Finding]]


def ok(subject: str, found: str) -> Finding:
    """Return the finding of something that works."""
    return Finding(subject, Mark.OK, found)


def warning(subject: str, found: str, remedy: str) -> Finding:
    """Return the finding of something that works, but not as it should."""
    return Finding(subject, Mark.WARNING, found, remedy)


def wrong(subject: str, found: str, remedy: str) -> Finding:
    """Return the finding of something that does not work."""
    return Finding(subject, Mark.WRONG, found, remedy)


def examine(subject: str, check: Check, *, seconds: float = SECONDS) -> list[Finding]:
    """Make a check; whatever it does, it ends in findings without secrets.

    After some seconds it is given up; its thread ends with the process.
    """
    answer: Queue[list[Finding]] = Queue()
    Thread(target=lambda: answer.put(_findings(subject, check)), daemon=True).start()
    try:
        found = answer.get(timeout=seconds)
    except Empty:
        late = f"no answer within {seconds:g} seconds"
        found = [wrong(subject, late, "see why it hangs, then start again")]
    return [Finding(one.subject, one.mark, masked(one.found), masked(one.remedy)) for one in found]


def _findings(subject: str, check: Check) -> list[Finding]:
    try:
        found = check()
        return [found] if isinstance(found, Finding) else list(found)
    except PdError as error:
        text, _, remedy = str(error).partition("; ")
        return [wrong(subject, text, remedy)]
    except Exception as error:  # the other checks have to be made all the same
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [wrong(subject, f"the check failed, {reason}", "report this")]
