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
from pd_core.mlops.registry.lock import Held, clock, promotion

Examine = Callable[[Version, Version | None], Sequence[Check]]
"""Gate for a candidate, which would replace a champion."""

_JOURNAL = "decision."


class Action(StrEnum):
    """Decision about a version."""

    PROMOTED = "promoted"
    REFUSED = "refused"
    ROLLED_BACK = "rolled back"
    SET_BY_HAND = "set by hand"  # past the gate, by MLflow's UI or client; in no journal


class State(StrEnum):
    """Progress of a decision."""

    PENDING = "pending"
    DONE = "done"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Entry:
    """A decision in the journal.

    Attributes:
        number: counts from 1, for each model.
        action: the decision.
        state: its progress.
        version: the candidate, or the version that is restored.
        champion: the version that was champion before; None if there was none.
        by: the user, as `user@host` with the name in git.
        at: the time, UTC.
        findings: result of each check by its name: "pass: ..." or "fail: ...".
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
        """True if it made another version the champion."""
        return self.state is State.DONE and self.action is not Action.REFUSED

    def tags(self) -> dict[str, str]:
        """Return the tag that holds the decision."""
        return {f"{_JOURNAL}{self.number}": json.dumps(asdict(self), ensure_ascii=False)}

    def summary(self) -> dict[str, str]:
        """Return the tags for readers, of which a version has those of its last decision."""
        return {"decided_by": self.by, "decided_at": self.at, "decision": str(self.action)}

    def settled(self, champion: int | None) -> Entry:
        """Return a pending decision in its final state, given the present champion."""
        if self.state is not State.PENDING:
            return self
        happened = self.action is Action.REFUSED or self.version == champion
        return replace(self, state=State.DONE if happened else State.INTERRUPTED)


@dataclass(frozen=True)
class Decision:
    """The outcome of a promotion or a rollback.

    Attributes:
        version: the candidate, or the version that is restored.
        champion: the champion before; None if there was none.
        checks: the results of the gate; none for a champion that has passed it.
    """

    version: Version
    champion: Version | None
    checks: tuple[Check, ...] = ()

    @property
    def accepted(self) -> bool:
        """True if all checks passed."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """A line for each check that failed."""
        return [f"{check.name}: {check.finding}" for check in self.checks if not check.passed]


def promote(
    store: str, reference: str, examine: Examine, *, user: str, dry_run: bool = False
) -> Decision:
    """Make a version the champion, if it passes the gate `examine`.

    A champion that was set by hand passes the gate against the champion before it; if it fails, it
    stays champion until another version is promoted or restored.

    Args:
        store: the registry's.
        reference: of the version; the newest one of a model's name alone.
        examine: the gate.
        user: the user, for the journal.
        dry_run: change nothing.

    Raises:
        Busy: another process is promoting the model.
        PdError: the champion became another one meanwhile.
    """
    version = registry.find(store, reference)
    if dry_run:
        return _examined(version, registry.versions(store, version.name), examine)
    with promotion(store, version.name, user=user) as lock:
        versions = _recovered(store, version.name)
        if not _is_champion(version, versions):
            registry.set_alias(store, version, CHALLENGER)
        decision = _examined(version, versions, examine)
        if not decision.checks:
            return decision
        lock.check()
        _check_unmoved(store, version.name, current(versions))
        action = Action.PROMOTED if decision.accepted else Action.REFUSED
        _carry_out(store, _entry(versions, decision, action, user), version, lock)
    return decision


def rollback(store: str, name: str, *, user: str, dry_run: bool = False) -> Decision:
    """Make the previous champion the champion again.

    Each rollback goes one champion further back; a promotion starts from there. The previous
    champion must have the files that were registered, and needs no gate.

    Raises:
        Busy: another process is promoting the model.
        UnknownName: there is no champion, or none before it.
        BadArtifact: the files of the previous champion are not those that were registered.
    """
    name = registry.model_name(name)
    if dry_run:
        return _previous(store, registry.versions(store, name), name)
    with promotion(store, name, user=user) as lock:
        versions = _recovered(store, name)
        decision = _previous(store, versions, name)
        lock.check()
        entry = _entry(versions, decision, Action.ROLLED_BACK, user)
        _carry_out(store, entry, decision.version, lock)
    return decision


def history(store: str, name: str) -> list[Entry]:
    """Return the decisions about a model's versions, the newest first.

    A present champion that was set by hand comes first; its time and user are unknown.

    Raises:
        UnknownName: there is no such model.
    """
    versions = registry.versions(store, name)
    entries = _settled(versions)[::-1]
    champion = set_by_hand(versions)
    if champion is None:
        return entries
    before = next((entry.version for entry in entries if entry.moved), None)
    action, number = Action.SET_BY_HAND, len(entries) + 1
    return [Entry(number, action, State.DONE, champion.number, before, "", "", {}), *entries]


def set_by_hand(versions: Sequence[Version]) -> Version | None:
    """Return the champion, if no promotion or rollback made it one."""
    champion = current(versions)
    return champion if champion and champion.number != _decided(versions) else None


def current(versions: Sequence[Version]) -> Version | None:
    """Return the champion among a model's versions."""
    return next((version for version in versions if CHAMPION in version.aliases), None)


