"""What `promptkd doctor` looks at: each check says what it found and, if wrong, how to mend it."""

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
    """One line of the result.

    Attributes:
        subject: What was looked at.
        mark: How good it is.
        found: What was found.
        remedy: What to do; empty if there is nothing to do.
    """

    subject: str
    mark: Mark
    found: str
    remedy: str = ""


Check = Callable[[], Iterable[Finding]]


def examine(subject: str, check: Check, *, seconds: float = SECONDS) -> list[Finding]:
    """Make a check; whatever it does, it ends in findings without secrets.

    Args:
        subject: What is looked at, should the check itself fail.
        check: What to do.
        seconds: Time after which it is given up; its thread ends with the process.
    """
    answer: Queue[list[Finding]] = Queue()
    Thread(target=lambda: answer.put(_findings(subject, check)), daemon=True).start()
    try:
        found = answer.get(timeout=seconds)
    except Empty:
        late = f"no answer within {seconds:g} seconds"
        found = [Finding(subject, Mark.WRONG, late, "see why it hangs, then start again")]
    return [Finding(one.subject, one.mark, masked(one.found), masked(one.remedy)) for one in found]


def _findings(subject: str, check: Check) -> list[Finding]:
    try:
        return list(check())
    except PdError as error:
        found, _, remedy = str(error).partition("; ")
        return [Finding(subject, Mark.WRONG, found, remedy)]
    except Exception as error:  # the other checks have to be made all the same
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [Finding(subject, Mark.WRONG, f"the check failed, {reason}", "report this")]
