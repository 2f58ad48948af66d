"""The active model of the service: loaded from the registry, and replaced when its alias moves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pd_core.core.errors import BadArtifact, PdError
from pd_core.mlops.bundle import REFERENCE
from pd_core.mlops.drift import Monitor, Reference
from pd_core.mlops.registry.store import BUNDLE, CHAMPION, Version, fetch, find
from pd_core.mlops.serving.worker import Power, Worker
from pd_core.pipeline.redaction import masked


def load_bundle(model: Path) -> Any:
    """Load a version's student.

    Args:
        model: what `store.fetch` returned.

    Returns:
        A `PortableStudent`, of the version's own code.

    Raises:
        BadArtifact: it cannot be loaded.
    """
    import mlflow

    try:
        return mlflow.pyfunc.load_model(str(model)).unwrap_python_model().student
    except Exception as error:  # its code may do anything
        reason = masked(" ".join(str(error).split()))[:300] or type(error).__name__
        raise BadArtifact(
            f"the model cannot be loaded ({reason}); register it again, or take another version"
        ) from None


@dataclass(frozen=True, eq=False)
class Served:
    """A loaded version.

    Attributes:
        version: where it comes from.
        worker: what answers.
        monitor: what compares the answers with those to training pictures; None without these.
    """

    version: Version
    worker: Worker
    monitor: Monitor | None = None


class Ranking(NamedTuple):
    """A picture's answer: the probability of every class (C,), and who gave it."""

    probabilities: NDArray[np.float32]
    served: Served

    def best(self, top: int) -> list[dict[str, Any]]:
        """Return the likeliest classes, as `{"name": ..., "probability": ...}`."""
        order = (-self.probabilities).argsort(kind="stable")[:top]
        names = self.served.worker.facts.names
        return [
            {"name": names[label], "probability": float(self.probabilities[label])}
            for label in order.tolist()
        ]


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


def keep(store: str, reference: str, power: Power) -> Keeper:
    """Load the version that a reference names, to be followed from then on.

    Args:
        store: what `tracking.open_store` returned.
        reference: a data set, for its champion, or as `greek@challenger`, `greek/3`.
        power: what each version's process may use.

    Raises:
        UnknownName: there is no such model, alias or version.
        PdError: it cannot be had or loaded.
    """
    wanted = partial(find, store, reference, default=CHAMPION)
    loaded = partial(load, store, power=power)
    return Keeper(loaded(wanted()), find=wanted, load=loaded)


def load(store: str, version: Version, power: Power) -> Served:
    """Load a version into a process.

    Raises:
        PdError: it cannot be had or loaded.
    """
    with TemporaryDirectory() as folder:
        model = fetch(store, version, Path(folder))
        worker = Worker(partial(load_bundle, model), power)
        reference = model / BUNDLE / REFERENCE
        known = Reference.load(reference) if reference.is_file() else None
    monitor = Monitor(known, worker.facts.names) if known is not None else None
    return Served(version, worker, monitor)
