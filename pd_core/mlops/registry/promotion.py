"""Promotion through the gate, and rollback; one at a time, complete after a kill.

The alias `champion` moves in one step, from the old version to the new one. Around it, a decision
is written to a journal in the version's tags, as pending before and as done after.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Self

from pd_core.core.errors import BadArtifact, PdError, UnknownName
from pd_core.mlops import registry
from pd_core.mlops.registry import CHALLENGER, CHAMPION, Version
from pd_core.mlops.registry.gate import Check, check_files
from pd_core.mlops.registry.lock import Held, promotion

Examine = Callable[[Version, Version | None], Sequence[Check]]
"""Puts a candidate, which would replace a champion, through the gate."""

_JOURNAL = "decision."


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
    """A decision in the journal.

    Attributes:
        number: counts from 1, for each model.
        action: the decision.
        state: how far it got.
        version: the candidate, or the version that is gone back to.
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

    @classmethod
    def parsed(cls, values: Mapping[str, Any]) -> Self:
        """Read an entry from the JSON of its tag."""
        kinds = {"action": Action(values["action"]), "state": State(values["state"])}
        return cls(**{**values, **kinds})

    @property
    def moved(self) -> bool:
        """Whether the champion became another one by it."""
        return self.state is State.DONE and self.action is not Action.REFUSED

    def tags(self) -> dict[str, str]:
        """Return the tag that the decision is kept in."""
        return {f"{_JOURNAL}{self.number}": json.dumps(asdict(self), ensure_ascii=False)}

    def summary(self) -> dict[str, str]:
        """Return tags for people, of which a version has those of its last decision."""
        return {
            **{f"gate.{name}": finding for name, finding in self.findings.items()},
            "decided_by": self.by,
            "decided_at": self.at,
            "champion_before": "none" if self.champion is None else str(self.champion),
            "decision": str(self.action),
        }

    def settled(self, champion: int | None) -> Entry:
        """Return a pending decision as it turned out, seen from who is champion now."""
        if self.state is not State.PENDING:
            return self
        happened = self.action is Action.REFUSED or self.version == champion
        return replace(self, state=State.DONE if happened else State.INTERRUPTED)


