"""Who is champion: promotion through the gate, and rollback; one at a time, whole after a kill.

The alias `champion` moves in one step, from the old version to the new one. Around it, a decision
is written down as pending before and as done after (see `journal`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pd_core.core.errors import BadArtifact, PdError, UnknownName
from pd_core.mlops.registry import lock
from pd_core.mlops.registry import store as registry
from pd_core.mlops.registry.gate import Check
from pd_core.mlops.registry.lock import Action, Entry, Held, State, promotion
from pd_core.mlops.registry.store import CHALLENGER, CHAMPION, Version

Examine = Callable[[Version, Version | None], Sequence[Check]]
"""Puts a candidate, which would replace a champion, through the gate."""


@dataclass(frozen=True)
class Decision:
    """What came of a promotion or a rollback.

    Attributes:
        version: the one it is about.
        champion: the champion before; None if there was none.
        checks: what was checked; empty if nothing was, as of the champion itself.
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
    """Make a version the champion, if the gate lets it pass.

    Args:
        store: what `tracking.open_store` returned.
        reference: of the version; the newest one, if it only names a model.
        examine: the gate.
        who: decides.
        dry_run: change nothing, only say what would be decided.

    Raises:
        Busy: somebody else is promoting the model.
        PdError: MLflow refused, or the champion became another one meanwhile.
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

    Each rollback goes one champion further back; a promotion starts from there. What is gone back
    to has to have the files that were registered, and needs no gate.

    Args:
        store: what `tracking.open_store` returned.
        name: of the model, or of its data set.
        who: decides.
        dry_run: change nothing, only say what would be done.

    Raises:
        Busy: somebody else is promoting the model.
        UnknownName: there is no champion, or none before it.
        BadArtifact: the files of the one before are not those that were registered.
        PdError: MLflow refused.
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
        PdError: MLflow refused.
    """
    known = registry.versions(store, name)
    return _settled(known)[::-1]


def current(known: Sequence[Version]) -> Version | None:
    """Return the champion among a model's versions."""
    return next((version for version in known if CHAMPION in version.aliases), None)


def _examined(version: Version, champion: Version | None, examine: Examine) -> Decision:
    if champion and champion.number == version.number:
        return Decision(version, champion)
    return Decision(version, champion, tuple(examine(version, champion)))


def _previous(store: str, known: Sequence[Version], name: str) -> Decision:
    """Find the champion before the present one, and make sure that its files are whole."""
    from pd_core.mlops.registry.gate import check_files

    champion = current(known)
    if champion is None:
        raise UnknownName(f"'{name}' has no champion; run `promptkd registry promote {name}`")
    by_number = {version.number: version for version in known}
    line = lock.champions(_settled(known), champion.number)
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


def _settled(known: Sequence[Version]) -> list[Entry]:
    champion = current(known)
    number = champion.number if champion else None
    return [lock.settled(entry, number) for entry in lock.entries(known)]


def _recovered(store: str, name: str) -> list[Version]:
    """Return a model's versions, after bringing to an end what killed processes left pending."""
    known = registry.versions(store, name)
    by_number = {version.number: version for version in known}
    unfinished = [entry for entry in lock.entries(known) if entry.state is State.PENDING]
    if not unfinished:
        return known
    champion = current(known)
    for entry in unfinished:
        ended = lock.settled(entry, champion.number if champion else None)
        _finish(store, ended, by_number)
    return registry.versions(store, name)


def _entry(known: Sequence[Version], decision: Decision, action: Action, who: str) -> Entry:
    numbers = [entry.number for entry in lock.entries(known)]
    return Entry(
        number=max(numbers, default=0) + 1,
        action=action,
        state=State.PENDING,
        version=decision.version.number,
        champion=decision.champion.number if decision.champion else None,
        by=who,
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
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
    done = replace(entry, state=State.DONE)
    _finish(store, done, {version.number: version for version in known})


def _finish(store: str, entry: Entry, known: dict[int, Version]) -> None:
    """Tell people what was decided, and note that all is done; may be done again after a kill."""
    version = known[entry.version]
    if entry.state is State.DONE:
        registry.set_tags(store, version, entry.summary())
        if entry.action is Action.ROLLED_BACK and entry.champion in known:
            left = {"decision": f"rolled back to {version.number}", "decided_by": entry.by}
            registry.set_tags(store, known[entry.champion], {**left, "decided_at": entry.at})
        if entry.action is Action.PROMOTED and CHALLENGER in version.aliases:
            registry.remove_alias(store, version.name, CHALLENGER)
    registry.set_tags(store, version, entry.tags())


def _check_unmoved(store: str, name: str, champion: Version | None) -> None:
    """Refuse if the champion is another one than the candidate was compared with."""
    now = current(registry.versions(store, name))
    if (now.number if now else None) != (champion.number if champion else None):
        raise PdError(
            f"the champion of '{name}' became version {now.number if now else 'none'} while the "
            f"gate was at work; nothing was changed, promote again"
        )
