"""Ending early: what SIGTERM, by which schedulers take a machine back, does to a stage."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from pd_core.core.errors import Interrupted

EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: the same command, started again, goes on."""


TOLD = "told to end; start the same command again"


def end_at_once() -> None:
    """Let SIGTERM raise `Interrupted`, so that whatever is half-written is cleared away."""
    signal.signal(signal.SIGTERM, _end)


@contextmanager
def postponed(on_told: Callable[[], None] | None = None) -> Iterator[Callable[[], bool]]:
    """Let the block end by itself after SIGTERM, at the first of which `on_told` is called.

    Yields:
        What tells the block whether it is to end.
    """
    told = threading.Event()

    def receive(_number: int, _frame: FrameType | None) -> None:
        if not told.is_set():
            told.set()
            if on_told is not None:
                on_told()

    before = signal.signal(signal.SIGTERM, receive)
    try:
        yield told.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def at_end_of_input(act: Callable[[], None]) -> None:
    """Act, in a thread, when this process's input ends: its other end closes with its holder.

    So a process learns that the one which started it is no more, even if that was killed.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        act()

    threading.Thread(target=wait, daemon=True).start()


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(TOLD)