@dataclass(frozen=True)
class Decision:
    """The outcome of a promotion or a rollback.

    Attributes:
        version: the candidate, or the version that is gone back to.
        champion: the champion before; None if there was none.
        checks: all that were made; none of the champion itself.
    """

    version: Version
    champion: Version | None
    checks: tuple[Check, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """Why not: a line for each check that failed."""
        return [f"{check.name}: {check.finding}" for check in self.checks if not check.passed]


def promote(
    store: str, reference: str, examine: Examine, *, who: str, dry_run: bool = False
) -> Decision:
    """Make a version (the newest one, if `reference` only names a model) the champion.

    The gate, `examine`, has to let it pass. A dry run changes nothing.

    Raises:
        Busy: another process is promoting the model.
        PdError: the champion became another one meanwhile.
    """
    version = registry.find(store, reference)
    if dry_run:
        champion = current(registry.versions(store, version.name))
        return _examined(version, champion, examine)
    with promotion(store, version.name, who=who) as held:
        known = _recovered(store, version.name)
        champion = current(known)
        if champion and champion.number == version.number:
            return Decision(version, champion)
        registry.set_alias(store, version, CHALLENGER)
        decision = _examined(version, champion, examine)
        held.check()
        _check_unmoved(store, version.name, champion)
        action = Action.PROMOTED if decision.accepted else Action.REFUSED
        _carry_out(store, _entry(known, decision, action, who), version, held)
    return decision


def rollback(store: str, name: str, *, who: str, dry_run: bool = False) -> Decision:
    """Make the previous champion the champion again.

    Each rollback goes one champion further back; a promotion starts from there. A previous champion
    has to have the files that were registered, and needs no gate. A dry run changes nothing.

    Raises:
        Busy: another process is promoting the model.
        UnknownName: there is no champion, or none before it.
        BadArtifact: the files of the one before are not those that were registered.
    """
    name = registry.model_name(name)
    if dry_run:
        return _previous(store, registry.versions(store, name), name)
    with promotion(store, name, who=who) as held:
        known = _recovered(store, name)
        decision = _previous(store, known, name)
        held.check()
        entry = _entry(known, decision, Action.ROLLED_BACK, who)
        _carry_out(store, entry, decision.version, held)
    return decision


def history(store: str, name: str) -> list[Entry]:
    """Return the decisions about a model's versions, the newest first.

    Raises:
        UnknownName: there is no such model.
    """
    return _settled(registry.versions(store, name))[::-1]


def current(known: Sequence[Version]) -> Version | None:
    """Return the champion among a model's versions."""
    return next((version for version in known if CHAMPION in version.aliases), None)


def _examined(version: Version, champion: Version | None, examine: Examine) -> Decision:
    if champion and champion.number == version.number:
        return Decision(version, champion)
    return Decision(version, champion, tuple(examine(version, champion)))


def _previous(store: str, known: Sequence[Version], name: str) -> Decision:
    """Find the champion before the present one, and make sure that its files are whole."""
    champion = current(known)
    if champion is None:
        raise UnknownName(f"'{name}' has no champion; run `promptkd registry promote {name}`")
    by_number = {version.number: version for version in known}
    line = _champions(_settled(known), champion.number)
    before = [number for number in line if number in by_number and number != champion.number]
    if not before:
        raise UnknownName(
            f"version {champion.number} is the first champion of '{name}'; there is none to go "
            f"back to"
        )
    version = by_number[before[-1]]
    check = check_files(store, version)
    if not check.passed:
        raise BadArtifact(
            f"version {version.number}, the champion before, cannot be gone back to: "
            f"{check.finding}; promote another one"
        )
    return Decision(version, champion, (check,))


def _champions(history: Iterable[Entry], current: int) -> list[int]:
    """Return the champions in their order, the present one last.

    A rollback takes the champions after the one it returns to off the list. An alias that was moved
    by other means counts as a promotion.
    """
    line: list[int] = []

    def append(version: int) -> None:
        if line[-1:] != [version]:
            line.append(version)

    for entry in history:
        if not entry.moved:
            continue
        if entry.champion is not None:
            append(entry.champion)
        if entry.action is Action.ROLLED_BACK and entry.version in line:
            while line[-1] != entry.version:
                line.pop()
        append(entry.version)
    append(current)
    return line


def _entries(versions: Iterable[Version]) -> list[Entry]:
    """Read the decisions about a model's versions, the oldest first."""
    found = [
        Entry.parsed(json.loads(value))
        for version in versions
        for name, value in version.tags.items()
        if name.startswith(_JOURNAL)
    ]
    return sorted(found, key=lambda entry: entry.number)


def _settled(known: Sequence[Version]) -> list[Entry]:
    number = _number(current(known))
    return [entry.settled(number) for entry in _entries(known)]


def _recovered(store: str, name: str) -> list[Version]:
    """Return a model's versions, after finishing decisions that killed processes left pending."""
    known = registry.versions(store, name)
    unfinished = [entry for entry in _entries(known) if entry.state is State.PENDING]
    for entry in unfinished:
        _finish(store, entry.settled(_number(current(known))), known)
    return registry.versions(store, name) if unfinished else known


def _entry(known: Sequence[Version], decision: Decision, action: Action, who: str) -> Entry:
    numbers = [entry.number for entry in _entries(known)]
    return Entry(
        number=max(numbers, default=0) + 1,
        action=action,
        state=State.PENDING,
        version=decision.version.number,
        champion=_number(decision.champion),
        by=who,
        at=_clock(),
        findings={
            check.name: f"{'pass' if check.passed else 'fail'}: {check.finding}"
            for check in decision.checks
        },
    )


def _carry_out(store: str, entry: Entry, version: Version, held: Held) -> None:
    """Write a decision down, move the alias, finish; `_recovered` sees to what a kill leaves."""
    registry.set_tags(store, version, entry.tags())
    if entry.action is not Action.REFUSED:
        held.check()
        registry.set_alias(store, version, CHAMPION)
    known = registry.versions(store, version.name)
    _finish(store, replace(entry, state=State.DONE), known)


def _finish(store: str, entry: Entry, known: Sequence[Version]) -> None:
    """Tag versions with a decision for people, and mark it as done; repeatable after a kill."""
    by_number = {version.number: version for version in known}
    version = by_number[entry.version]
    if entry.state is State.DONE:
        registry.set_tags(store, version, entry.summary())
        if entry.action is Action.ROLLED_BACK and entry.champion in by_number:
            left = {"decision": f"rolled back to {version.number}", "decided_by": entry.by}
            registry.set_tags(store, by_number[entry.champion], {**left, "decided_at": entry.at})
        if entry.action is Action.PROMOTED and CHALLENGER in version.aliases:
            registry.remove_alias(store, version.name, CHALLENGER)
    registry.set_tags(store, version, entry.tags())


def _check_unmoved(store: str, name: str, champion: Version | None) -> None:
    """Refuse if the champion is another one than the candidate was compared with."""
    now = _number(current(registry.versions(store, name)))
    if now != _number(champion):
        raise PdError(
            f"the champion of '{name}' became version {'none' if now is None else now} while the "
            f"gate was at work; nothing was changed, promote again"
        )


def _number(version: Version | None) -> int | None:
    return None if version is None else version.number


def _clock() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
