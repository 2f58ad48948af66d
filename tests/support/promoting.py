"""Processes that promote and roll back, and that end when they are told to.

They are forked from a server that has imported MLflow; this module is imported in each of them, so
it imports little.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pd_core.mlops.registry import promotion
from pd_core.mlops.registry.gate import Check

NAME = "promptkd-tiny"
STORE = "mlflow.store.model_registry.sqlalchemy_store"

WRITES = (
    "set_registered_model_alias", "delete_registered_model_alias", "set_model_version_tag",
)  # fmt: skip
PASS = Check("gate", passed=True, finding="left out")
FAIL = Check("gate", passed=False, finding="left out")


def promote(store: str, number: int, check: Check = PASS) -> None:
    promotion.promote(store, f"{NAME}/{number}", lambda *_: [check], user="tester@here")


def refuse(store: str, number: int) -> None:
    promote(store, number, FAIL)


def roll_back(store: str, *_: int) -> None:
    promotion.rollback(store, NAME, user="tester@here")


def act_until(step: int, act: Callable[..., None], *arguments: Any) -> None:
    """Act, and die before the write of a number."""
    from mlflow import MlflowClient

    done = 0

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def first_look(*given: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*given, **options)

        return first_look

    for name in WRITES:
        setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
    act(*arguments)


def promote_when_told(store: str, number: int, pipe: Connection) -> None:
    """Promote; inside the gate, say so and wait."""

    def examine(*_: Any) -> list[Check]:
        pipe.send("in the gate")
        pipe.recv()
        return [PASS]

    promotion.promote(store, f"{NAME}/{number}", examine, user="first@here")


def spawner() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([STORE, "pd_core.mlops.registry.promotion"])
    return context


def killed_at(step: int, act: Callable[..., None], *arguments: Any) -> bool:
    """Run it in a process; return whether it was killed, and had not ended before."""
    process = spawner().Process(target=act_until, args=(step, act, *arguments))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return bool(process.exitcode)
