"""The decisions about a model's versions, kept as tags of these versions.

A decision is written before its alias moves, as pending, and again when all is done. What a killed
process left pending is finished by the next one if the alias had moved, and marked as interrupted
if it had not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from pd_core.registry.store import Version

_PREFIX = "decision."


class Action(StrEnum):
    """What was decided about a version."""

    PROMOTED = "promoted"
    REFUSED = "refused"
    ROLLED_BACK = "rolled back"


class State(StrEnum):
    """How far a decision got."""

    PENDING = "pending"
    DONE = "done"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Entry:
    """A decision.

    Attributes:
        number: counts from 1, for each model.
        action: what was decided.
        state: how far it got.
        version: the version that it is about; the one that the champion became, or would have.
        champion: the version that was champion before; None if there was none.
        by: who, `user@host` and their name in git.
        at: when, UTC.
        findings: what the checks found, by their name; "pass: ..." or "fail: ...".
    """

    number: int
    action: Action
    state: State
    version: int
    champion: int | None
    by: str
    at: str
    findings: Mapping[str, str]

    @property
    def moved(self) -> bool:
        """Whether the champion became another one by it."""
        return self.state is State.DONE and self.action is not Action.REFUSED

    def tags(self) -> dict[str, str]:
        """Return the tag that the decision is kept in."""
        return {f"{_PREFIX}{self.number}": json.dumps(asdict(self), ensure_ascii=False)}

    def summary(self) -> dict[str, str]:
        """Return tags for people, of which a version has those of its last decision."""
        return {
            **{f"gate.{name}": finding for name, finding in self.findings.items()},
            "decided_by": self.by,
            "decided_at": self.at,
            "champion_before": "none" if self.champion is None else str(self.champion),
            "decision": str(self.action),
        }


def entries(versions: Iterable[Version]) -> list[Entry]:
    """Return the decisions about a model's versions, the oldest first."""
    found = [
        _entry(json.loads(value))
        for version in versions
        for name, value in version.tags.items()
        if name.startswith(_PREFIX)
    ]
    return sorted(found, key=lambda entry: entry.number)


def _entry(values: Mapping[str, Any]) -> Entry:
    given = {**values, "action": Action(values["action"]), "state": State(values["state"])}
    return Entry(**given)


def settled(entry: Entry, champion: int | None) -> Entry:
    """Return a pending decision as it turned out, seen from who is champion now."""
    if entry.state is not State.PENDING:
        return entry
    happened = entry.action is Action.REFUSED or entry.version == champion
    return replace(entry, state=State.DONE if happened else State.INTERRUPTED)


def champions(history: Sequence[Entry], current: int) -> list[int]:
    """Return who was champion before whom, the present one last.

    A rollback takes the champions after the one it returns to off the list. An alias that was moved
    by other means counts as a promotion.

    Args:
        history: decisions, the oldest first.
        current: the present champion.
    """
    line: list[int] = []
    for entry in history:
        if not entry.moved:
            continue
        if entry.champion is not None:
            _append(line, entry.champion)
        if entry.action is Action.ROLLED_BACK and entry.version in line:
            while line[-1] != entry.version:
                line.pop()
        _append(line, entry.version)
    _append(line, current)
    return line


def _append(line: list[int], version: int) -> None:
    if line[-1:] != [version]:
        line.append(version)