def _examined(version: Version, versions: Sequence[Version], examine: Examine) -> Decision:
    champion = current(versions)
    if _is_champion(version, versions):
        if not set_by_hand(versions):
            return Decision(version, champion)
        before = _decided(versions)
        champion = next((other for other in versions if other.number == before), None)
    return Decision(version, champion, tuple(examine(version, champion)))


def _is_champion(version: Version, versions: Sequence[Version]) -> bool:
    return version.number == _number(current(versions))


def _decided(versions: Sequence[Version]) -> int | None:
    """Return the version that the last promotion or rollback made the champion."""
    moves = [entry.version for entry in _settled(versions) if entry.moved]
    return moves[-1] if moves else None


def _previous(store: str, versions: Sequence[Version], name: str) -> Decision:
    """Return the previous champion, whose files must be those that were registered."""
    champion = current(versions)
    if champion is None:
        raise UnknownName(f"'{name}' has no champion; run `promptkd registry promote {name}`")
    others = {version.number: version for version in versions if version is not champion}
    line = _champions(entry for entry in _settled(versions) if entry.moved)
    before = [others[number] for number in line if number in others]
    if not before:
        raise UnknownName(f"version {champion.number} is the first champion of '{name}'")
    version = before[-1]
    check = check_files(store, version)
    if not check.passed:
        raise BadArtifact(
            f"version {version.number}, the previous champion, cannot be restored: "
            f"{check.finding}; promote another one"
        )
    return Decision(version, champion, (check,))


def _champions(history: Iterable[Entry]) -> list[int | None]:
    """Return the champions in their order; a rollback removes those after the one it restores."""
    line: list[int | None] = []
    for entry in history:
        if entry.action is Action.ROLLED_BACK and entry.version in line:
            while line[-1] != entry.version:
                line.pop()
        else:  # the champion before, since an alias may have been moved by other means
            line += [entry.champion, entry.version]
    return line


def _entries(versions: Iterable[Version]) -> list[Entry]:
    """Read the decisions about a model's versions, the oldest first."""
    entries = [
        Entry.parsed(json.loads(value))
        for version in versions
        for name, value in version.tags.items()
        if name.startswith(_JOURNAL)
    ]
    return sorted(entries, key=lambda entry: entry.number)


def _settled(versions: Sequence[Version]) -> list[Entry]:
    number = _number(current(versions))
    return [entry.settled(number) for entry in _entries(versions)]


def _recovered(store: str, name: str) -> list[Version]:
    """Return a model's versions, after finishing decisions that killed processes left pending."""
    versions = registry.versions(store, name)
    unfinished = [entry for entry in _entries(versions) if entry.state is State.PENDING]
    for entry in unfinished:
        _finish(store, entry.settled(_number(current(versions))), versions)
    return registry.versions(store, name) if unfinished else versions


def _entry(versions: Sequence[Version], decision: Decision, action: Action, user: str) -> Entry:
    return Entry(
        number=max((entry.number for entry in _entries(versions)), default=0) + 1,
        action=action,
        state=State.PENDING,
        version=decision.version.number,
        champion=_number(decision.champion),
        by=user,
        at=clock(time.time()),
        findings={
            check.name: f"{'pass' if check.passed else 'fail'}: {check.finding}"
            for check in decision.checks
        },
    )


def _carry_out(store: str, entry: Entry, version: Version, lock: Held) -> None:
    """Write the decision to the journal, move the alias, finish; `_recovered` follows a kill."""
    registry.set_tags(store, version, entry.tags())
    if entry.action is not Action.REFUSED:
        lock.check()
        registry.set_alias(store, version, CHAMPION)
    versions = registry.versions(store, version.name)
    _finish(store, replace(entry, state=State.DONE), versions)


def _finish(store: str, entry: Entry, versions: Sequence[Version]) -> None:
    """Tag versions with a decision for readers, and mark it as done; repeatable after a kill."""
    by_number = {version.number: version for version in versions}
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
    """Refuse if the champion is not the one that the candidate was compared with."""
    now = _number(current(registry.versions(store, name)))
    if now != _number(champion):
        raise PdError(
            f"the champion of '{name}' became version {'none' if now is None else now} while the "
            f"gate was at work; nothing was changed, promote again"
        )


def _number(version: Version | None) -> int | None:
    return None if version is None else version.number
