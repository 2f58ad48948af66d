"""The version in use: it follows its alias, while requests go on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from pd_core.errors import PdError
from pd_core.registry.store import Version
from pd_core.service.served import Served

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 60.0  # loading takes a second of processor, which the requests miss


class Keeper:
    """Holds the version that requests are answered by, and replaces it by a newer one.

    Attributes:
        current: who answers; each request takes it once, and stays with it.
        taken_over: how many versions took over since the start.
    """

    def __init__(
        self,
        current: Served,
        *,
        find: Callable[[], Version],
        load: Callable[[Version], Served],
    ) -> None:
        """Start with a version.

        Args:
            current: loaded already.
            find: says which version it should be; called in a thread.
            load: loads it; called in a thread.
        """
        self.current = current
        self.taken_over = 0
        self._find = find
        self._load = load
        self._trouble = ""
        self._failed: dict[int, float] = {}  # version -> when it may be tried again

    async def follow(self, every: float) -> None:
        """Look every so many seconds whether another version is meant, until cancelled."""
        while True:
            await asyncio.sleep(every)
            await self.look()

    async def look(self) -> None:
        """Take over another version, if one is meant; trouble is logged, and the old one stays."""
        try:
            meant = await asyncio.to_thread(self._find)
            await self._take(meant)
            self._trouble = ""
        except PdError as error:
            self._tell(f"{error}")
        except Exception as error:
            self._tell(f"{type(error).__name__}: {error}")

    async def _take(self, meant: Version) -> None:
        now = self.current.version
        same = (meant.name, meant.number) == (now.name, now.number)
        if same and not self.current.worker.broken:
            if meant != now:  # its aliases or tags are others
                self.current = replace(self.current, version=meant)
            return
        if time.monotonic() < self._failed.get(meant.number, 0.0):
            return
        self._failed[meant.number] = time.monotonic() + _RETRY_SECONDS
        try:
            self.current = await asyncio.to_thread(self._load, meant)
        except PdError as error:
            raise PdError(f"version {meant.number} is not taken: {error}") from None
        del self._failed[meant.number]
        _LOG.info("version %d took over from version %d", meant.number, now.number)
        self.taken_over += 1

    def _tell(self, trouble: str) -> None:
        """Log what is wrong, once."""
        if trouble != self._trouble:
            _LOG.warning("version %d goes on answering: %s", self.current.version.number, trouble)
        self._trouble = trouble
