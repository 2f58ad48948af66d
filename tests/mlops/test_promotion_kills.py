"""Promotions and rollbacks that are killed at any moment, and those that come at the same time.

A process of its own promotes, and kills itself with SIGKILL before its n-th write to the registry,
for every n. The gate is left out here: it writes nothing.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import registered
from mlflow_server import mlflow_server
from promoting import (
    FAIL,
    NAME,
    PASS,
    killed_at,
    promote,
    promote_when_told,
    refuse,
    roll_back,
    spawner,
)
from registered import champion, good, publish, store

from pd_core.core.errors import BadArtifact, PdError, UnknownName
from pd_core.mlops import registry, tracking
from pd_core.mlops.registry import lock, promotion
from pd_core.mlops.registry.gate import Check
from pd_core.mlops.registry.lock import Busy
from pd_core.mlops.registry.promotion import State
from pd_core.mlops.tracking.nesting import this_process

__all__ = ["good", "store"]  # fixtures

# SQLAlchemy's, about MLflow's use of it.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")


@contextmanager
def promoting(store: str, number: int) -> Iterator[tuple[Any, Connection]]:
    """Have another process stand in the gate."""
    here, there = spawner().Pipe()
    process = spawner().Process(target=promote_when_told, args=(store, number, there))
    process.start()
    assert here.poll(60)
    assert here.recv() == "in the gate"
    try:
        yield process, here
    finally:
        process.kill()
        process.join()


@pytest.fixture
def two(store: str, good: Path) -> str:
    """Register two versions, of which the first is champion."""
    return with_two_versions(store, good)


def with_two_versions(store: str, folder: Path) -> str:
    for _ in range(2):
        publish(store, folder)
    promote(store, 1)
    return store


def other(store: str) -> int:
    """Return the version that is not champion."""
    return 3 - (champion(store) or 0)


def locks(store: str) -> list[str]:
    names = [model.name for model in tracking.client(store).search_registered_models()]
    return [name for name in names if name.startswith(lock.RESERVED)]


def moved(store: str) -> list[tuple[str, int]]:
    """Return the promotions and rollbacks that took place, the oldest first."""
    entries = promotion.history(store, NAME)[::-1]
    return [(str(entry.action), entry.version) for entry in entries if entry.moved]


def check_kills(store: str, act: Callable[..., None]) -> None:
    """Kill it before its first write, its second, ..., until there is none left to kill it at."""
    steps = 0
    was_killed = True
    while was_killed:
        steps += 1
        if act is roll_back:
            promote(store, other(store))
        old, new = champion(store), other(store)
        was_killed = killed_at(steps, act, store, new)
        found = champion(store)
        if act is refuse:
            assert found == old
        else:
            assert found in ((old, new) if was_killed else (new,))
        check_next(store, found)
    assert steps > 6  # alias, decision before and after, tags for readers


def check_next(store: str, found: int | None) -> None:
    """Make sure that history is right, and that a promotion and a rollback work at once."""
    before = moved(store)
    assert before[-1][1] == found
    begun = time.monotonic()
    promote(store, other(store))
    assert time.monotonic() - begun < 20
    assert champion(store) != found
    assert moved(store) == [*before, ("promoted", champion(store))]
    assert State.PENDING not in {entry.state for entry in promotion.history(store, NAME)}
    roll_back(store)
    assert champion(store) == found
    assert locks(store) == []


@pytest.mark.timeout(300)
def test_a_promotion_killed_at_any_write_leaves_the_old_or_the_new_champion(two: str) -> None:
    check_kills(two, promote)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("act", [refuse, roll_back])
def test_so_does_a_refusal_and_a_rollback(two: str, act: Callable[..., None]) -> None:
    check_kills(two, act)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_a_server_too(good: Path, tmp_path: Path, empty_database: Path) -> None:
    with mlflow_server(empty_database, tmp_path / "server") as (address, _):
        store = with_two_versions(address, good)
        check_kills(store, promote)
        check_one_at_a_time(store)
        check_kill_in_the_gate(store)


def test_a_first_champion_killed_before_its_alias_leaves_none_and_after_it_one(
    store: str, good: Path
) -> None:
    publish(store, good)
    assert killed_at(3, promote, store, 1)  # challenger, decision, champion
    assert champion(store) is None
    assert [entry.state for entry in promotion.history(store, NAME)] == [State.INTERRUPTED]
    assert killed_at(6, promote, store, 1)
    assert champion(store) == 1
    assert moved(store) == [("promoted", 1)]


# At the same time


def check_one_at_a_time(store: str) -> None:
    number, old = other(store), champion(store)
    with promoting(store, number) as (process, pipe):
        for act in (promote, roll_back):
            with pytest.raises(Busy, match="being promoted or rolled back by first@here, process"):
                act(store, number)
        assert champion(store) == old
        pipe.send("go on")
        process.join(60)
        assert process.exitcode == 0
    assert champion(store) == number
    check_next(store, number)


def check_kill_in_the_gate(store: str) -> None:
    old = champion(store)
    with promoting(store, other(store)) as (process, _):
        process.kill()
        process.join()
    assert champion(store) == old
    check_next(store, old)


def test_of_two_promotions_at_the_same_time_one_is_refused(two: str) -> None:
    check_one_at_a_time(two)


def test_a_promotion_killed_in_the_gate_leaves_no_lock(two: str) -> None:
    check_kill_in_the_gate(two)


def test_a_champion_that_moved_while_the_gate_was_at_work_is_not_overwritten(
    two: str, good: Path
) -> None:
    third = publish(two, good)

    def examine(*_: Any) -> list[Check]:
        registry.set_alias(two, third, "champion")  # as in MLflow's own pages
        return [PASS]

    with pytest.raises(PdError, match="became version 3 while the gate was at work"):
        promotion.promote(two, f"{NAME}/2", examine, user="tester@here")
    assert champion(two) == 3


def test_an_error_of_the_disk_while_the_lock_is_held_is_not_taken_for_one_of_the_lock(
    store: str,
) -> None:
    with pytest.raises(OSError, match="disk"), lock.promotion(store, NAME, user="tester@here"):
        raise OSError("the disk is full")


# The lock in the registry, which machines share; here it is made in a local one.


def in_the_registry(store: str) -> AbstractContextManager[lock.Held]:
    return lock._in_the_registry(store, NAME, "second@here")


def held_by(store: str, process: str = this_process(), silence: float = 0) -> None:
    """Create the lock as another process does that was last heard of some seconds ago."""
    now = time.time()
    tags = {
        "token": "another",
        "user": "first@there",
        "process": process,
        "since": str(now),
        "alive": str(now - silence),
    }
    tracking.client(store).create_registered_model(f"lock.{NAME}", tags=tags)


@pytest.mark.parametrize(
    ("process", "silence", "lives"),
    [
        (this_process(), 3600, True),
        ("elsewhere 1 1.0", 60, True),
        ("elsewhere 1 1.0", 3600, False),
        (f"{socket.gethostname()} 4194305 1.0", 0, False),  # a number beyond those of Linux
        (f"{socket.gethostname()} {os.getpid()} 1.0", 0, False),  # its number is given again
    ],
    ids=["this", "elsewhere, seen lately", "elsewhere, silent", "no such number", "number reused"],
)
def test_a_holder_that_lives_is_respected_and_one_that_is_gone_passed_over(
    store: str, process: str, silence: float, *, lives: bool
) -> None:
    held_by(store, process, silence)
    assert registry.models(store) == []  # the lock is no model
    if lives:
        with pytest.raises(Busy, match="by first@there, process"), in_the_registry(store):
            pass
        assert locks(store) == [f"lock.{NAME}"]
    else:
        with in_the_registry(store) as held:
            held.check()
        assert locks(store) == []


def test_who_has_lost_the_lock_notices_and_leaves_it_to_the_new_holder(store: str) -> None:
    with in_the_registry(store) as held:
        tracking.client(store).delete_registered_model(f"lock.{NAME}")
        with pytest.raises(Busy, match="no process any more"):
            held.check()
        held_by(store)
        with pytest.raises(Busy, match="first@there"):
            held.check()
    assert locks(store) == [f"lock.{NAME}"]


def test_the_holder_gives_signs_of_life(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_BEAT", 0.05)
    client = tracking.client(store)
    with in_the_registry(store):
        first = client.get_registered_model(f"lock.{NAME}").tags["alive"]
        for _ in range(100):
            if client.get_registered_model(f"lock.{NAME}").tags["alive"] != first:
                return
            time.sleep(0.05)
    pytest.fail("no sign of life in five seconds")


# Back


def test_each_rollback_goes_one_champion_further_back(two: str, good: Path) -> None:
    publish(two, good)
    for number in (2, 3):
        promote(two, number)
    for number in (2, 1):
        roll_back(two)
        assert champion(two) == number
    with pytest.raises(UnknownName, match="first champion"):
        roll_back(two)
    promote(two, 3)
    roll_back(two)
    assert champion(two) == 1
    assert moved(two) == [
        ("promoted", 1), ("promoted", 2), ("promoted", 3), ("rolled back", 2), ("rolled back", 1),
        ("promoted", 3), ("rolled back", 1),
    ]  # fmt: skip
    assert registry.versions(two, NAME)[-1].tags["decision"] == "rolled back to 1"


def test_an_alias_moved_by_other_means_counts_as_a_promotion(two: str) -> None:
    registry.set_alias(two, registry.find(two, f"{NAME}/2"), "champion")
    roll_back(two)
    assert champion(two) == 1


def test_a_rollback_to_damaged_files_is_refused(two: str) -> None:
    promote(two, 2)
    first = registry.find(two, f"{NAME}/1")
    (registered.stored(two, first) / registry.BUNDLE / "model.json").write_text("{}")
    with pytest.raises(BadArtifact, match="version 1, the previous champion"):
        roll_back(two)
    assert champion(two) == 2


def test_a_rollback_without_a_champion_is_refused(store: str, good: Path) -> None:
    publish(store, good)
    with pytest.raises(UnknownName, match="has no champion"):
        roll_back(store)


def test_a_dry_run_and_promoting_the_champion_change_nothing(two: str) -> None:
    promote(two, 2)
    before = registry.versions(two, NAME)
    planned = promotion.rollback(two, NAME, user="tester@here", dry_run=True)
    assert planned.version.number == 1
    promote(two, 2, FAIL)
    assert registry.versions(two, NAME) == before
